//! What is in memory, least recently used out first. Two callers who want the same thing load it
//! once; a caller who wants something else does not wait for them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;

/// At most `capacity` values by key.
pub(super) struct Loaded<K, V> {
    capacity: usize,
    /// Most recently used last.
    slots: Mutex<Vec<Slot<K, V>>>,
}

struct Slot<K, V> {
    key: K,
    value: Arc<Mutex<Option<Arc<V>>>>,
}

impl<K: PartialEq + Clone, V> Loaded<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), slots: Mutex::new(Vec::new()) }
    }

    /// The value of `key`, loaded if it is not there. What is pushed out lives on until its last
    /// user is done.
    pub(super) fn get(&self, key: &K, load: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
        let place = self.place(key);
        let mut value = lock(&place);
        if let Some(value) = &*value {
            return Ok(Arc::clone(value));
        }
        let loaded = Arc::new(load()?);
        *value = Some(Arc::clone(&loaded));
        Ok(loaded)
    }

    /// Drops what is kept for the keys that `which` names.
    pub(super) fn forget(&self, which: impl Fn(&K) -> bool) {
        lock(&self.slots).retain(|slot| !which(&slot.key));
    }

    fn place(&self, key: &K) -> Arc<Mutex<Option<Arc<V>>>> {
        let mut slots = lock(&self.slots);
        let slot = match slots.iter().position(|slot| slot.key == *key) {
            Some(index) => slots.remove(index),
            None => Slot { key: key.clone(), value: Arc::default() },
        };
        let place = Arc::clone(&slot.value);
        slots.push(slot);
        while slots.len() > self.capacity {
            slots.remove(0);
        }
        place
    }
}

/// A loader that panicked left `None` behind, which the next caller loads again.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::error::Error;

    #[test]
    fn the_least_recently_used_goes_first() {
        let loaded = Loaded::new(2);
        let loads = Cell::new(0);
        let get = |key: &str| {
            *loaded
                .get(&key.to_string(), || {
                    loads.set(loads.get() + 1);
                    Ok(key.len())
                })
                .unwrap()
        };
        get("a");
        get("bb");
        get("a");
        assert_eq!(loads.get(), 2);
        get("ccc");
        get("a");
        assert_eq!(loads.get(), 3, "a was used after bb and stays");
        assert_eq!(get("bb"), 2);
        assert_eq!(loads.get(), 4);
        loaded.forget(|key| key == "bb");
        get("bb");
        assert_eq!(loads.get(), 5);
    }

    #[test]
    fn a_failed_load_is_tried_again() {
        let loaded: Loaded<u8, u8> = Loaded::new(1);
        assert!(loaded.get(&1, || Err(Error::validation("no"))).is_err());
        assert_eq!(*loaded.get(&1, || Ok(7)).unwrap(), 7);
    }

    #[test]
    fn many_callers_at_once_load_once() {
        let loaded: Loaded<u8, u8> = Loaded::new(1);
        let loads = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let load = || {
                        loads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        Ok(1)
                    };
                    assert_eq!(*loaded.get(&0, load).unwrap(), 1);
                });
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }
}
