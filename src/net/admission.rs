//! Admission of connections: a cap on all, a share for each address, and a reserve for clients on
//! this machine. Where there is no room, the connection that has been silent longest makes place;
//! one that is being answered never does.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Limits;
use super::timeouts::Timeouts;

/// Connections that may wait for others to end; more are closed at once.
const MAX_WAITING: usize = 128;
/// Age below which a connection is not closed to make place: it may be about to speak.
const MIN_AGE: Duration = Duration::from_millis(250);

/// The connections of one listener.
#[derive(Clone)]
pub(super) struct Connections {
    limits: Limits,
    /// Address of the listener: clients of this machine may come from it instead of the loopback.
    local: Option<IpAddr>,
    table: Arc<Mutex<Table>>,
    /// Woken when a connection ends.
    ended: Arc<Notify>,
}

#[derive(Default)]
struct Table {
    open: HashMap<u64, Open>,
    held: HashMap<Source, usize>,
    waiting: HashMap<Source, usize>,
    next: u64,
}

struct Open {
    source: Source,
    opened: Instant,
    timeouts: Timeouts,
}

/// Whose connections are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    /// This machine.
    Local,
    /// An IPv4 address, or a /64 network of IPv6.
    Remote(IpAddr),
}

impl Connections {
    pub(super) fn new(limits: Limits, local: Option<IpAddr>) -> Self {
        Self { limits, local, table: Arc::default(), ended: Arc::default() }
    }

    /// A place in the queue for admission; `None` when too many wait already.
    pub(super) fn queue(&self, peer: IpAddr) -> Option<Turn> {
        let source = self.source(peer);
        let mut table = self.lock();
        let waiting = table.waiting.entry(source).or_default();
        // Half of the queue at most for one address, so that it cannot shut the others out.
        let most = if source == Source::Local { MAX_WAITING } else { MAX_WAITING / 2 };
        if *waiting >= most {
            return None;
        }
        *waiting += 1;
        let others =
            table.waiting.iter().filter(|(source, _)| **source != Source::Local).map(|(_, n)| n).sum::<usize>();
        let turn = Turn { connections: self.clone(), source };
        drop(table);
        (source == Source::Local || others <= MAX_WAITING).then_some(turn)
    }

    fn source(&self, peer: IpAddr) -> Source {
        let peer = peer.to_canonical();
        if peer.is_loopback() || self.local == Some(peer) {
            return Source::Local;
        }
        Source::Remote(match peer {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                IpAddr::V6(network.into())
            }
            v4 => v4,
        })
    }

    /// Opens a connection if there is room, or if one can be closed to make some.
    fn admit(&self, source: Source, now: Instant) -> Option<Permit> {
        let mut table = self.lock();
        let limits = &self.limits;
        let capacity = match source {
            Source::Local => limits.connections,
            Source::Remote(_) => limits.connections.saturating_sub(limits.reserve),
        };
        let full = table.open.len() >= capacity;
        let share_taken = source != Source::Local && table.held.get(&source).is_some_and(|held| *held >= limits.share);
        if full || share_taken {
            let victim = table
                .open
                .iter()
                // A stranger closes no connection of this machine, and only its own where its share is the limit.
                .filter(|(_, open)| {
                    if share_taken {
                        open.source == source
                    } else {
                        source == Source::Local || open.source != Source::Local
                    }
                })
                .filter(|(_, open)| now.saturating_duration_since(open.opened) >= MIN_AGE)
                .filter_map(|(id, open)| Some((open.timeouts.silent_since()?, *id)))
                .min()
                .map(|(_, id)| id)?;
            if let Some(open) = table.close(victim) {
                open.timeouts.evict();
            }
        }
        let id = table.next;
        table.next += 1;
        let timeouts = Timeouts::new(&self.limits);
        table.open.insert(id, Open { source, opened: now, timeouts: timeouts.clone() });
        *table.held.entry(source).or_default() += 1;
        drop(table);
        Some(Permit { connections: self.clone(), id, timeouts })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing under the lock can panic; a poisoned lock would still hold a whole table.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn close(&mut self, id: u64) -> Option<Open> {
        let open = self.open.remove(&id)?;
        lower(&mut self.held, open.source);
        Some(open)
    }
}

fn lower(counts: &mut HashMap<Source, usize>, source: Source) {
    if let Some(count) = counts.get_mut(&source) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&source);
        }
    }
}

/// A connection that waits to be admitted.
pub(super) struct Turn {
    connections: Connections,
    source: Source,
}

impl Turn {
    /// Admission, at once where there is room; `None` when there is none within the deadline of a head.
    pub(super) async fn admitted(self) -> Option<Permit> {
        let connections = &self.connections;
        let deadline = Instant::now() + connections.limits.head;
        loop {
            let ended = connections.ended.notified();
            if let Some(permit) = connections.admit(self.source, Instant::now()) {
                return Some(permit);
            }
            // A connection that was too young to be closed is old enough after `MIN_AGE`.
            let look_again = tokio::time::sleep_until(deadline.min(Instant::now() + MIN_AGE));
            tokio::select! {
                () = ended => {}
                () = look_again => if Instant::now() >= deadline {
                    return None;
                },
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lower(&mut self.connections.lock().waiting, self.source);
    }
}

/// An open connection's place; given back when dropped.
pub(super) struct Permit {
    connections: Connections,
    id: u64,
    timeouts: Timeouts,
}

impl Permit {
    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.connections.lock().close(self.id);
        self.connections.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(total: usize, share: usize, reserve: usize) -> Connections {
        Connections::new(Limits { connections: total, share, reserve, ..Limits::default() }, None)
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    /// A moment at which no connection is too young to be closed.
    fn later() -> Instant {
        Instant::now() + 2 * MIN_AGE
    }

    async fn is_overdue(permit: &Permit) -> bool {
        tokio::time::timeout(Duration::from_millis(1), permit.timeouts().overdue()).await.is_ok()
    }

    #[test]
    fn one_address_cannot_take_the_connections_of_another() {
        let all = connections(8, 2, 2);
        let (one, other) = (all.source(address(1)), all.source(address(2)));
        let busy: Vec<_> = (0..2)
            .map(|_| {
                let permit = all.admit(one, later()).unwrap();
                let request = permit.timeouts().begin(false);
                (permit, request)
            })
            .collect();
        assert!(all.admit(one, later()).is_none(), "its share is taken");
        assert!(all.admit(other, later()).is_some(), "others have theirs");
        drop(busy);
        assert!(all.admit(one, later()).is_some(), "a share is given back");
    }

    #[test]
    fn this_machine_is_admitted_however_many_strangers_there_are() {
        let all = connections(8, 6, 2);
        let mut busy = Vec::new();
        for last in 0..6 {
            let permit = all.admit(all.source(address(last)), later()).unwrap();
            let request = permit.timeouts().begin(false);
            busy.push((permit, request));
        }
        let stranger = all.source(address(9));
        assert!(all.admit(stranger, later()).is_none(), "the reserve is no stranger's");
        let own = all.source(IpAddr::from([127, 0, 0, 1]));
        let kept = [all.admit(own, later()).unwrap(), all.admit(own, later()).unwrap()];
        let much_later = later() + 4 * MIN_AGE;
        assert!(all.admit(stranger, much_later).is_none(), "strangers close no connection of this machine");
        drop(kept);
    }

    #[tokio::test]
    async fn the_longest_silent_connection_makes_place_and_one_in_use_never_does() {
        let all = connections(3, 3, 0);
        let source = all.source(address(1));
        let begun = Instant::now();
        let busy = all.admit(source, begun).unwrap();
        let _request = busy.timeouts().begin(false);
        let spoken = all.admit(source, begun).unwrap();
        drop(spoken.timeouts().begin(false));
        let silent = all.admit(source, begun).unwrap();
        assert!(all.admit(source, begun).is_none(), "a new connection may be about to speak");
        let fourth = all.admit(source, begun + MIN_AGE).unwrap();
        assert!(is_overdue(&silent).await, "who never spoke goes first, even when it came last");
        assert!(!is_overdue(&spoken).await);
        drop(fourth.timeouts().begin(false));
        let _fifth = all.admit(source, begun + 2 * MIN_AGE).unwrap();
        assert!(is_overdue(&spoken).await, "then who has been quiet for longest");
        assert!(!is_overdue(&fourth).await);
        assert!(!is_overdue(&busy).await);
    }

    #[tokio::test]
    async fn who_waits_is_admitted_when_a_connection_ends_and_refused_when_none_does() {
        let limits =
            Limits { connections: 1, share: 1, reserve: 0, head: Duration::from_millis(300), ..Limits::default() };
        let all = Connections::new(limits, None);
        let held = all.admit(all.source(address(1)), Instant::now()).unwrap();
        let _request = held.timeouts().begin(false);
        assert!(all.queue(address(2)).unwrap().admitted().await.is_none());
        let waiting = tokio::spawn(all.queue(address(2)).unwrap().admitted());
        drop(held);
        assert!(waiting.await.unwrap().is_some());
    }

    #[test]
    fn the_queue_is_bounded_for_one_address_and_for_all() {
        let all = connections(1, 1, 0);
        let mut turns = Vec::new();
        for last in 0..=255 {
            turns.extend(std::iter::from_fn(|| all.queue(address(last))).take(MAX_WAITING));
        }
        assert_eq!(turns.len(), MAX_WAITING);
        assert!(all.queue(IpAddr::from([127, 0, 0, 1])).is_some());
        turns.clear();
        assert!(all.lock().waiting.is_empty());
    }

    #[test]
    fn an_address_is_counted_by_its_network() {
        let all = Connections::new(Limits::default(), Some(address(7)));
        let source = |text: &str| all.source(text.parse().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::2:3:4:5"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_eq!(source("::1"), Source::Local);
        assert_eq!(source("127.8.0.1"), Source::Local);
        assert_eq!(source("192.0.2.7"), Source::Local);
    }
}
