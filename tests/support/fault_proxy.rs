//! A TCP proxy that breaks on command: it stands before Postgres or an object store, refuses, swallows, delays,
//! cuts and half-closes connections, and is mended again, all while a child process talks through it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

/// How long the old listener may hold the port when the proxy is mended.
const REBIND: Duration = Duration::from_secs(5);
const PIECE: usize = 64 << 10;

/// What is wrong with the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    Mended,
    /// Connections are refused, and those that were open are reset.
    Refuse,
    /// Nothing passes and nothing is said: a host that vanished. What was sent meanwhile passes when it is mended.
    BlackHole,
    /// Every piece of data is late.
    Delay(Duration),
    /// Connections are reset once this many bytes have passed from the client to the server.
    CutRequest(u64),
    /// Connections are reset once this many bytes have passed from the server to the client.
    CutReply(u64),
    /// Connections are reset after a number of bytes below this one, drawn for each connection, in either direction.
    CutAnywhere(u64),
    /// The client's half is closed by the first bytes of a reply, before they reach it.
    HalfClose,
}

/// What has passed.
#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    broken: AtomicU64,
    bytes: AtomicU64,
}

/// Listens until it is dropped.
pub(crate) struct FaultProxy {
    pub(crate) address: SocketAddr,
    fault: watch::Sender<Fault>,
    counts: Arc<Counts>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl FaultProxy {
    /// Stands before `upstream`; `seed` draws where [`Fault::CutAnywhere`] cuts.
    pub(crate) fn start(upstream: SocketAddr, seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (fault, seen) = watch::channel(Fault::Mended);
        let counts = Arc::new(Counts::default());
        runtime.spawn(listen(Some(listener), address, upstream, seen, counts.clone(), seed));
        Self { address, fault, counts, runtime: Some(runtime) }
    }

    /// Breaks the network this way from now on.
    pub(crate) fn set(&self, fault: Fault) {
        // Both ends live as long as the proxy.
        let _ = self.fault.send(fault);
    }

    /// Nothing is wrong any more.
    pub(crate) fn mend(&self) {
        self.set(Fault::Mended);
    }

    /// Connections made, and those of them that a fault ended.
    pub(crate) fn connections(&self) -> (u64, u64) {
        (self.counts.connections.load(Ordering::Relaxed), self.counts.broken.load(Ordering::Relaxed))
    }

    /// Bytes that have passed in both directions.
    pub(crate) fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn listen(
    first: Option<std::net::TcpListener>,
    address: SocketAddr,
    upstream: SocketAddr,
    mut fault: watch::Receiver<Fault>,
    counts: Arc<Counts>,
    seed: u64,
) {
    let mut listener = first.map(|listener| TcpListener::from_std(listener).unwrap());
    let mut dice = seed;
    loop {
        if *fault.borrow_and_update() == Fault::Refuse {
            // A closed port refuses.
            listener = None;
            if fault.changed().await.is_err() {
                return;
            }
            continue;
        }
        let open = match listener.take() {
            Some(open) => open,
            None => bind(address).await,
        };
        tokio::select! {
            accepted = open.accept() => {
                if let Ok((client, _)) = accepted {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    counts.connections.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(connection(client, upstream, fault.clone(), counts.clone(), dice >> 20));
                }
            }
            changed = fault.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        listener = Some(open);
    }
}

/// The port again, once the system lets go of it.
async fn bind(address: SocketAddr) -> TcpListener {
    let begun = std::time::Instant::now();
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        match socket.bind(address).and_then(|()| socket.listen(1024)) {
            Ok(listener) => return listener,
            Err(cause) => assert!(begun.elapsed() < REBIND, "the proxy's port {address} is lost: {cause}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn connection(
    client: TcpStream,
    upstream: SocketAddr,
    mut fault: watch::Receiver<Fault>,
    counts: Arc<Counts>,
    dice: u64,
) {
    // A host that vanished answers nobody, and the upstream does not learn of those who call it.
    while *fault.borrow_and_update() == Fault::BlackHole {
        if fault.changed().await.is_err() {
            return;
        }
        // No host was there to take the connection: one that its caller gave up meanwhile never was.
        if client.ready(Interest::READABLE).now_or_never().is_some_and(|state| state.is_ok_and(|s| s.is_read_closed()))
        {
            return;
        }
    }
    let Ok(server) = TcpStream::connect(upstream).await else {
        counts.broken.fetch_add(1, Ordering::Relaxed);
        return reset(client);
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let both = tokio::try_join!(
        pump(&mut from_client, &mut to_server, Way { up: true, dice, counts: &counts }, fault.clone()),
        pump(&mut from_server, &mut to_client, Way { up: false, dice, counts: &counts }, fault),
    );
    if both.is_err() {
        counts.broken.fetch_add(1, Ordering::Relaxed);
        if let (Ok(client), Ok(server)) = (from_client.reunite(to_client), from_server.reunite(to_server)) {
            reset(client);
            reset(server);
        }
    }
}

/// Closes with a reset instead of an end.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}

/// The connection is to be reset.
struct Broken;

/// One direction of a connection.
struct Way<'a> {
    /// From the client to the server.
    up: bool,
    dice: u64,
    counts: &'a Counts,
}

impl Way<'_> {
    /// How many bytes may pass this way before the connection is cut.
    fn limit(&self, fault: Fault) -> u64 {
        match fault {
            Fault::CutRequest(bytes) if self.up => bytes,
            Fault::CutReply(bytes) if !self.up => bytes,
            Fault::CutAnywhere(most) if self.up == self.dice.is_multiple_of(2) => self.dice / 2 % most.max(1),
            _ => u64::MAX,
        }
    }
}

async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    way: Way<'_>,
    mut fault: watch::Receiver<Fault>,
) -> Result<(), Broken> {
    let mut buffer = vec![0; PIECE];
    let mut passed = 0;
    loop {
        let now = *fault.borrow_and_update();
        if now == Fault::Refuse {
            return Err(Broken);
        }
        if now == Fault::BlackHole {
            fault.changed().await.map_err(|_| Broken)?;
            continue;
        }
        let left = way.limit(now).saturating_sub(passed);
        if left == 0 {
            return Err(Broken);
        }
        let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = tokio::select! {
            read = from.read(&mut buffer[..room]) => read.map_err(|_| Broken)?,
            changed = fault.changed() => {
                changed.map_err(|_| Broken)?;
                continue;
            }
        };
        if read == 0 {
            let _ = to.shutdown().await;
            return Ok(());
        }
        let now = passable(&mut fault).await?;
        if let Fault::Delay(late) = now {
            tokio::time::sleep(late).await;
        }
        if now == Fault::HalfClose && !way.up {
            // The client reads an end where its answer should be; what it still sends goes on to the server.
            let _ = to.shutdown().await;
            way.counts.broken.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        tokio::select! {
            written = to.write_all(&buffer[..read]) => written.map_err(|_| Broken)?,
            broken = refused(&mut fault) => return Err(broken),
        }
        passed += read as u64;
        way.counts.bytes.fetch_add(read as u64, Ordering::Relaxed);
    }
}

/// The fault in force, once it lets anything pass.
async fn passable(fault: &mut watch::Receiver<Fault>) -> Result<Fault, Broken> {
    let now = fault.wait_for(|fault| *fault != Fault::BlackHole).await.map_err(|_| Broken)?;
    if *now == Fault::Refuse { Err(Broken) } else { Ok(*now) }
}

/// Ends when connections are to be reset.
async fn refused(fault: &mut watch::Receiver<Fault>) -> Broken {
    let _ = fault.wait_for(|fault| *fault == Fault::Refuse).await;
    Broken
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// Sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        address
    }

    fn dial(proxy: &FaultProxy) -> std::io::Result<std::net::TcpStream> {
        let stream = std::net::TcpStream::connect(proxy.address)?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(stream)
    }

    fn say(stream: &mut std::net::TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(text)?;
        let mut heard = vec![0; text.len()];
        stream.read_exact(&mut heard)?;
        Ok(heard)
    }

    #[test]
    fn every_fault_is_felt_and_mended() {
        let proxy = FaultProxy::start(echo(), 7);
        let mut stream = dial(&proxy).unwrap();
        assert_eq!(say(&mut stream, b"hello").unwrap(), b"hello");

        proxy.set(Fault::BlackHole);
        let mut waiting = dial(&proxy).unwrap();
        let mut given_up = dial(&proxy).unwrap();
        given_up.write_all(b"hello?").unwrap();
        drop(given_up);
        let passed = proxy.bytes();
        assert!(say(&mut stream, b"kept").is_err(), "an open connection is silent");
        assert!(say(&mut waiting, b"new").is_err(), "and a new one");
        proxy.mend();
        let mut late = [0; 4];
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.read_exact(&mut late).unwrap();
        assert_eq!(&late, b"kept", "what was sent arrives in the end");
        let mut new = [0; 3];
        waiting.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        waiting.read_exact(&mut new).unwrap();
        assert_eq!(&new, b"new", "on a new connection too");
        // Counted once it is through.
        while proxy.bytes() - passed < 2 * 7 {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(proxy.bytes() - passed, 2 * 7, "what was given up does not");

        proxy.set(Fault::Refuse);
        let refused = |proxy: &FaultProxy| {
            (0..200).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                std::net::TcpStream::connect(proxy.address).is_err()
            })
        };
        assert!(refused(&proxy), "a new connection is refused");
        assert!(say(&mut stream, b"reset").is_err(), "an open one is reset");
        proxy.mend();
        let again = (0..500).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            dial(&proxy).ok()
        });
        let mut stream = again.expect("the port listens again");
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(say(&mut stream, b"mended").unwrap(), b"mended");

        proxy.set(Fault::Delay(Duration::from_millis(60)));
        let begun = std::time::Instant::now();
        assert_eq!(say(&mut stream, b"late").unwrap(), b"late");
        assert!(begun.elapsed() >= Duration::from_millis(120), "late in both directions: {:?}", begun.elapsed());
        proxy.set(Fault::CutReply(3));
        let mut stream = dial(&proxy).unwrap();
        stream.write_all(b"12345").unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        assert!(heard.len() <= 3, "{heard:?}");
        proxy.set(Fault::CutRequest(2));
        let mut stream = dial(&proxy).unwrap();
        let _ = stream.write_all(b"12345");
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        assert!(heard.len() <= 2, "{heard:?}");
        proxy.set(Fault::HalfClose);
        let mut stream = dial(&proxy).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"12345").unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "an end, and no answer");
        let (connections, broken) = proxy.connections();
        assert!(connections >= 6 && broken >= 4, "{connections} connections, {broken} broken");
        assert!(proxy.bytes() > 0);
    }
}
