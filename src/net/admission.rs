//! Admission of connections: a cap on all, a share for each address, and a reserve for clients on
//! this machine. Where there is no room, the connection that has been silent longest makes place;
//! one that is being answered never does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::timeouts::Timeouts;
use super::{Limits, Source};

/// Connections that may wait for others to end; more are closed at once.
const MAX_WAITING: usize = 128;
/// Age below which a connection is not closed to make place: it may be about to speak.
const MIN_AGE: Duration = Duration::from_millis(250);

/// The connections of one listener.
#[derive(Clone)]
pub(super) struct Connections {
    limits: Limits,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    open: HashMap<u64, Open>,
    held: HashMap<Source, usize>,
    /// In the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    /// Number of the next connection.
    next: u64,
}

struct Open {
    source: Source,
    opened: Instant,
    timeouts: Timeouts,
}

struct Waiting {
    source: Source,
    /// The way to whoever waits; taken when there is room.
    grant: Option<oneshot::Sender<Permit>>,
}

/// Why there is no room for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoRoom {
    /// There are as many as there may be.
    Full,
    /// Its source has its share.
    Share,
}

impl Connections {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, table: Arc::default() }
    }

    /// A place in the queue for admission; `None` when too many wait already.
    pub(super) fn queue(&self, source: Source) -> Option<Turn> {
        let mut table = self.lock();
        let waiting =
            |counted: &dyn Fn(Source) -> bool| table.waiting.values().filter(|one| counted(one.source)).count();
        let refused = match source {
            Source::Local => waiting(&|one| one == source) >= MAX_WAITING,
            // Half of the queue at most for one source, so that it cannot shut the others out.
            Source::Remote(_) => {
                waiting(&|one| one == source) >= MAX_WAITING / 2 || waiting(&|one| one != Source::Local) >= MAX_WAITING
            }
        };
        if refused {
            return None;
        }
        let (grant, granted) = oneshot::channel();
        let number = table.number();
        table.waiting.insert(number, Waiting { source, grant: Some(grant) });
        drop(table);
        Some(Turn { connections: self.clone(), number, granted })
    }

    /// Admits those that wait and for which there is room, in the order in which they came. Nobody else is woken.
    fn admit(&self, now: Instant) {
        let mut admitted = Vec::new();
        {
            let mut table = self.lock();
            let waiting: Vec<_> =
                table.waiting.iter().filter(|(_, one)| one.grant.is_some()).map(|(n, one)| (*n, one.source)).collect();
            // Who comes later from the same source finds no more room.
            let (mut full, mut refused) = (false, HashSet::new());
            for (number, source) in waiting {
                if full && source != Source::Local || refused.contains(&source) {
                    continue;
                }
                match self.open(&mut table, source, now) {
                    Ok(permit) => {
                        let grant = table.waiting.get_mut(&number).and_then(|one| one.grant.take());
                        admitted.push((grant, permit));
                    }
                    Err(why) => {
                        full |= why == NoRoom::Full && source != Source::Local;
                        refused.insert(source);
                    }
                }
            }
        }
        // Without the lock: a permit that nobody takes any more is given back at once.
        for (grant, permit) in admitted {
            if let Some(grant) = grant {
                drop(grant.send(permit));
            }
        }
    }

    /// Opens a connection if there is room, or if one can be closed to make some.
    fn open(&self, table: &mut Table, source: Source, now: Instant) -> Result<Permit, NoRoom> {
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
                .map(|(_, id)| id)
                .ok_or(if share_taken { NoRoom::Share } else { NoRoom::Full })?;
            if let Some(open) = table.close(victim) {
                open.timeouts.evict();
            }
        }
        let id = table.number();
        let timeouts = Timeouts::new(&self.limits);
        table.open.insert(id, Open { source, opened: now, timeouts: timeouts.clone() });
        *table.held.entry(source).or_default() += 1;
        Ok(Permit { connections: self.clone(), id, timeouts })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing under the lock can panic; a poisoned lock would still hold a whole table.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn close(&mut self, id: u64) -> Option<Open> {
        let open = self.open.remove(&id)?;
        if let Some(held) = self.held.get_mut(&open.source) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&open.source);
            }
        }
        Some(open)
    }
}

/// A connection that waits to be admitted.
pub(super) struct Turn {
    connections: Connections,
    number: u64,
    granted: oneshot::Receiver<Permit>,
}

impl Turn {
    /// Admission, at once where there is room; `None` when there is none within the deadline of a head.
    pub(super) async fn admitted(mut self) -> Option<Permit> {
        let deadline = Instant::now() + self.connections.limits.head;
        loop {
            let now = Instant::now();
            self.connections.admit(now);
            tokio::select! {
                biased;
                permit = &mut self.granted => return permit.ok(),
                // A connection that was too young to be closed is old enough after `MIN_AGE`.
                () = tokio::time::sleep_until(deadline.min(now + MIN_AGE)) => if Instant::now() >= deadline {
                    return None;
                },
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.connections.lock().waiting.remove(&self.number);
    }
}

/// An open connection's place; given back when dropped, to one that waits.
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
        self.connections.admit(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake};

    use super::super::timeouts::InFlight;
    use super::*;

    fn connections(total: usize, share: usize, reserve: usize) -> Connections {
        Connections::new(Limits { connections: total, share, reserve, ..Limits::default() })
    }

    fn source(last: u8) -> Source {
        Source::Remote(IpAddr::from([192, 0, 2, last]))
    }

    /// A moment at which no connection is too young to be closed.
    fn later() -> Instant {
        Instant::now() + 2 * MIN_AGE
    }

    impl Connections {
        fn open_at(&self, source: Source, now: Instant) -> Option<Permit> {
            let mut table = self.lock();
            self.open(&mut table, source, now).ok()
        }

        /// A connection that is being answered.
        fn busy(&self, source: Source) -> (Permit, InFlight) {
            let permit = self.open_at(source, later()).unwrap();
            let request = permit.timeouts().begin(false);
            (permit, request)
        }
    }

    async fn is_overdue(permit: &Permit) -> bool {
        tokio::time::timeout(Duration::from_millis(1), permit.timeouts().overdue()).await.is_ok()
    }

    #[test]
    fn one_address_cannot_take_the_connections_of_another() {
        let all = connections(8, 2, 2);
        let (one, other) = (source(1), source(2));
        let busy = [all.busy(one), all.busy(one)];
        assert!(all.open_at(one, later()).is_none(), "its share is taken");
        assert!(all.open_at(other, later()).is_some(), "others have theirs");
        drop(busy);
        assert!(all.open_at(one, later()).is_some(), "a share is given back");
    }

    #[test]
    fn this_machine_is_admitted_however_many_strangers_there_are() {
        let all = connections(8, 6, 2);
        let _busy: Vec<_> = (0..6).map(|last| all.busy(source(last))).collect();
        let stranger = source(9);
        assert!(all.open_at(stranger, later()).is_none(), "the reserve is no stranger's");
        let _kept = [(); 2].map(|()| all.open_at(Source::Local, later()).unwrap());
        let much_later = later() + 4 * MIN_AGE;
        assert!(all.open_at(stranger, much_later).is_none(), "strangers close no connection of this machine");
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_silent_connection_makes_place_and_one_in_use_never_does() {
        let all = connections(3, 3, 0);
        let source = source(1);
        let begun = Instant::now();
        let busy = all.open_at(source, begun).unwrap();
        let _request = busy.timeouts().begin(false);
        let spoken = all.open_at(source, begun).unwrap();
        drop(spoken.timeouts().begin(false));
        let silent = all.open_at(source, begun).unwrap();
        assert!(all.open_at(source, begun).is_none(), "a new connection may be about to speak");
        let fourth = all.open_at(source, begun + MIN_AGE).unwrap();
        assert!(is_overdue(&silent).await, "who never spoke goes first, even when it came last");
        assert!(!is_overdue(&spoken).await);
        drop(fourth.timeouts().begin(false));
        let _fifth = all.open_at(source, begun + 2 * MIN_AGE).unwrap();
        assert!(is_overdue(&spoken).await, "then who has been quiet for longest");
        assert!(!is_overdue(&fourth).await);
        assert!(!is_overdue(&busy).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_admitted_when_a_connection_ends_and_refused_when_none_does() {
        let all = connections(1, 1, 0);
        let held = all.busy(source(1));
        assert!(all.queue(source(2)).unwrap().admitted().await.is_none());
        let waiting = tokio::spawn(all.queue(source(2)).unwrap().admitted());
        tokio::task::yield_now().await;
        drop(held);
        assert!(waiting.await.unwrap().is_some());
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_given_back_wakes_the_first_who_fits_and_nobody_else() {
        let all = connections(3, 2, 0);
        let (first, second, other) = (all.busy(source(1)), all.busy(source(1)), all.busy(source(2)));
        // The first in the queue has its share already.
        let mut waiting = [source(1), source(3), source(4)].map(|source| {
            let turn = all.queue(source).unwrap();
            (Box::pin(turn.admitted()), Arc::new(Wakes::default()))
        });
        let mut poll = |n: usize| {
            let (admitted, wakes) = &mut waiting[n];
            let waker = Arc::clone(wakes).into();
            admitted.as_mut().poll(&mut Context::from_waker(&waker))
        };
        for n in 0..3 {
            assert!(poll(n).is_pending());
        }
        drop(other);
        assert!(poll(0).is_pending(), "its source has its share");
        assert!(poll(2).is_pending(), "another came first");
        let Poll::Ready(Some(third)) = poll(1) else { panic!("the first who fits is admitted") };
        drop((first, third));
        assert!(poll(0).is_ready() && poll(2).is_ready(), "a place for each");
        let woken = waiting.each_ref().map(|(_, wakes)| wakes.0.load(Ordering::SeqCst));
        assert_eq!(woken, [1, 1, 1]);
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_not_lost_with_one_who_no_longer_waits() {
        let all = connections(1, 1, 0);
        let held = all.busy(source(1));
        let gone = all.queue(source(2)).unwrap();
        let waiting = tokio::spawn(all.queue(source(3)).unwrap().admitted());
        tokio::task::yield_now().await;
        drop(held);
        let begun = Instant::now();
        drop(gone);
        assert!(waiting.await.unwrap().is_some());
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[test]
    fn the_queue_is_bounded_for_one_address_and_for_all() {
        let all = connections(1, 1, 0);
        let mut turns = Vec::new();
        for last in 0..=255 {
            let before = turns.len();
            turns.extend(std::iter::from_fn(|| all.queue(source(last))).take(MAX_WAITING));
            assert!(turns.len() - before <= MAX_WAITING / 2);
        }
        assert_eq!(turns.len(), MAX_WAITING);
        assert!(all.queue(Source::Local).is_some());
        turns.clear();
        assert!(all.lock().waiting.is_empty());
    }
}
