//! One process of the agent at a time is at work on a domain.
//!
//! The daemon's own claims end at its process; `unmoved direct` is another one.  Two of them would take
//! each other's records of what the guest has written, and pages would be lost.  The lock is on a file, so
//! the kernel gives it up when its process dies, however that happens.

use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::job::{Error, Result};

/// Where the files are: gone after a restart of the host, as the domains are.
pub(super) const FOLDER: &str = "/run/unmoved/domains";

/// The right to work on a domain, as long as this exists.
#[derive(Debug)]
pub(super) struct Hold {
    _locked: File,
}

impl Hold {
    /// Takes it; `folder` is [`FOLDER`] outside of tests.
    ///
    /// # Errors
    /// [`Error::Refused`] if another process has it.
    pub(super) fn take(folder: &Path, domid: u16) -> Result<Self> {
        let path = folder.join(domid.to_string());
        let failed = || Error::io(format!("cannot lock {}", path.display()));
        // Who can open a file can lock it, and keep the agent from its work.
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(folder).map_err(failed())?;
        // The file stays: one that is taken away could be locked by two.
        let file = File::create(&path).map_err(failed())?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _locked: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Refused(format!(
                "another process of the agent is at work on domain {domid}"
            ))),
            Err(TryLockError::Error(error)) => Err(failed()(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Hold;
    use crate::job::Error;

    #[test]
    fn a_domain_is_held_once_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = Hold::take(folder.path(), 3).unwrap();
        let other = Hold::take(folder.path(), 4).unwrap();
        let error = Hold::take(folder.path(), 3).unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error}");
        drop(first);
        drop(Hold::take(folder.path(), 3).unwrap());
        drop(other);
    }
}
