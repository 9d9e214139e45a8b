//! One daemon at a time works with a state folder.
//!
//! What another has written down there is what it is doing just now: a second daemon would take it for what
//! a dead one has left, and discard a guest that is being received.  The lock is on a file, so the kernel
//! gives it up when the daemon dies, however that happens.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::job::{Error, Result};

/// The file's name.
const NAME: &str = "lock";

/// The right to work with a state folder, as long as this exists.
#[derive(Debug)]
pub(super) struct Alone {
    _locked: File,
}

impl Alone {
    /// Takes it.
    ///
    /// # Errors
    /// [`Error::Refused`] if another daemon has it.
    pub(super) fn with(folder: &Path) -> Result<Self> {
        let path = folder.join(NAME);
        let failed = || Error::io(format!("cannot lock {}", path.display()));
        // Who can open it can lock it, and keep the daemon from its work.  It stays when the daemon ends:
        // one that is taken away could be locked by two.
        let mut options = OpenOptions::new();
        options.write(true).create(true).mode(0o600);
        let file = options.open(&path).map_err(failed())?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _locked: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Refused(format!(
                "another unmovedd works with the state folder {}: end that one first, or give this one a \
                 folder of its own (`state` in the configuration)",
                folder.display()
            ))),
            Err(TryLockError::Error(error)) => Err(failed()(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Alone;
    use crate::job::Error;

    #[test]
    fn a_folder_has_one_daemon_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = Alone::with(folder.path()).unwrap();
        let error = Alone::with(folder.path()).unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error}");
        let named = folder.path().display().to_string();
        assert!(error.to_string().contains(&named), "{error}");
        drop(first);
        drop(Alone::with(folder.path()).unwrap());
    }
}
