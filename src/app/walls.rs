//! The walls between accounts, as the API and the workers see them: a bucket of the embedded store belongs to the account
//! that made it; an external store belongs to the configured account, apart from what is assigned to others; and every
//! account has what the operator assigned to it. Whatever no rule opens is closed.

use std::fmt;

use crate::error::Result;
use crate::objects::{Grants, Objects, Wall};
use crate::store::{Db, accounts};

/// The rules of this service.
#[derive(Clone)]
pub struct Walls {
    db: Db,
    /// The account that the settings name.
    root: String,
    /// The embedded store, which knows who made a bucket; `None` for an external one, which knows nothing of accounts.
    embedded: Option<Objects>,
}

impl Walls {
    /// The walls of a store; `embedded` is a client of the embedded one.
    pub fn new(db: Db, root: &str, embedded: Option<Objects>) -> Self {
        Self { db, root: root.to_string(), embedded }
    }
}

impl fmt::Debug for Walls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walls").field("root", &self.root).finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl Wall for Walls {
    async fn grants(&self, account: &str, bucket: &str) -> Result<Grants> {
        let (own, others): (Vec<_>, Vec<_>) =
            accounts::assigned(&self.db, bucket).await?.into_iter().partition(|one| one.account_id == account);
        let folders = own.into_iter().map(|one| one.folder).collect();
        match &self.embedded {
            Some(store) => Ok(Grants { owned: store.is_owner(account, bucket).await?, folders, except: Vec::new() }),
            None => {
                let except = others.into_iter().map(|one| one.folder).collect();
                Ok(Grants { owned: account == self.root, folders, except })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::accounts::{Assignment, Source, assign};

    #[tokio::test]
    async fn an_external_store_is_the_configured_accounts_but_for_what_is_assigned_to_others() {
        let db = Db::connect("sqlite::memory:").await.unwrap();
        db.migrate().await.unwrap();
        let walls = Walls::new(db.clone(), "000000000000", None);
        let may = async |account: &str, key: &str| walls.grants(account, "shared").await.unwrap().holds(key);
        assert!(may("000000000000", "theirs/a").await && !may("111122223333", "theirs/a").await);
        let assignment = Assignment {
            account_id: "111122223333".into(),
            bucket: "shared".into(),
            folder: "theirs".into(),
            source: Source::Command,
        };
        assign(&db, &assignment, 0).await.unwrap();
        assert!(!may("000000000000", "theirs/a").await && may("111122223333", "theirs/a").await);
        assert!(may("000000000000", "ours/a").await && !may("111122223333", "ours/a").await);
        assert!(!may("444455556666", "theirs/a").await && !may("444455556666", "ours/a").await);
    }
}
