//! What is in memory, within a budget of bytes, least recently used out first. Two callers who want the same thing
//! load it once; a caller who wants something else does not wait for them. What somebody uses is never freed under
//! them: when all that is there is in use, who wants more waits a while for room. Nothing is freed for one who would
//! have to wait all the same.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::error::{Error, Kind, Result};

/// How often one who waits for room looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(20);

/// Who found no room in this time is told to come back: what is there may stay in use for as long as it is asked. Adapter
/// and base are waited for one after the other, and SDKs wait a minute for an answer.
const PATIENCE: Duration = Duration::from_secs(25);

/// Values by key that take no more than `budget` bytes together; one that alone takes more may be there alone.
pub(super) struct Loaded<K, V>(Arc<Shelf<K, V>>);

struct Shelf<K, V> {
    budget: u64,
    slots: Mutex<Slots<K, V>>,
    /// Rung when somebody has used what they wanted.
    freed: Condvar,
}

struct Slots<K, V> {
    /// Most recently used last.
    list: Vec<Slot<K, V>>,
    next: u64,
}

struct Slot<K, V> {
    /// Tells two with one key apart, of which one is forgotten.
    id: u64,
    key: K,
    bytes: u64,
    users: usize,
    /// Nobody gets it any more; it goes with its last user.
    forgotten: bool,
    value: Arc<Mutex<Option<Arc<V>>>>,
}

/// A value in use, which stays in memory until this is dropped.
pub(super) struct InUse<K, V> {
    value: Arc<V>,
    slot: u64,
    shelf: Arc<Shelf<K, V>>,
}

impl<K, V> Deref for InUse<K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}

impl<K: PartialEq + Clone, V> Loaded<K, V> {
    pub(super) fn new(budget: u64) -> Self {
        let slots = Mutex::new(Slots { list: Vec::new(), next: 0 });
        Self(Arc::new(Shelf { budget, slots, freed: Condvar::new() }))
    }

    /// The value of `key`; where it is not there, `size` says how many bytes it will take, and when there is room
    /// for them `load` loads it and says how many it took. `goes_on` is asked while there is no room: its error ends
    /// the wait.
    ///
    /// # Errors
    /// `ModelNotReady` when there was no room for 25 seconds; else those of `size`, `load` and `goes_on`.
    pub(super) fn get(
        &self,
        key: &K,
        size: impl FnOnce() -> Result<u64>,
        load: impl FnOnce() -> Result<(V, u64)>,
        goes_on: &dyn Fn() -> Result<()>,
    ) -> Result<InUse<K, V>> {
        let known = lock(&self.0.slots).take(key);
        let (id, place) = match known {
            Some(known) => known,
            None => self.make_room(key, size()?, goes_on)?,
        };
        let user = User { slot: id, shelf: &self.0 };
        let mut value = lock(&place);
        let kept = match &*value {
            Some(kept) => Arc::clone(kept),
            None => {
                let (loaded, bytes) = load()?;
                lock(&self.0.slots).resize(id, bytes);
                Arc::clone(value.insert(Arc::new(loaded)))
            }
        };
        // From here on the value's own guard counts as the user.
        std::mem::forget(user);
        Ok(InUse { value: kept, slot: id, shelf: Arc::clone(&self.0) })
    }

    /// Drops what is kept for the keys that `which` names.
    pub(super) fn forget(&self, which: impl Fn(&K) -> bool) {
        let mut slots = lock(&self.0.slots);
        slots.list.iter_mut().filter(|slot| which(&slot.key)).for_each(|slot| slot.forgotten = true);
        slots.sweep();
    }

    /// Bytes of all that is in memory.
    pub(super) fn bytes(&self) -> u64 {
        lock(&self.0.slots).bytes()
    }

    /// A new slot, when there is room for it; or another's who was faster.
    fn make_room(&self, key: &K, bytes: u64, goes_on: &dyn Fn() -> Result<()>) -> Result<Place<V>> {
        let clock = Clock::system();
        let begun = clock.monotonic();
        let mut slots = lock(&self.0.slots);
        loop {
            if let Some(known) = slots.take(key) {
                return Ok(known);
            }
            let used = slots.list.iter().filter(|slot| slot.users > 0);
            let (users, used) = used.fold((0, 0), |(users, used), slot| (users + 1, used + slot.bytes));
            if users == 0 || used + bytes <= self.0.budget {
                while slots.bytes() + bytes > self.0.budget {
                    let Some(idle) = slots.list.iter().position(|slot| slot.users == 0) else { break };
                    slots.list.remove(idle);
                }
                return Ok(slots.add(key.clone(), bytes));
            }
            goes_on()?;
            if clock.monotonic().duration_since(begun) >= PATIENCE {
                return Err(Error::new(
                    Kind::ModelNotReady,
                    "There is no memory for the model now: other models are in use. Try again",
                ));
            }
            slots = self.0.freed.wait_timeout(slots, GLANCE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A slot, and where its value is or will be.
type Place<V> = (u64, Arc<Mutex<Option<Arc<V>>>>);

impl<K: PartialEq, V> Slots<K, V> {
    /// The slot of `key`, used now.
    fn take(&mut self, key: &K) -> Option<Place<V>> {
        let at = self.list.iter().position(|slot| slot.key == *key && !slot.forgotten)?;
        let mut slot = self.list.remove(at);
        slot.users += 1;
        let place = (slot.id, Arc::clone(&slot.value));
        self.list.push(slot);
        Some(place)
    }

    fn add(&mut self, key: K, bytes: u64) -> Place<V> {
        let (id, value) = (self.next, Arc::default());
        self.next += 1;
        self.list.push(Slot { id, key, bytes, users: 1, forgotten: false, value: Arc::clone(&value) });
        (id, value)
    }
}

impl<K, V> Slots<K, V> {
    fn bytes(&self) -> u64 {
        self.list.iter().map(|slot| slot.bytes).sum()
    }

    fn resize(&mut self, id: u64, bytes: u64) {
        self.list.iter_mut().filter(|slot| slot.id == id).for_each(|slot| slot.bytes = bytes);
    }

    /// Frees what nobody will use again.
    fn sweep(&mut self) {
        self.list.retain(|slot| slot.users > 0 || !slot.forgotten);
    }

    /// One user less; of one that failed to load nothing is kept.
    fn leave(&mut self, id: u64, failed: bool) {
        if let Some(slot) = self.list.iter_mut().find(|slot| slot.id == id) {
            slot.users -= 1;
            slot.forgotten |= failed;
        }
        self.sweep();
    }
}

/// Counts as a user while a value is loaded.
struct User<'a, K, V> {
    slot: u64,
    shelf: &'a Shelf<K, V>,
}

impl<K, V> Drop for User<'_, K, V> {
    fn drop(&mut self) {
        lock(&self.shelf.slots).leave(self.slot, true);
        self.shelf.freed.notify_all();
    }
}

impl<K, V> Drop for InUse<K, V> {
    fn drop(&mut self) {
        lock(&self.shelf.slots).leave(self.slot, false);
        self.shelf.freed.notify_all();
    }
}

/// A loader that panicked left `None` behind, which the next caller loads again.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::Error;

    fn always() -> Result<()> {
        Ok(())
    }

    /// Loads the key itself as a value of so many bytes.
    fn get(loaded: &Loaded<String, usize>, key: &str, loads: &Cell<usize>) -> InUse<String, usize> {
        let load = || {
            loads.set(loads.get() + 1);
            Ok((key.len(), key.len() as u64))
        };
        loaded.get(&key.to_string(), || Ok(key.len() as u64), load, &always).unwrap()
    }

    #[test]
    fn the_least_recently_used_goes_first_when_the_bytes_are_too_many() {
        let (loaded, loads) = (Loaded::new(4), Cell::new(0));
        let get = |key: &str| *get(&loaded, key, &loads);
        get("a");
        get("bb");
        get("a");
        assert_eq!((loads.get(), loaded.bytes()), (2, 3));
        get("ccc");
        get("a");
        assert_eq!((loads.get(), loaded.bytes()), (3, 4), "a was used after bb and stays");
        assert_eq!(get("bb"), 2);
        assert_eq!((loads.get(), loaded.bytes()), (4, 3));
        loaded.forget(|key| key == "bb");
        assert_eq!(loaded.bytes(), 1);
        get("bb");
        assert_eq!(loads.get(), 5);
        get("alone and more than all");
        assert_eq!(loaded.bytes(), 23);
        get("a");
        assert_eq!(loaded.bytes(), 1);
    }

    #[test]
    fn a_failed_load_is_tried_again_and_takes_no_room() {
        let loaded: Loaded<u8, u8> = Loaded::new(1);
        assert!(loaded.get(&1, || Ok(1), || Err(Error::validation("no")), &always).is_err());
        assert!(loaded.get(&1, || Err(Error::validation("no")), || Ok((7, 1)), &always).is_err());
        assert_eq!(loaded.bytes(), 0);
        assert_eq!(*loaded.get(&1, || Ok(1), || Ok((7, 1)), &always).unwrap(), 7);
    }

    #[test]
    fn many_callers_at_once_load_once() {
        let loaded: Loaded<u8, u8> = Loaded::new(1);
        let loads = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let load = || {
                        loads.fetch_add(1, Ordering::SeqCst);
                        Ok((1, 1))
                    };
                    assert_eq!(*loaded.get(&0, || Ok(1), load, &always).unwrap(), 1);
                });
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }

    #[test]
    fn what_is_in_use_stays_and_who_wants_more_waits_for_it() {
        let loaded: Loaded<u8, u8> = Loaded::new(2);
        let used = loaded.get(&1, || Ok(2), || Ok((1, 2)), &always).unwrap();
        let given_up = loaded.get(&2, || Ok(1), || Ok((2, 1)), &|| Err(Error::validation("nobody waits")));
        assert_eq!(given_up.err().unwrap().message(), "nobody waits");
        loaded.forget(|_| true);
        assert_eq!((*used, loaded.bytes()), (1, 2), "forgotten, and still there for its user");
        let glances = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let glance = || {
                    glances.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                };
                *loaded.get(&2, || Ok(1), || Ok((2, 1)), &glance).unwrap()
            });
            while glances.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            assert!(!waiting.is_finished());
            drop(used);
            assert_eq!(waiting.join().unwrap(), 2);
        });
        assert_eq!(loaded.bytes(), 1);
    }
}
