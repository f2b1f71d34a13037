//! Root keys on both databases: one pair, whoever comes first, and one after the other.

use tunesmith::store::Db;
use tunesmith::store::keys::{self, Key, KeyKind};
use tunesmith::store::root_keys::{self, Adopted, Proof};
use tunesmith::store::{accounts, service_secrets};

use super::ACCOUNT;
use super::database::on_both;

fn key(id: &str, kind: KeyKind) -> Key {
    Key {
        id: id.into(),
        account_id: ACCOUNT.into(),
        kind,
        note: "root".into(),
        created_at: 1,
        expires_at: None,
        revoked_at: None,
        policy: None,
    }
}

on_both! {
    async fn of_many_processes_that_start_at_once_one_makes_the_root_keys(db: Db) {
        let starts = (0..8).map(|n| {
            let db = db.clone();
            tokio::spawn(async move {
                let (pair, bearer) = (key(&format!("AKIA{n}"), KeyKind::SigV4), key(&format!("b{n}"), KeyKind::Bearer));
                let secret = format!("secret-{n}");
                let made = root_keys::make(&db, (&pair, &secret), (&bearer, &secret), 1).await.unwrap();
                let shared = service_secrets::shared(&db, "shared", || secret, 1).await.unwrap();
                (made, shared)
            })
        });
        let mut outcomes = Vec::new();
        for start in starts.collect::<Vec<_>>() {
            outcomes.push(start.await.unwrap());
        }
        assert_eq!(outcomes.iter().filter(|(made, _)| *made).count(), 1, "{outcomes:?}");
        assert!(outcomes.iter().all(|(_, shared)| *shared == outcomes[0].1), "{outcomes:?}");
        assert_eq!(keys::list(&db, ACCOUNT).await.unwrap().len(), 2);
        let valid = root_keys::valid(&db).await.unwrap();
        assert_eq!((valid.pairs.len(), valid.bearers.len()), (1, 1));
    }
}

on_both! {
    async fn an_adopted_root_key_revokes_those_before_it_and_a_revoked_one_revokes_nothing(db: Db) {
        let adopt = async |id: &str, secret: &str| {
            root_keys::adopt(&db, &[(&key(id, KeyKind::SigV4), Proof::Secret(secret))], 5).await.unwrap()
        };
        assert_eq!(adopt("AKIAONE", "1").await, Adopted::Done(vec![true]));
        assert_eq!(adopt("AKIATWO", "2").await, Adopted::Done(vec![true]));
        assert_eq!(adopt("AKIATWO", "3").await, Adopted::OtherSecret("AKIATWO".into()));
        assert_eq!(adopt("AKIAONE", "1").await, Adopted::Done(vec![false]));
        assert_eq!(root_keys::valid(&db).await.unwrap().pairs, [("AKIATWO".to_string(), "2".to_string())]);
        let one = keys::signing(&db, "AKIAONE").await.unwrap().unwrap();
        assert_eq!(one.key.revoked_at, Some(5));
    }
}

on_both! {
    async fn the_keys_of_a_disabled_account_are_revoked_for_as_long_as_it_is(db: Db) {
        keys::insert_signing(&db, &key("AKIAONE", KeyKind::SigV4), "1").await.unwrap();
        let valid = async || keys::signing(&db, "AKIAONE").await.unwrap().unwrap().key.is_valid(10);
        assert!(valid().await, "an account without a row is enabled");
        accounts::insert(&db, ACCOUNT, "research", 1).await.unwrap();
        assert!(accounts::set_disabled(&db, ACCOUNT, Some(2)).await.unwrap());
        assert!(!valid().await);
        assert!(accounts::set_disabled(&db, ACCOUNT, None).await.unwrap());
        assert!(valid().await);
    }
}
