//! Whether a folder can be written, and how much space its file system has left.

use std::path::Path;

use crate::clock::Clock;
use crate::durable;

/// Writes a file in the folder, makes it durable, and removes it. The folder is made when it is missing.
pub(in crate::service) fn write_and_remove(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(format!(".probe-{}", Clock::system().id()));
    let written = durable::write(&path, [0; 4096]);
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

/// Whether there is no space left, on the disk or in a quota: that passes as soon as something is removed, which the
/// service itself may be needed for.
pub(in crate::service) fn is_full(cause: &std::io::Error) -> bool {
    matches!(cause.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// Bytes that the service's user may still write on the folder's file system.
#[cfg(unix)]
#[expect(unsafe_code, reason = "the standard library does not ask a file system for its free space")]
pub(in crate::service) fn free(folder: &Path) -> std::io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends with a NUL, and `found` is as large as what is written into it.
    let found = unsafe {
        if libc::statvfs(path.as_ptr(), found.as_mut_ptr()) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        found.assume_init()
    };
    #[allow(clippy::unnecessary_cast, reason = "the numbers have other widths on other systems")]
    Ok((found.f_bavail as u64).saturating_mul(found.f_frsize as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_and_left_as_it_was() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("new");
        write_and_remove(&folder).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        assert!(free(&folder).unwrap() > 0);
        std::fs::write(parent.path().join("file"), "").unwrap();
        assert!(write_and_remove(&parent.path().join("file/below")).is_err());
    }
}
