//! Cache folders of the data folder: models that were fetched from object storage, checkpoints that are asked, and bases
//! that were quantised. A folder appears when it is whole. Many who want the same share one download, which goes on when
//! they have gone away. All folders together keep within a bound of bytes: what was not used for longest goes first, and
//! what somebody holds stays. What is left of interrupted downloads is swept.

mod room;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::durable::{self, Hold};
use crate::error::{Error, Kind, Result};

/// Downloads at a time.
const AT_ONCE: usize = 4;
/// Age after which an unfinished folder of an earlier version, which held no lock, belongs to nobody.
const ABANDONED: Duration = Duration::from_secs(60 * 60);
/// What the names of folders that are not whole hold, and no other name does.
const UNFINISHED: char = '.';

/// How long one who wants a folder waits for its download.
pub(crate) enum Patience {
    /// As long as a request can; then it is told to come again, and the download goes on.
    Request,
    /// Until it has ended.
    Job,
}

/// Clients give up after a minute.
const REQUEST: Duration = Duration::from_secs(25);

/// A folder that stays where it is while this is held.
#[derive(Debug, Clone)]
pub struct Cached {
    /// The folder.
    pub dir: PathBuf,
    /// Keeps it there.
    pub in_use: Hold,
}

/// Download that room is made for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Its name, for a message.
    pub(crate) what: String,
    /// Size of all its files together.
    pub(crate) bytes: u64,
}

/// What became of a download; `None` when there was nothing to download.
type Landed = Arc<Result<Option<Cached>>>;

/// The cache folders of one data folder.
pub struct ModelCache {
    root: PathBuf,
    /// Bytes of everything together.
    bound: u64,
    clock: Clock,
    flights: Mutex<HashMap<PathBuf, watch::Receiver<Option<Landed>>>>,
    at_once: Arc<Semaphore>,
    /// Bytes that are free on the disk of a folder.
    free: fn(&Path) -> u64,
}

impl ModelCache {
    /// The cache below `root` with a bound of bytes.
    pub fn new(root: PathBuf, bound: u64, clock: Clock) -> Self {
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        Self { root, bound, clock, flights: Mutex::default(), at_once, free: room::free }
    }

    /// Where fetched models lie.
    pub(crate) fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// The folder `dir` if it is there.
    ///
    /// # Errors
    /// When the system cannot lock it.
    pub(crate) fn hold(&self, dir: &Path) -> Result<Option<Cached>> {
        let Some(in_use) = durable::hold(dir)? else { return Ok(None) };
        let now = UNIX_EPOCH + Duration::from_millis(self.clock.now().unsigned_abs());
        durable::touch(dir, now);
        Ok(Some(Cached { dir: dir.to_path_buf(), in_use }))
    }

    /// The folder `dir`, which `fill` makes when it is not there; it says `false` when there is nothing to be had. Only
    /// one fills at a time, and the others wait for that one. `wanted` is asked before, so that what the disk has no room
    /// for costs nobody anything.
    ///
    /// # Errors
    /// Those of `wanted` and `fill`; `ModelNotReady` when a request has waited long enough; `Unavailable` when the disk
    /// has no room for it.
    pub(crate) async fn get<W, F, Filled>(
        self: &Arc<Self>,
        dir: &Path,
        patience: &Patience,
        wanted: W,
        fill: F,
    ) -> Result<Option<Cached>>
    where
        W: Future<Output = Result<Wanted>> + Send + 'static,
        F: Fn(PathBuf) -> Filled + Send + Sync + 'static,
        Filled: Future<Output = Result<bool>> + Send,
    {
        if let Some(held) = self.hold(dir)? {
            return Ok(Some(held));
        }
        let mut flight = self.join(dir, wanted, fill);
        let landed = async {
            match flight.wait_for(Option::is_some).await {
                Ok(landed) => landed.clone(),
                Err(_) => None,
            }
        };
        let landed = match patience {
            Patience::Job => landed.await,
            Patience::Request => tokio::time::timeout(REQUEST, landed).await.map_err(|_| {
                Error::new(Kind::ModelNotReady, "The model's files are being fetched. Try again in a moment")
            })?,
        };
        match landed.as_deref() {
            Some(Ok(cached)) => Ok(cached.clone()),
            Some(Err(error)) => Err(error.repeated()),
            None => Err(Error::internal(anyhow::anyhow!("the download of {} ended without a word", dir.display()))),
        }
    }

    /// The download of `dir` that is under way, or a new one.
    fn join<W, F, Filled>(self: &Arc<Self>, dir: &Path, wanted: W, fill: F) -> watch::Receiver<Option<Landed>>
    where
        W: Future<Output = Result<Wanted>> + Send + 'static,
        F: Fn(PathBuf) -> Filled + Send + Sync + 'static,
        Filled: Future<Output = Result<bool>> + Send,
    {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(dir) {
            return flight.clone();
        }
        let (land, flight) = watch::channel(None);
        flights.insert(dir.to_path_buf(), flight.clone());
        let (cache, dir) = (Arc::clone(self), dir.to_path_buf());
        // A task of its own: it outlives the request that began it.
        tokio::spawn(async move {
            // Also when the download panics.
            let over = Over { cache: &cache, dir: &dir };
            let landed = cache.download(&dir, wanted, fill).await;
            drop(over);
            // Nobody may be left who waits.
            let _ = land.send(Some(Arc::new(landed)));
        });
        flight
    }

    async fn download<W, F, Filled>(self: &Arc<Self>, dir: &Path, wanted: W, fill: F) -> Result<Option<Cached>>
    where
        W: Future<Output = Result<Wanted>> + Send,
        F: Fn(PathBuf) -> Filled + Send + Sync,
        Filled: Future<Output = Result<bool>> + Send,
    {
        let _turn = self.at_once.acquire().await;
        // Another flight, or another process, may have been faster.
        if let Some(held) = self.hold(dir)? {
            return Ok(Some(held));
        }
        let wanted = wanted.await?;
        self.make_room(&wanted, (self.free)(&self.root)).await?;
        let mut fitted = 0;
        let made = match self.make(dir, &fill, &mut fitted).await {
            Err(error) if error.is_storage_full() => {
                // Less was free than the disk said: somebody else writes, or this user has a quota.
                warn!("no space for more than {fitted} bytes of {}", wanted.what);
                self.make_room(&wanted, fitted).await?;
                self.make(dir, &fill, &mut fitted).await
            }
            made => made,
        };
        if matches!(made, Ok(Some(_))) {
            self.evict(self.bound).await?;
        }
        made
    }

    /// Fills a folder and puts it in its place; where the disk is full, `fitted` says how much of it there was room for.
    async fn make<F, Filled>(&self, dir: &Path, fill: &F, fitted: &mut u64) -> Result<Option<Cached>>
    where
        F: Fn(PathBuf) -> Filled + Send + Sync,
        Filled: Future<Output = Result<bool>> + Send,
    {
        let staging = Staging::create(dir, &self.clock)?;
        let filled = fill(staging.path.clone()).await;
        if filled.as_ref().is_err_and(Error::is_storage_full) {
            *fitted = bytes_of(&staging.path);
        }
        if !filled? {
            return Ok(None);
        }
        match durable::rename(&staging.path, dir) {
            Ok(()) => {
                durable::touch(dir, UNIX_EPOCH + Duration::from_millis(self.clock.now().unsigned_abs()));
                // The lock goes with the folder.
                Ok(Some(Cached { dir: dir.to_path_buf(), in_use: staging.lock.clone() }))
            }
            Err(cause) => match self.hold(dir)? {
                Some(faster) => Ok(Some(faster)),
                None => Err(Error::from(cause).at(format!("moving {} into place", staging.path.display()))),
            },
        }
    }

    /// Removes a damaged folder from its place, also when somebody uses it.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub(crate) fn discard(&self, dir: &Path) -> Result<()> {
        warn!("{} is damaged and is fetched again", dir.display());
        let aside = unfinished(dir, &self.clock);
        match durable::rename(dir, &aside) {
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            moved => moved?,
        }
        // Whoever uses it has opened its files, as a rule; else the sweep removes it later.
        durable::remove_idle(&aside)?;
        Ok(())
    }

    /// Removes a folder that is not wanted any more, unless somebody uses it.
    pub(crate) fn remove(&self, dir: &Path) -> bool {
        match durable::remove_idle(dir) {
            Ok(gone) => gone,
            Err(cause) => {
                warn!("{} stays in the cache: {cause}", dir.display());
                false
            }
        }
    }

    /// Keeps within the bound, and removes what is left of interrupted downloads.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub async fn sweep(&self) -> Result<()> {
        let (root, now) = (self.root.clone(), UNIX_EPOCH + Duration::from_millis(self.clock.now().unsigned_abs()));
        let sweep = move || {
            for folder in folders(&root)? {
                for entry in entries(&folder)?.into_iter().filter(|entry| !entry.whole) {
                    let locked = entry.name.starts_with(UNFINISHED);
                    let age = now.duration_since(entry.used).unwrap_or_default();
                    if (locked || age >= ABANDONED) && durable::remove_idle(&entry.path)? {
                        info!("removed what was left of {}", entry.path.display());
                    }
                }
            }
            Ok::<_, Error>(())
        };
        tokio::task::spawn_blocking(sweep).await.map_err(Error::internal)??;
        self.evict(self.bound).await
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<PathBuf, watch::Receiver<Option<Landed>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ModelCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelCache").field("root", &self.root).field("bound", &self.bound).finish_non_exhaustive()
    }
}

/// Takes a download off the list when it is over.
struct Over<'a> {
    cache: &'a ModelCache,
    dir: &'a Path,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.cache.flights().remove(self.dir);
    }
}

/// A folder that is being filled. What is left of it goes away with it.
struct Staging {
    path: PathBuf,
    /// Tells the sweep, of any process, that somebody is at work.
    lock: Hold,
}

impl Staging {
    fn create(dir: &Path, clock: &Clock) -> Result<Self> {
        let path = unfinished(dir, clock);
        std::fs::create_dir_all(&path)?;
        let lock = durable::hold(&path)?;
        let lock = lock.ok_or_else(|| Error::unavailable(anyhow::anyhow!("{} was swept away", path.display())))?;
        Ok(Self { path, lock })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // It was moved into place, as a rule.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A name beside `dir` that no whole folder has.
fn unfinished(dir: &Path, clock: &Clock) -> PathBuf {
    dir.with_file_name(format!("{UNFINISHED}{}.unfinished", clock.id()))
}

/// The folders whose entries are kept or removed as a whole.
fn folders(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut folders = vec![root.join("models"), root.join("quantized")];
    // One for each job.
    folders.extend(entries(&root.join("previews"))?.into_iter().map(|job| job.path));
    Ok(folders)
}

struct Entry {
    path: PathBuf,
    name: String,
    whole: bool,
    bytes: u64,
    used: std::time::SystemTime,
}

/// What lies directly in a folder; nothing when there is none.
fn entries(folder: &Path) -> std::io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    let Ok(listed) = std::fs::read_dir(folder) else { return Ok(found) };
    for entry in listed {
        let entry = entry?;
        // Somebody may remove it at this moment.
        let Ok(facts) = entry.metadata() else { continue };
        if facts.is_dir() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let (path, used) = (entry.path(), facts.modified().unwrap_or(UNIX_EPOCH));
            found.push(Entry { whole: !name.contains(UNFINISHED), bytes: bytes_of(&path), name, path, used });
        }
    }
    Ok(found)
}

/// Bytes of all files below a folder, as far as they can be read.
fn bytes_of(folder: &Path) -> u64 {
    let Ok(listed) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(facts) if facts.is_dir() => bytes_of(&entry.path()),
        Ok(facts) => facts.len(),
        Err(_) => 0,
    };
    listed.filter_map(std::result::Result::ok).map(size).sum()
}

#[cfg(test)]
mod tests;
