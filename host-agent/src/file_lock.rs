//! A lock between processes, on a file.
//!
//! The kernel gives it up when its process dies, however that happens.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::job::{Error, Result};

/// The lock, held as long as this exists.
#[derive(Debug)]
pub(crate) struct FileLock {
    _locked: File,
}

impl FileLock {
    /// Takes the lock on this file, which is created if it is missing.  The folder must exist.
    ///
    /// # Errors
    /// [`Error::Refused`] with the words of `busy` if another process holds it.
    pub(crate) fn take(path: &Path, busy: impl FnOnce() -> String) -> Result<Self> {
        let failed = || Error::io(format!("cannot lock {}", path.display()));
        // Whoever can open the file can lock it, and keep the agent from its work.  The file is never
        // removed: after that, two processes could each hold a lock on a file of this name.
        let mut options = OpenOptions::new();
        options.write(true).create(true).mode(0o600);
        let file = options.open(path).map_err(failed())?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _locked: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Refused(busy())),
            Err(TryLockError::Error(error)) => Err(failed()(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::FileLock;
    use crate::job::Error;

    #[test]
    fn a_file_is_locked_once_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let take = |name: &str| FileLock::take(&folder.path().join(name), || "busy".to_owned());
        let first = take("3").unwrap();
        let other = take("4").unwrap();
        let error = take("3").unwrap_err();
        assert!(
            matches!(&error, Error::Refused(why) if why == "busy"),
            "{error}"
        );
        drop(first);
        drop(take("3").unwrap());
        drop(other);
        let mode = folder
            .path()
            .join("3")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
