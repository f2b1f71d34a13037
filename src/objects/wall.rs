//! The wall between accounts in object storage: which places of a bucket an account may use. A client made by
//! [`Objects::within`] asks before every request, so a place that no rule opens is never touched; and the answer is the
//! same whether anything lies there or not.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::failure::{unreadable, unwritable};
use super::{Objects, Uri};
use crate::error::{Error, Kind, Result};

/// The places of one bucket that an account may use. A folder is `""` for the whole bucket, or has no slash at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// The bucket is the account's own.
    pub owned: bool,
    /// Folders assigned to the account.
    pub folders: Vec<String>,
    /// Folders of an own bucket that were assigned to other accounts alone.
    pub except: Vec<String>,
}

impl Grants {
    /// Whether the account may use the object `key`, or the folder of that name. A key with `.` or `..` for a folder
    /// lies in none but an own bucket: some stores would read it as a path.
    pub fn holds(&self, key: &str) -> bool {
        let plain = is_plain(key);
        let within = |folder: &String| plain && is_within(folder, key);
        self.folders.iter().any(within)
            || self.owned
                && !self.except.iter().any(|folder| is_within(folder, key))
                && (plain || self.except.is_empty())
    }

    /// Whether the account may see all keys that begin with `prefix`.
    pub fn holds_all_under(&self, prefix: &str) -> bool {
        let below = |folder: &String| folder.is_empty() || prefix.starts_with(&format!("{folder}/"));
        let apart = |folder: &String| !folder.starts_with(prefix) && !is_within(folder, prefix);
        self.folders.iter().any(below) || self.owned && self.except.iter().all(apart)
    }

    /// Whether the account may use anything here.
    pub fn any(&self) -> bool {
        self.owned || !self.folders.is_empty()
    }
}

/// Whether the key is the folder of that name or lies in it; `""` is the whole bucket. The one rule of roles, limited
/// keys, assignments and own buckets.
pub fn is_within(folder: &str, key: &str) -> bool {
    let below = key.strip_prefix(folder);
    below.is_some_and(|below| folder.is_empty() || below.is_empty() || below.starts_with('/'))
}

/// Whether the key has no `.` or `..` for a folder: some stores would read such a key as a path.
pub fn is_plain(key: &str) -> bool {
    !key.split('/').any(|part| part == "." || part == "..")
}

/// Who may use what.
#[async_trait::async_trait]
pub trait Wall: Debug + Send + Sync {
    /// The account's places in the bucket; none where it has no part in it.
    async fn grants(&self, account: &str, bucket: &str) -> Result<Grants>;
}

/// An answer of the wall is taken for this long without asking again.
const FRESH: Duration = Duration::from_secs(5);

/// The account on whose behalf a client asks, and the wall that it asks.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    account: Arc<str>,
    wall: Arc<dyn Wall>,
    /// The last answers, by bucket: what a job may use stands through an outage of whoever knows the rules.
    known: Arc<Mutex<HashMap<String, (Instant, Grants)>>>,
}

impl Scope {
    async fn grants(&self, bucket: &str) -> Result<Grants> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(bucket).cloned();
        if let Some((at, grants)) = &known
            && at.elapsed() < FRESH
        {
            return Ok(grants.clone());
        }
        match (self.wall.grants(&self.account, bucket).await, known) {
            (Ok(grants), _) => {
                let answer = (Instant::now(), grants.clone());
                self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(bucket.to_string(), answer);
                Ok(grants)
            }
            (Err(error), Some((_, last))) if error.kind() == Kind::Unavailable => {
                // Not asked again at once: each question of an outage takes as long as a connection is waited for.
                let answer = (Instant::now(), last.clone());
                self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(bucket.to_string(), answer);
                Ok(last)
            }
            (Err(error), _) => Err(error),
        }
    }
}

/// What is to be done at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Objects {
    /// The same store for one account: what `wall` does not open is refused as what is not there is.
    #[must_use]
    pub fn within(&self, account: &str, wall: Arc<dyn Wall>) -> Self {
        let scope = Scope { account: account.into(), wall, known: Arc::default() };
        Self { scope: Some(scope), ..self.clone() }
    }

    /// Whether this client's account may use the place; a client of the service itself may use all.
    ///
    /// # Errors
    /// `Unavailable` when that cannot be told.
    pub async fn may_use(&self, uri: &Uri) -> Result<bool> {
        Ok(self.grants(uri.bucket()).await?.is_none_or(|grants| grants.holds(uri.key())))
    }

    /// What this client's account may use of the bucket; `None` for the service itself.
    pub(super) async fn grants(&self, bucket: &str) -> Result<Option<Grants>> {
        match &self.scope {
            Some(scope) => scope.grants(bucket).await.map(Some),
            None => Ok(None),
        }
    }

    /// Refuses a place behind the wall.
    ///
    /// # Errors
    /// `AccessDenied` with Bedrock's sentence about permissions.
    pub(super) async fn enter(&self, uri: &Uri, access: Access) -> Result<()> {
        if self.may_use(uri).await? {
            return Ok(());
        }
        Err(refusal(uri, access))
    }
}

/// The sentence for a place that is behind the wall, or not there at all.
pub(super) fn refusal(uri: &Uri, access: Access) -> Error {
    let message = match access {
        Access::Read => unreadable(uri),
        Access::Write => unwritable(uri),
    };
    Error::new(Kind::AccessDenied, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(owned: bool, folders: &[&str], except: &[&str]) -> Grants {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Grants { owned, folders: list(folders), except: list(except) }
    }

    /// A wall that opens everything, until it is away.
    #[derive(Debug, Default)]
    struct Passing {
        away: std::sync::atomic::AtomicBool,
    }

    #[async_trait::async_trait]
    impl Wall for Passing {
        async fn grants(&self, account: &str, _: &str) -> Result<Grants> {
            if self.away.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(Error::unavailable(anyhow::anyhow!("away")));
            }
            Ok(grants(account == "owner", &[], &[]))
        }
    }

    #[tokio::test]
    async fn what_an_account_may_use_stands_through_an_outage_and_nothing_new_opens() {
        let wall = Arc::new(Passing::default());
        let scope = |account: &str| Scope { account: account.into(), wall: wall.clone(), known: Arc::default() };
        let (owner, other) = (scope("owner"), scope("other"));
        assert!(owner.grants("a").await.unwrap().holds("x") && !other.grants("a").await.unwrap().holds("x"));
        wall.away.store(true, std::sync::atomic::Ordering::SeqCst);
        for scope in [&owner, &other] {
            scope.known.lock().unwrap().values_mut().for_each(|(at, _)| *at -= 2 * FRESH);
        }
        assert!(owner.grants("a").await.unwrap().holds("x") && !other.grants("a").await.unwrap().holds("x"));
        assert_eq!(owner.grants("b").await.unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn a_folder_opens_what_is_in_it_and_nothing_beside_it() {
        let folder = grants(false, &["data/in"], &[]);
        for (key, holds) in [
            ("data/in/a", true),
            ("data/in", true),
            ("data/in/", true),
            ("data/input", false),
            ("data", false),
            ("", false),
            ("data/in/../out", false),
        ] {
            assert_eq!(folder.holds(key), holds, "{key}");
        }
        assert!(folder.holds_all_under("data/in/") && folder.holds_all_under("data/in/x"));
        assert!(!folder.holds_all_under("data/in") && !folder.holds_all_under(""));
        assert!(!grants(false, &[""], &[]).holds("any/../key") && grants(false, &[""], &[]).holds("any"));
        assert!(grants(false, &[""], &[]).holds_all_under(""));
        assert!(!grants(false, &[], &[]).any() && !grants(false, &[], &[]).holds(""));
    }

    #[test]
    fn an_owner_keeps_all_but_what_was_assigned_to_others_alone() {
        let owner = grants(true, &[], &["theirs"]);
        assert!(owner.holds("mine") && owner.holds("theirs-too") && !owner.holds("theirs/a") && !owner.holds("theirs"));
        assert!(!owner.holds("x/../theirs/a"));
        assert!(owner.holds_all_under("mine") && !owner.holds_all_under("") && !owner.holds_all_under("the"));
        assert!(!owner.holds_all_under("theirs/a"));
        let shared = grants(true, &["theirs/mine"], &["theirs"]);
        assert!(shared.holds("theirs/mine/a") && !shared.holds("theirs/a"));
        assert!(grants(true, &[], &[]).holds("a/../b"), "an own bucket without exceptions is wholly its owner's");
    }
}
