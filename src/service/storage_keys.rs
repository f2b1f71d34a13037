//! Which keys open the embedded object store: those of the API's table, with the same session tokens and policies, and
//! the one of the service itself, which is in no list and which nobody can revoke.

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::{Prefix, Secret};
use crate::error::Result;
use crate::http::credentials::draw_bearer;
use crate::objects::embedded::{self, Holder};
use crate::store::keys::{self, Policy};
use crate::store::{Db, accounts, service_secrets};

/// The access key id of the service itself. Access keys that are made begin with `AKIA` or `ASIA`.
pub(super) const SERVICE_KEY: &str = "tunesmith-service";

/// The secret of [`SERVICE_KEY`]: one for each database, so that every process of it can use the embedded store.
pub(super) async fn service_secret(db: &Db, clock: &Clock) -> Result<Secret> {
    let draw = || draw_bearer(clock).expose().to_string();
    Ok(Secret::new(service_secrets::shared(db, "embedded-object-store", draw, clock.now()).await?))
}

/// The database's keys.
pub(super) struct StorageKeys {
    pub(super) db: Db,
    pub(super) clock: Clock,
    /// The account that the settings name.
    pub(super) root: String,
    pub(super) service_secret: Secret,
}

#[async_trait::async_trait]
impl embedded::Keys for StorageKeys {
    async fn holder(&self, access_key: &str) -> Result<Option<Holder>> {
        if access_key == SERVICE_KEY {
            let secret = self.service_secret.expose().to_string();
            return Ok(Some(Holder { secret, account: None, token_digest: None, limits: None }));
        }
        let found = keys::signing(&self.db, access_key).await?;
        Ok(found.filter(|found| found.key.is_valid(self.clock.now())).map(|found| Holder {
            secret: found.secret,
            account: Some(found.key.account_id),
            token_digest: found.token_digest,
            limits: found.key.policy.map(|policy| Arc::new(Limited::from(policy.0)) as Arc<dyn embedded::Limits>),
        }))
    }

    async fn assigned(&self, account: &str, bucket: &str) -> Result<Vec<String>> {
        let all = accounts::assigned(&self.db, bucket).await?;
        Ok(all.into_iter().filter(|one| one.account_id == account).map(|one| one.folder).collect())
    }

    /// A name that stands in assignments is reserved: for the accounts that the whole bucket is assigned to, or else for
    /// the root account. A folder of it is no right to the rest.
    async fn may_create(&self, account: &str, bucket: &str) -> Result<bool> {
        let assigned = accounts::assigned(&self.db, bucket).await?;
        let mut whole = assigned.iter().filter(|one| one.folder.is_empty()).peekable();
        Ok(match whole.peek() {
            Some(_) => whole.any(|one| one.account_id == account),
            None => assigned.is_empty() || account == self.root,
        })
    }
}

/// A key's policy, as far as it speaks of object storage.
struct Limited {
    read_only: bool,
    /// `None`: the key is for named operations of Bedrock, and S3 has none of them.
    places: Option<Vec<Prefix>>,
}

impl From<Policy> for Limited {
    fn from(policy: Policy) -> Self {
        // A place that cannot be read opens nothing.
        let places: Option<Vec<Prefix>> = policy.buckets.iter().map(|place| place.parse().ok()).collect();
        let places = places.filter(|_| policy.operations.is_empty());
        Self { read_only: policy.read_only, places }
    }
}

impl embedded::Limits for Limited {
    fn allow(&self, place: &str, writes: bool) -> bool {
        let Some(places) = &self.places else { return false };
        (!writes || !self.read_only) && (places.is_empty() || places.iter().any(|prefix| prefix.holds(place)))
    }
}

#[cfg(test)]
mod tests {
    use super::embedded::Limits;
    use super::*;

    #[test]
    fn a_policy_holds_in_the_object_store_as_in_the_api() {
        let policy = |read_only, operations: &[&str], buckets: &[&str]| {
            let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            Limited::from(Policy { read_only, operations: list(operations), buckets: list(buckets) })
        };
        for (limits, place, writes, allowed) in [
            (policy(true, &[], &[]), "s3://data/a", false, true),
            (policy(true, &[], &[]), "s3://data/a", true, false),
            (policy(true, &[], &[]), "s3://", false, true),
            (policy(false, &[], &["s3://data/in"]), "s3://data/in/a", true, true),
            (policy(false, &[], &["s3://data/in"]), "s3://data/input", false, false),
            (policy(false, &[], &["s3://data/in"]), "s3://data/", false, false),
            (policy(false, &[], &["s3://data/in"]), "s3://", false, false),
            (policy(false, &["InvokeModel"], &[]), "s3://data/a", false, false),
            (policy(false, &[], &["rubbish"]), "s3://data/a", false, false),
        ] {
            assert_eq!(limits.allow(place, writes), allowed, "{place} {writes}");
        }
    }
}
