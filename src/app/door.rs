//! The door to the models: how many answers are given at once. What comes on top is told to come back, because more
//! would only share the same cores. Provisioned throughput has places of its own, as many as its model units; whoever
//! asks on demand finds what is left of them.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::store::{Db, throughputs};

/// Places that a model unit keeps.
pub const PLACES_PER_UNIT: usize = 1;

/// By which right somebody comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pass {
    /// None but that there is a place; `reserved` units are kept for provisioned throughput.
    OnDemand {
        /// Model units of all provisioned throughput.
        reserved: usize,
    },
    /// Through provisioned throughput.
    Provisioned {
        /// Its id.
        throughput: String,
        /// Its model units.
        units: usize,
    },
}

/// Counts the answers under way.
#[derive(Debug, Clone)]
pub struct Door {
    places: usize,
    inside: Arc<Mutex<Inside>>,
    /// Model units of all provisioned throughput, as the database said last: no answer waits for it to say so.
    reserved: Arc<AtomicUsize>,
    /// Held while the database is asked, so that an older number never replaces a newer one.
    asking: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Inside {
    on_demand: usize,
    /// All that ever came in.
    admitted: u64,
    /// By the id of the throughput; none that is empty.
    provisioned: HashMap<String, usize>,
}

impl Door {
    /// With so many places in all.
    pub fn new(places: usize) -> Self {
        Self { places, inside: Arc::default(), reserved: Arc::default(), asking: Arc::default() }
    }

    /// Asks the database how many model units are kept by now.
    ///
    /// # Errors
    /// When the database fails; then what was known stays.
    pub async fn refresh(&self, db: &Db) -> Result<()> {
        let _asking = self.asking.lock().await;
        let reserved = throughputs::reserved(db).await?;
        self.reserved.store(usize::try_from(reserved).unwrap_or_default(), Ordering::Relaxed);
        Ok(())
    }

    /// The pass of whoever asks on demand.
    pub fn on_demand(&self) -> Pass {
        Pass::OnDemand { reserved: self.reserved.load(Ordering::Relaxed) }
    }

    /// How many units can be provisioned: one place at least stays for those who ask on demand.
    pub fn most_units(&self) -> usize {
        self.places.saturating_sub(1) / PLACES_PER_UNIT
    }

    /// Answers under way.
    pub fn under_way(&self) -> usize {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.on_demand + inside.provisioned.values().sum::<usize>()
    }

    /// Answers begun so far, those that have ended included.
    pub fn admitted(&self) -> u64 {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner).admitted
    }

    /// A place until it is dropped; `None` when there is none for this pass. Places that are given back, because units
    /// were deleted, are there for the next who comes.
    pub fn enter(&self, pass: &Pass) -> Option<Place> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let throughput = match pass {
            Pass::OnDemand { reserved } => {
                let left = self.places.saturating_sub(reserved.saturating_mul(PLACES_PER_UNIT)).max(1);
                if inside.on_demand >= left {
                    return None;
                }
                inside.on_demand += 1;
                None
            }
            Pass::Provisioned { throughput, units } => {
                let own = inside.provisioned.entry(throughput.clone()).or_default();
                if *own >= units.saturating_mul(PLACES_PER_UNIT) {
                    return None;
                }
                *own += 1;
                Some(throughput.clone())
            }
        };
        inside.admitted += 1;
        Some(Place { inside: Arc::clone(&self.inside), throughput })
    }
}

/// A place among the answers under way.
pub struct Place {
    inside: Arc<Mutex<Inside>>,
    throughput: Option<String>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        match &self.throughput {
            None => inside.on_demand -= 1,
            Some(throughput) => {
                if let Some(own) = inside.provisioned.get_mut(throughput) {
                    *own -= 1;
                    if *own == 0 {
                        inside.provisioned.remove(throughput);
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.throughput).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(door: &Door, pass: &Pass) -> Vec<Place> {
        std::iter::from_fn(|| door.enter(pass)).collect()
    }

    fn provisioned(throughput: &str, units: usize) -> Pass {
        Pass::Provisioned { throughput: throughput.into(), units }
    }

    #[test]
    fn each_throughput_has_its_own_places_and_the_rest_is_for_everybody() {
        let door = Door::new(8);
        let (one, two) = (provisioned("one", 2), provisioned("two", 3));
        let on_demand = all(&door, &Pass::OnDemand { reserved: 5 });
        assert_eq!(on_demand.len(), 3);
        let (of_one, of_two) = (all(&door, &one), all(&door, &two));
        assert_eq!((of_one.len(), of_two.len(), door.under_way()), (2, 3, 8));
        drop(of_one);
        assert!(door.enter(&Pass::OnDemand { reserved: 5 }).is_none(), "a unit that rests is not lent");
        assert!(door.enter(&two).is_none());
        assert_eq!(all(&door, &one).len(), 2);
    }

    #[test]
    fn what_is_given_back_is_there_for_the_next() {
        let door = Door::new(4);
        let held = door.enter(&provisioned("gone", 3));
        assert_eq!(all(&door, &Pass::OnDemand { reserved: 3 }).len(), 1);
        let after = all(&door, &Pass::OnDemand { reserved: 0 });
        assert_eq!(after.len(), 4, "the throughput was deleted while one of its answers is still given");
        drop((held, after));
        assert_eq!(door.under_way(), 0);
    }

    #[test]
    fn one_place_stays_for_those_who_ask_on_demand() {
        assert_eq!((Door::new(8).most_units(), Door::new(1).most_units()), (7, 0));
        assert_eq!(all(&Door::new(2), &Pass::OnDemand { reserved: 9 }).len(), 1);
    }
}
