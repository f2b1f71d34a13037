//! The memory of request bodies: one budget for all that are being read or worked on, of which one source, this
//! machine excepted, gets at most half. Bytes count as they come, so that a request which announces much and sends
//! nothing takes nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::reply::refuse;
use crate::error::{Error, Kind};
use crate::net::Source;

/// The part of the budget that one source may take.
const SHARE: u64 = 2;

/// The budget of all bodies.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: u64,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    all: u64,
    /// By source; none that is zero.
    by_source: HashMap<Source, u64>,
}

/// Why there is no memory for more of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// Everybody together has taken all of it.
    All,
    /// The client's address has taken its share.
    Share,
}

/// What one request has taken; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    budget: Arc<Budget>,
    /// `None` where it keeps to no share.
    source: Option<Source>,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { bytes, used: Mutex::default() })
    }

    /// Nothing taken yet, on behalf of `source`. This machine keeps to no share.
    pub(super) fn open(self: &Arc<Self>, source: Option<Source>) -> Held {
        let source = source.filter(|source| *source != Source::Local);
        Held { budget: Arc::clone(self), source, bytes: 0 }
    }
}

impl Held {
    /// Takes so many bytes more.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), Full> {
        let mut used = self.budget.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.all.saturating_add(bytes) > self.budget.bytes {
            return Err(Full::All);
        }
        if let Some(source) = self.source {
            let own = used.by_source.entry(source).or_default();
            if own.saturating_add(bytes) > self.budget.bytes / SHARE {
                return Err(Full::Share);
            }
            *own += bytes;
        }
        used.all += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut used = self.budget.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.all -= self.bytes;
        if let Some(source) = self.source
            && let Some(own) = used.by_source.get_mut(&source)
        {
            *own -= self.bytes;
            if *own == 0 {
                used.by_source.remove(&source);
            }
        }
    }
}

impl IntoResponse for Full {
    fn into_response(self) -> Response {
        match self {
            Self::All => {
                let message = "The service is reading as many request bodies as its memory allows, please try again";
                refuse(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableException", message)
            }
            Self::Share => Error::new(
                Kind::Throttling,
                "Requests from your address take as much memory as one address may: send fewer at once",
            )
            .into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Option<Source> {
        Some(Source::of(text.parse().unwrap(), None))
    }

    #[test]
    fn bodies_share_a_budget_of_which_one_address_gets_half() {
        let budget = Budget::new(100);
        let mut first = budget.open(peer("10.0.0.1"));
        let mut second = budget.open(peer("10.0.0.1"));
        first.grow(30).unwrap();
        second.grow(20).unwrap();
        assert_eq!(second.grow(1), Err(Full::Share), "both requests are one client's");
        let mut other = budget.open(peer("10.0.0.2"));
        other.grow(50).unwrap();
        assert_eq!(budget.open(peer("10.0.0.3")).grow(1), Err(Full::All));
        assert_eq!(budget.open(peer("127.0.0.1")).grow(1), Err(Full::All));
        drop(first);
        second.grow(30).unwrap();
        drop((second, other));
        budget.open(peer("127.0.0.1")).grow(100).unwrap();
        let used = budget.used.lock().unwrap();
        assert!(used.all == 0 && used.by_source.is_empty(), "{used:?}");
    }
}
