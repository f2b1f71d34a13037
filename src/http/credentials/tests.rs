//! Root keys through starts, rotations and crashes.

use super::*;

fn config(folder: &Path, more: &[&str]) -> Config {
    let folder = folder.display().to_string();
    Config::of(&[&["--data-dir", &folder], more].concat())
}

async fn memory() -> Db {
    let db = Db::connect("sqlite::memory:").await.unwrap();
    db.migrate().await.unwrap();
    db
}

#[tokio::test]
async fn a_second_start_finds_the_keys_of_the_first() {
    let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
    let config = config(folder.path(), &[]);
    let first = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
    let second = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
    assert_eq!(first.access_key, second.access_key);
    assert_eq!(first.bearer_key, second.bearer_key);
    assert!(first.written_to.is_some() && second.written_to.is_none());
    assert!(keys::bearer(&db, first.bearer_key.unwrap().expose()).await.unwrap().is_some());
}

#[cfg(unix)]
#[tokio::test]
async fn only_its_owner_can_read_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
    let keys = ensure_root(&config(folder.path(), &[]), &clock, &db).await.unwrap().unwrap();
    let mode = std::fs::metadata(keys.written_to.unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn preset_keys_are_used_and_a_contradiction_is_refused() {
    let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
    let preset = ["--root-access-key", "AKIDTEST", "--root-secret-key", "s", "--root-bearer-key", "b"];
    let keys = ensure_root(&config(folder.path(), &preset), &clock, &db).await.unwrap().unwrap();
    assert_eq!((keys.access_key.as_str(), keys.secret_key.expose()), ("AKIDTEST", "s"));
    assert!(keys.written_to.is_none());

    let other = ["--root-access-key", "AKIDTEST", "--root-secret-key", "t", "--root-bearer-key", "b"];
    let refusal = ensure_root(&config(folder.path(), &other), &clock, &db).await.unwrap_err();
    assert!(refusal.message().contains("AKIDTEST"), "{refusal}");
}

#[tokio::test]
async fn a_database_has_one_root_pair_however_many_processes_start_at_once() {
    let (clock, db) = (Clock::system(), memory().await);
    let folders: Vec<_> = (0..8).map(|_| tempfile::tempdir().unwrap()).collect();
    let configs: Vec<_> = folders.iter().map(|folder| config(folder.path(), &[])).collect();
    let starts = configs.iter().map(|config| ensure_root(config, &clock, &db));
    let keys: Vec<_> = futures::future::join_all(starts).await.into_iter().map(|keys| keys.unwrap().unwrap()).collect();
    assert!(keys.iter().all(|one| one.access_key == keys[0].access_key && one.secret_key == keys[0].secret_key));
    assert_eq!(keys.iter().filter(|one| one.written_to.is_some()).count(), 1, "one process made them");
    let pairs = keys::list(&db, "000000000000").await.unwrap();
    assert_eq!(pairs.iter().filter(|key| key.kind == KeyKind::SigV4).count(), 1);
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder.path()).unwrap()).count();
    assert_eq!(files, 1, "the others leave no file");
}

#[tokio::test]
async fn a_new_preset_revokes_the_root_keys_before_it_and_no_other_key() {
    let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
    let first = ensure_root(&config(folder.path(), &[]), &clock, &db).await.unwrap().unwrap();
    let user = Key { note: "a user's".into(), ..root(&config(folder.path(), &[]), &clock, "AKIAUSER", KeyKind::SigV4) };
    assert!(keys::insert_signing(&db, &user, "s").await.unwrap());
    let preset = ["--root-access-key", "AKIANEW", "--root-secret-key", "s", "--root-bearer-key", "b"];
    let valid = async |id: &str| keys::signing(&db, id).await.unwrap().unwrap().key.is_valid(clock.now());
    for _ in 0..2 {
        let keys = ensure_root(&config(folder.path(), &preset), &clock, &db).await.unwrap().unwrap();
        assert_eq!(keys.access_key, "AKIANEW");
        assert!(!valid(&first.access_key).await && valid("AKIANEW").await && valid("AKIAUSER").await);
        let bearer = keys::bearer(&db, first.bearer_key.as_ref().unwrap().expose()).await.unwrap().unwrap();
        assert!(!bearer.is_valid(clock.now()));
    }
    let kept = file::read(&folder.path().join("credentials")).unwrap().unwrap();
    assert_eq!((kept.access_key.as_str(), kept.bearer_key.expose()), ("AKIANEW", "b"), "the file follows");

    // A process with the settings of yesterday takes nothing back.
    let old = ["--root-access-key", &first.access_key, "--root-secret-key", first.secret_key.expose()];
    let keys = ensure_root(&config(folder.path(), &old), &clock, &db).await.unwrap().unwrap();
    assert_eq!(keys.access_key, "AKIANEW");
    assert!(!valid(&first.access_key).await && valid("AKIANEW").await);
}

#[tokio::test]
async fn a_revoked_root_pair_stays_revoked_at_the_next_start() {
    let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
    let config = config(folder.path(), &[]);
    let first = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
    assert!(keys::revoke(&db, "000000000000", &first.access_key, clock.now()).await.unwrap());
    assert!(ensure_root(&config, &clock, &db).await.unwrap().is_none());
    let path = rotate(&config, &clock, &db).await.unwrap();
    let kept = file::read(&path).unwrap().unwrap();
    let again = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
    assert_eq!((&again.access_key, &again.bearer_key.unwrap()), (&kept.access_key, &kept.bearer_key));
    assert!(!keys::bearer(&db, first.bearer_key.unwrap().expose()).await.unwrap().unwrap().is_valid(clock.now()));
}

#[tokio::test]
async fn a_crash_between_the_file_and_the_database_loses_no_key() {
    let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
    let config = config(folder.path(), &[]);
    let path = folder.path().join("credentials");
    std::fs::write(file::staged(&path), "[default]\naws_access").unwrap();
    let first = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
    std::fs::rename(&path, file::staged(&path)).unwrap();
    let again = ensure_root(&config, &clock, &db).await.unwrap().unwrap();
    assert_eq!((first.access_key, first.bearer_key), (again.access_key, again.bearer_key));
    assert!(path.exists() && !file::staged(&path).exists());
}

/// A database as a release without accounts left it that several API processes used: each had made keys of its own.
async fn of_several_processes() -> (Db, Vec<Kept>) {
    let (clock, db, folder) = (Clock::system(), memory().await, tempfile::tempdir().unwrap());
    let config = config(folder.path(), &[]);
    ensure_root(&config, &clock, &db).await.unwrap().unwrap();
    let mut all = vec![file::read(&folder.path().join("credentials")).unwrap().unwrap()];
    for _ in 0..2 {
        let (access_key, secret_key) = draw_pair(&clock);
        let drawn = Kept { access_key, secret_key, bearer_key: draw_bearer(&clock) };
        let pair = root(&config, &clock, &drawn.access_key, KeyKind::SigV4);
        assert!(keys::insert_signing(&db, &pair, drawn.secret_key.expose()).await.unwrap());
        let bearer = root(&config, &clock, &bearer_id(&drawn.bearer_key), KeyKind::Bearer);
        assert!(keys::insert_bearer(&db, &bearer, drawn.bearer_key.expose()).await.unwrap());
        all.push(drawn);
    }
    let Db::Sqlite(pool) = &db else { panic!("{db:?}") };
    sqlx::query("UPDATE access_keys SET root = 1").execute(pool).await.unwrap();
    (db, all)
}

#[tokio::test]
async fn of_several_valid_root_pairs_a_process_uses_the_one_in_its_file_and_names_the_others() {
    let (db, all) = of_several_processes().await;
    let clock = Clock::system();
    for mine in &all {
        let folder = tempfile::tempdir().unwrap();
        replace(&folder.path().join("credentials"), mine).unwrap();
        let keys = ensure_root(&config(folder.path(), &[]), &clock, &db).await.unwrap().unwrap();
        assert_eq!((&keys.access_key, &keys.secret_key), (&mine.access_key, &mine.secret_key));
        assert_eq!(keys.bearer_key.as_ref(), Some(&mine.bearer_key));
        let valid = root_keys::valid(&db).await.unwrap();
        let others = others(&valid, &keys.access_key, keys.bearer_key.as_ref());
        let mut expected: Vec<_> = all
            .iter()
            .filter(|one| one != &mine)
            .flat_map(|one| [one.access_key.clone(), bearer_id(&one.bearer_key)])
            .collect();
        expected.sort();
        assert_eq!(
            {
                let mut others = others;
                others.sort();
                others
            },
            expected
        );
    }
    // A file whose pair opens nothing decides nothing.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials");
    replace(&path, &Kept { secret_key: Secret::new("another"), ..all[1].clone() }).unwrap();
    let keys = ensure_root(&config(folder.path(), &[]), &clock, &db).await.unwrap().unwrap();
    assert_eq!(keys.access_key, root_keys::valid(&db).await.unwrap().pairs[0].0);
    rotate(&config(folder.path(), &[]), &clock, &db).await.unwrap();
    let keys = ensure_root(&config(folder.path(), &[]), &clock, &db).await.unwrap().unwrap();
    let valid = root_keys::valid(&db).await.unwrap();
    assert!(others(&valid, &keys.access_key, keys.bearer_key.as_ref()).is_empty(), "a rotation refuses all before");
}

#[tokio::test]
async fn the_file_follows_a_preset_bearer_key_alone_too() {
    let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
    let first = ensure_root(&config(folder.path(), &[]), &clock, &db).await.unwrap().unwrap();
    let preset = config(folder.path(), &["--root-bearer-key", "b"]);
    let path = folder.path().join("credentials");
    for _ in 0..2 {
        let keys = ensure_root(&preset, &clock, &db).await.unwrap().unwrap();
        assert_eq!(keys.bearer_key.as_ref().map(Secret::expose), Some("b"));
        let kept = file::read(&path).unwrap().unwrap();
        assert_eq!((&kept.access_key, kept.bearer_key.expose()), (&first.access_key, "b"));
    }
    // A preset that was revoked comes into no file.
    let revoked = first.bearer_key.unwrap();
    let keys = ensure_root(&config(folder.path(), &["--root-bearer-key", revoked.expose()]), &clock, &db).await;
    assert_eq!(keys.unwrap().unwrap().bearer_key.unwrap().expose(), "b");
    assert_eq!(file::read(&path).unwrap().unwrap().bearer_key.expose(), "b");
}

#[tokio::test]
async fn preset_keys_are_adopted_together_or_not_at_all() {
    let (folder, clock, db) = (tempfile::tempdir().unwrap(), Clock::system(), memory().await);
    let preset = |secret: &'static str, bearer: &'static str| {
        config(folder.path(), &["--root-access-key", "AKIA", "--root-secret-key", secret, "--root-bearer-key", bearer])
    };
    ensure_root(&preset("s", "b"), &clock, &db).await.unwrap().unwrap();
    let before = root_keys::valid(&db).await.unwrap();
    ensure_root(&preset("another", "new"), &clock, &db).await.unwrap_err();
    assert_eq!(root_keys::valid(&db).await.unwrap(), before, "the new bearer key has not taken the place of the old");
    let bearer = (root(&preset("s", "b"), &clock, "bearer-new", KeyKind::Bearer), Proof::Bearer("new"));
    let pair = (root(&preset("s", "b"), &clock, "AKIA", KeyKind::SigV4), Proof::Secret("another"));
    let both = [(&bearer.0, bearer.1), (&pair.0, pair.1)];
    assert_eq!(root_keys::adopt(&db, &both, 0).await.unwrap(), Adopted::OtherSecret("AKIA".into()));
    assert_eq!(root_keys::valid(&db).await.unwrap(), before, "whichever comes first");

    let Db::Sqlite(pool) = &db else { panic!("{db:?}") };
    let changes = async || sqlx::query_scalar::<_, i64>("SELECT total_changes()").fetch_one(pool).await.unwrap();
    let written = changes().await;
    ensure_root(&preset("s", "b"), &clock, &db).await.unwrap().unwrap();
    assert_eq!(changes().await, written, "what is so already is not written again");
}

#[tokio::test]
async fn keys_that_the_database_knows_reach_the_file_also_when_the_staged_one_is_lost() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::system());
    let path = folder.path().join("credentials");
    let draw = || {
        let (access_key, secret_key) = draw_pair(&clock);
        Kept { access_key, secret_key, bearer_key: draw_bearer(&clock) }
    };
    let (ours, another) = (draw(), draw());
    keep(&path, &ours).unwrap();
    assert_eq!(file::read(&path).unwrap(), Some(ours.clone()), "a process that started took it for a crash's");
    file::write(&file::staged(&path), &another).unwrap();
    keep(&path, &ours).unwrap();
    assert_eq!(file::read(&path).unwrap(), Some(ours), "another process staged its own");
    assert!(!file::staged(&path).exists());
}
