//! The cache with folders of a few bytes.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::*;
use crate::durable::faults;

fn cache(root: &Path, bound: u64) -> Arc<ModelCache> {
    Arc::new(ModelCache::new(root.to_path_buf(), bound, Clock::system()))
}

/// Download of so many bytes.
async fn wanted(bytes: usize) -> Result<Wanted> {
    Ok(Wanted { what: "a model".into(), bytes: bytes as u64 })
}

/// Fetches a folder of so many bytes.
async fn fetch(cache: &Arc<ModelCache>, name: &str, bytes: usize) -> Cached {
    let fill = move |staging: PathBuf| async move {
        durable::write(&staging.join("file"), vec![0; bytes])?;
        Ok(true)
    };
    cache.get(&cache.models().join(name), &Patience::Job, wanted(bytes), fill).await.unwrap().unwrap()
}

fn names(cache: &ModelCache) -> Vec<String> {
    let mut names: Vec<_> = entries(&cache.models()).unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    names
}

#[tokio::test]
async fn many_who_want_the_same_share_one_download() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1 << 20);
    let downloads = Arc::new(AtomicUsize::new(0));
    let wanted = (0..50).map(|_| {
        let (cache, downloads) = (Arc::clone(&cache), Arc::clone(&downloads));
        tokio::spawn(async move {
            let dir = cache.models().join("a");
            let fill = move |staging: PathBuf| {
                let downloads = Arc::clone(&downloads);
                async move {
                    downloads.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    durable::write(&staging.join("file"), "content")?;
                    Ok(true)
                }
            };
            cache.get(&dir, &Patience::Request, wanted(7), fill).await.unwrap().unwrap()
        })
    });
    for cached in futures::future::join_all(wanted).await {
        assert_eq!(std::fs::read(cached.unwrap().dir.join("file")).unwrap(), b"content");
    }
    assert_eq!(downloads.load(Ordering::SeqCst), 1);
    assert_eq!(names(&cache), ["a"]);
}

#[tokio::test]
async fn a_download_goes_on_when_those_who_wanted_it_have_gone_away() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1 << 20);
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let fill = {
        let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
        move |staging: PathBuf| {
            let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
            async move {
                begun.notify_one();
                go_on.notified().await;
                durable::write(&staging.join("file"), "content")?;
                Ok(true)
            }
        }
    };
    let dir = cache.models().join("a");
    let first = tokio::spawn({
        let (cache, dir) = (Arc::clone(&cache), dir.clone());
        async move { cache.get(&dir, &Patience::Request, wanted(7), fill).await.map(drop) }
    });
    begun.notified().await;
    first.abort();
    drop(first.await);
    go_on.notify_one();
    let again = |_| async { panic!("it was under way") };
    let cached = cache.get(&dir, &Patience::Job, wanted(7), again).await.unwrap().unwrap();
    assert_eq!(std::fs::read(cached.dir.join("file")).unwrap(), b"content");
}

#[tokio::test]
async fn a_failed_download_is_told_to_all_who_wait_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1 << 20);
    let dir = cache.models().join("a");
    let fill = |staging: PathBuf| async move {
        durable::write(&staging.join("half"), "half")?;
        Err(Error::new(Kind::Model, "it is gone"))
    };
    let both = tokio::join!(
        cache.get(&dir, &Patience::Job, wanted(7), fill),
        cache.get(&dir, &Patience::Job, wanted(7), |_| async { Ok(true) }),
    );
    for error in [both.0.map(drop).unwrap_err(), both.1.map(drop).unwrap_err()] {
        assert_eq!((error.kind(), error.message()), (Kind::Model, "it is gone"));
    }
    assert!(
        cache.get(&dir, &Patience::Job, wanted(7), |_| async { Ok(false) }).await.unwrap().is_none(),
        "nothing to be had"
    );
    let panics = |_| async { panic!("as a test wants it") };
    assert_eq!(cache.get(&dir, &Patience::Job, wanted(7), panics).await.map(drop).unwrap_err().kind(), Kind::Internal);
    assert_eq!(names(&cache), [""; 0]);
    fetch(&cache, "a", 1).await;
}

#[tokio::test]
async fn what_was_not_used_for_longest_goes_first_and_what_is_in_use_stays() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let cache = Arc::new(ModelCache::new(folder.path().to_path_buf(), 100, clock.clone()));
    let later = || clock.jump(Duration::from_secs(10), false);
    let used = fetch(&cache, "used", 40).await;
    cache.hold(&used.dir).unwrap();
    later();
    drop(fetch(&cache, "old", 30).await);
    later();
    drop(fetch(&cache, "new", 30).await);
    drop(cache.hold(&cache.models().join("old")).unwrap());
    cache.hold(&cache.models().join("new")).unwrap();
    later();
    cache.hold(&cache.models().join("old")).unwrap();
    later();
    drop(fetch(&cache, "newest", 30).await);
    assert_eq!(names(&cache), ["newest", "old", "used"]);
    drop(used);
    cache.evict(30).await.unwrap();
    assert_eq!(names(&cache), ["newest"]);
}

#[tokio::test]
async fn what_is_larger_than_the_bound_is_there_for_those_who_fetched_it() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 10);
    drop(fetch(&cache, "usual", 5).await);
    let large = fetch(&cache, "large", 100).await;
    assert!(large.dir.join("file").exists());
    cache.sweep().await.unwrap();
    assert_eq!(names(&cache), ["large", "usual"], "it takes the place of no other");
    drop(large);
    cache.sweep().await.unwrap();
    assert_eq!(names(&cache), ["usual"]);
}

#[tokio::test]
async fn leftovers_of_killed_downloads_are_swept_and_running_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let cache = Arc::new(ModelCache::new(folder.path().to_path_buf(), 1 << 20, clock.clone()));
    let running = Staging::create(&cache.models().join("a"), &clock).unwrap();
    let preview = folder.path().join("previews/job/000001-00000020-0123456789abcdef");
    for left in
        [unfinished(&cache.models().join("b"), &clock), unfinished(&preview, &clock), cache.models().join("c.old")]
    {
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(left.join("half"), "half").unwrap();
    }
    cache.sweep().await.unwrap();
    assert_eq!(names(&cache).len(), 2, "the running one, and one that a process of an earlier version may be at");
    assert_eq!(std::fs::read_dir(folder.path().join("previews/job")).unwrap().count(), 0);
    clock.jump(2 * ABANDONED, false);
    cache.sweep().await.unwrap();
    assert_eq!(names(&cache).len(), 1);
    assert!(running.path.exists());
}

#[tokio::test]
async fn a_full_disk_costs_what_nobody_uses_before_it_costs_a_download() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1 << 20);
    drop(fetch(&cache, "idle", 10).await);
    let used = fetch(&cache, "used", 10).await;
    let (dir, root) = (cache.models().join("a"), folder.path().to_path_buf());
    let tries = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&tries);
    let fill = move |staging: PathBuf| {
        let full = (seen.fetch_add(1, Ordering::SeqCst) == 0).then(|| faults::fail_nth(&root, 1));
        async move {
            let written = durable::write(&staging.join("file"), "content");
            drop(full);
            written?;
            Ok(true)
        }
    };
    cache.get(&dir, &Patience::Job, wanted(7), fill).await.unwrap().unwrap();
    assert_eq!(names(&cache), ["a", "used"]);
    assert_eq!(tries.load(Ordering::SeqCst), 2);
    drop(used);
}

#[tokio::test]
async fn a_damaged_folder_is_fetched_again_also_while_somebody_uses_it() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1 << 20);
    let used = fetch(&cache, "a", 3).await;
    cache.discard(&used.dir).unwrap();
    assert_eq!(std::fs::read(fetch(&cache, "a", 5).await.dir.join("file")).unwrap().len(), 5);
    drop(used);
    cache.sweep().await.unwrap();
    assert_eq!(names(&cache), ["a"]);
}

#[tokio::test]
async fn what_the_disk_has_no_room_for_is_refused_by_name_and_costs_nobody_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let mut cache = ModelCache::new(folder.path().to_path_buf(), 1 << 20, clock.clone());
    cache.free = |_| 1000;
    let cache = Arc::new(cache);
    let later = || clock.jump(Duration::from_secs(10), false);
    for name in ["oldest", "older", "young"] {
        drop(fetch(&cache, name, 200).await);
        later();
    }
    let used = fetch(&cache, "used", 500).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let want = async |name: &str, bytes: usize| {
        let asked = Arc::clone(&asked);
        let fill = move |staging: PathBuf| {
            asked.fetch_add(1, Ordering::SeqCst);
            async move {
                durable::write(&staging.join("file"), vec![0; bytes])?;
                Ok(true)
            }
        };
        cache.get(&cache.models().join(name), &Patience::Job, wanted(bytes), fill).await
    };
    for _ in 0..2 {
        // With what nobody uses there would be room for 1600 bytes.
        let refused = want("huge", 1700).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unavailable);
        assert!(refused.is_storage_full() && refused.message().contains("no space left for a model"), "{refused}");
        assert_eq!(names(&cache), ["older", "oldest", "used", "young"]);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0, "not a byte of it was fetched");
    // What fits costs no more than it needs: 1300 bytes and a fiftieth, of which 1000 are free.
    want("large", 1300).await.unwrap().unwrap();
    assert_eq!(names(&cache), ["large", "used", "young"]);
    drop(used);
}

#[tokio::test]
async fn a_quota_that_the_disk_does_not_tell_of_costs_nobody_a_folder_either() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), 1 << 20);
    drop(fetch(&cache, "idle", 10).await);
    let root = folder.path().to_path_buf();
    let fill = move |staging: PathBuf| {
        // A part of it is written.
        let full = faults::fail_nth(&root, 2);
        async move {
            let written = durable::write(&staging.join("file"), vec![0; 100]);
            drop(full);
            written?;
            Ok(true)
        }
    };
    let refused = cache.get(&cache.models().join("a"), &Patience::Job, wanted(1000), fill).await.map(drop).unwrap_err();
    assert!(refused.message().contains("no space left for a model"), "{refused}");
    assert_eq!(names(&cache), ["idle"]);
}
