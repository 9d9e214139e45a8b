//! What an agent did to a domain, and so may undo.
//!
//! Others work on domains too.  A guest that `xl save` or `xl migrate` has suspended may run elsewhere by
//! now, and would run twice if it were resumed here.  Log-dirty mode that `xl migrate` has switched on holds
//! its only record of what is left to send.  So only what a marker in xenstore, or this process, attributes
//! to an agent is undone.

use crate::job::{Error, Result};

/// What is known of the domain.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// This process has switched on its log-dirty mode.
    pub(super) is_recorded: bool,
    /// It is marked as an agent's source.
    pub(super) is_source: bool,
    /// It is marked as asked to suspend.
    pub(super) is_asked: bool,
    /// It is suspended.
    pub(super) is_suspended: bool,
}

/// The steps to take, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Undo {
    /// Switch log-dirty mode off, although this process has not switched it on.
    pub(super) log_dirty: bool,
    /// Restore its name.
    pub(super) name: bool,
    /// Resume it.
    pub(super) suspend: bool,
}

impl Found {
    /// The steps that make the domain run.
    ///
    /// # Errors
    /// If it is suspended, and no agent has asked it to.
    pub(super) fn undo(self, name: &str) -> Result<Undo> {
        if self.is_suspended && !self.is_asked {
            return Err(Error::Refused(format!(
                "{name} is suspended, but not by an agent: the tool that did it (such as xl save or xl \
                 migrate) has to resume it"
            )));
        }
        Ok(Undo {
            log_dirty: !self.is_recorded && self.is_source,
            name: self.is_asked,
            suspend: self.is_suspended,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, Undo};

    #[test]
    fn nothing_is_undone_that_others_did() {
        assert_eq!(Found::default().undo("web").unwrap(), Undo::default());
        let suspended = Found {
            is_suspended: true,
            is_recorded: true,
            is_source: true,
            ..Found::default()
        };
        let error = suspended.undo("web").unwrap_err().to_string();
        assert!(error.contains("web is suspended, but not by an agent"));
    }

    #[test]
    fn what_this_run_did_is_undone() {
        let found = Found {
            is_recorded: true,
            is_source: true,
            is_asked: true,
            is_suspended: true,
        };
        let undo = found.undo("web").unwrap();
        assert!(!undo.log_dirty && undo.name && undo.suspend);
    }

    #[test]
    fn what_a_dead_run_did_is_undone() {
        let copied = Found {
            is_source: true,
            ..Found::default()
        };
        let undo = copied.undo("web").unwrap();
        assert!(undo.log_dirty && !undo.name && !undo.suspend);
        let suspended = Found {
            is_asked: true,
            is_suspended: true,
            ..copied
        };
        let undo = suspended.undo("web").unwrap();
        assert!(undo.log_dirty && undo.name && undo.suspend);
    }
}
