//! Durable files: the one way in which this service writes a file. What is written is flushed and synced before a write
//! counts as done, the error of the last write included, so a file that stands under its final name is whole. Tests make
//! every single step fail, as a full disk does.

pub(crate) mod disk;
#[cfg(test)]
pub(crate) mod faults;
mod hold;

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

pub use hold::{Hold, Idle, claim, hold, remove_idle, touch};

/// Bytes gathered before they go to the system.
const BUFFER: usize = 1 << 18;

/// A step of writing a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A file is made, or opened to be appended to.
    Create,
    /// Bytes go to the system.
    Write,
    /// A file is brought to the disk.
    Sync,
    /// A file or folder gets its final name.
    Rename,
    /// The names in a folder are brought to the disk.
    SyncFolder,
}

/// A file as it lies on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// Bytes.
    pub size: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
}

/// A file that is being written, with a buffer. Only [`Writer::finish`] makes it whole.
#[derive(Debug)]
pub struct Writer {
    file: BufWriter<Raw>,
}

impl Writer {
    /// A new file at `path`, in the place of what was there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        pass(Step::Create, path)?;
        Ok(Self::of(path, File::create(path)?))
    }

    /// A new file at `path`, where nothing may be, which its owner alone can read.
    ///
    /// # Errors
    /// When something is there, or it cannot be made.
    pub fn create_private(path: &Path) -> io::Result<Self> {
        pass(Step::Create, path)?;
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Ok(Self::of(path, options.open(path)?))
    }

    fn of(path: &Path, file: File) -> Self {
        Self { file: BufWriter::with_capacity(BUFFER, Raw { path: path.to_path_buf(), file }) }
    }

    /// Brings what was written so far to the disk.
    ///
    /// # Errors
    /// Of any write that was still under way.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let raw = self.file.get_ref();
        pass(Step::Sync, &raw.path)?;
        raw.file.sync_all()
    }

    /// Brings everything to the disk.
    ///
    /// # Errors
    /// Of any write that was still under way.
    pub fn finish(self) -> io::Result<()> {
        let raw = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        pass(Step::Sync, &raw.path)?;
        raw.file.sync_all()
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A file that grows by whole lines while others read it. A line that was appended is with the system and not yet on
/// the disk: a crash of the machine may take it away again.
#[derive(Debug)]
pub struct Appender(Raw);

impl Appender {
    /// A file at `path` that holds `beginning` and nothing else.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, beginning: &[u8]) -> io::Result<Self> {
        write(path, beginning)?;
        pass(Step::Create, path)?;
        let file = File::options().append(true).open(path)?;
        Ok(Self(Raw { path: path.to_path_buf(), file }))
    }

    /// Appends `line` in one write.
    ///
    /// # Errors
    /// When not all of it could be written.
    pub fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.0.write_all(line)
    }
}

/// A file of the system.
#[derive(Debug)]
struct Raw {
    path: PathBuf,
    file: File,
}

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(full) = pass(Step::Write, &self.path) {
            // A disk that fills takes the beginning of what it is given.
            self.file.write_all(bytes.get(..bytes.len() / 2).unwrap_or_default())?;
            return Err(full);
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a whole file in its place: for folders that nobody reads before they are complete.
///
/// # Errors
/// When it cannot be written; what is there then is no file to use.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = Writer::create(path)?;
    file.write_all(bytes.as_ref())?;
    file.finish()
}

/// Writes a whole file beside its place and moves it there: a reader finds the old one or the new one.
///
/// # Errors
/// When it cannot be written; then the old one is still there.
pub fn replace(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A long name keeps room for the rest.
    let short: String = name.chars().take(100).collect();
    let beside = path.with_file_name(format!(".{short}.{}.unfinished", std::process::id()));
    let written = write(&beside, bytes).and_then(|()| rename(&beside, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Copies a file. The copy has the rights of a new file: a read-only original gives no read-only copy.
///
/// # Errors
/// When one cannot be read or the other not written.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut original = File::open(from)?;
    let mut file = Writer::create(to)?;
    io::copy(&mut original, &mut file)?;
    file.finish()
}

/// Gives a file or folder its final name, on the disk too.
///
/// # Errors
/// When it cannot be moved.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    pass(Step::Rename, to)?;
    fs::rename(from, to)?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
    sync_folder(folder.unwrap_or(Path::new(".")))
}

/// Brings the names in a folder to the disk.
///
/// # Errors
/// When the system cannot.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    pass(Step::SyncFolder, folder)?;
    File::open(folder)?.sync_all()
}

/// Size and SHA-256 of a file, read back from where it lies.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let (mut hasher, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Digest { size, sha256: hex::encode(hasher.finalize()) }),
            Ok(read) => {
                size += read as u64;
                hasher.update(buffer.get(..read).unwrap_or_default());
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
}

/// Where a test makes a step fail; nothing otherwise.
fn pass(step: Step, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    return faults::pass(step, path);
    #[cfg(not(test))]
    {
        let _ = (step, path);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_the_last_write_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut file = Writer::create(&path).unwrap();
        // It fits into the buffer, so that nothing has reached the disk yet.
        file.write_all(b"a short line").unwrap();
        let faults = faults::fail_nth(folder.path(), 1);
        assert_eq!(file.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(faults.fired());
    }

    #[test]
    fn a_replaced_file_is_the_old_one_or_the_new_one_at_every_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, "old").unwrap();
        let steps = faults::at_every_step(
            folder.path(),
            |_| replace(&path, "new"),
            |_, replaced| {
                let expected: &[&str] = if replaced.is_ok() { &["new"] } else { &["old", "new"] };
                let found = fs::read_to_string(&path).unwrap();
                assert!(expected.contains(&found.as_str()), "{found:?} after {replaced:?}");
                assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing stays beside it");
            },
        );
        assert_eq!(steps, 5, "create, write, sync, rename, and sync of the folder");
    }

    #[test]
    fn a_digest_is_of_what_lies_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(&path).unwrap(), Digest { size: 3, sha256: abc.into() });
        fs::write(&path, "ab").unwrap();
        assert_ne!(digest(&path).unwrap().sha256, abc);
    }
}
