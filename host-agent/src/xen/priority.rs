//! Raises the control domain's scheduler weight while it copies a guest.
//!
//! A guest that keeps its processors busy also slows down the agent that copies it: copying takes twice as
//! long, and the guest pays for that.  A higher weight costs the other domains nothing while the control
//! domain is idle, and many hosts set it permanently.  A weight that is high enough already stays.
//!
//! The old weight is stored in a file until it is restored.  A killed daemon leaves the higher weight, which
//! does no harm, and its next run restores the old one.  Only the daemon does this, because a host has only
//! one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::domain::Xen;
use crate::job::{Error, Result};

/// Where the old weight is stored.  A restart of the host clears the file, and the weight with it.
const NOTE: &str = "/run/unmoved/weight";

/// Something with a scheduler weight.
pub(crate) trait Weighed: Send + Sync {
    /// The current weight; `None` if the scheduler has no weights.
    fn weight(&self) -> Result<Option<u16>>;

    /// Sets the weight.
    fn set_weight(&self, weight: u16) -> Result<()>;
}

/// The agent's own domain; the toolstack runs nowhere else.
struct ControlDomain(Xen);

impl Weighed for ControlDomain {
    fn weight(&self) -> Result<Option<u16>> {
        self.0.domain(0).weight()
    }

    fn set_weight(&self, weight: u16) -> Result<()> {
        self.0.domain(0).set_weight(weight)
    }
}

/// Raises the weight, and counts for how many copies.
pub(crate) struct Priority {
    domain: Box<dyn Weighed>,
    /// The weight during a copy; 0 changes nothing.
    weight: u16,
    note: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    turns: usize,
    /// The old weight, if it was changed.
    before: Option<u16>,
}

/// Keeps the weight raised until it is dropped.
pub(crate) struct Turn(Arc<Priority>);

impl Priority {
    /// For this host's control domain.
    pub(crate) fn new(xen: Xen, weight: u16) -> Arc<Self> {
        Self::of(Box::new(ControlDomain(xen)), weight, NOTE.into())
    }

    fn of(domain: Box<dyn Weighed>, weight: u16, note: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            domain,
            weight,
            note,
            state: Mutex::default(),
        })
    }

    /// Raises the weight, unless it is raised already.  Errors are only logged: the copy merely takes longer.
    pub(crate) fn take(self: &Arc<Self>) -> Turn {
        let mut state = self.state.lock();
        state.turns += 1;
        if state.turns == 1 && self.weight != 0 {
            state.before = self
                .raise()
                .inspect_err(|error| {
                    log::warn!("cannot raise the control domain's weight: {error}");
                })
                .unwrap_or_default();
        }
        drop(state);
        Turn(self.clone())
    }

    /// Restores the weight that this run, or an earlier one, has changed.
    pub(crate) fn tidy(&self) {
        let Ok(note) = fs::read_to_string(&self.note) else {
            return;
        };
        match parse(&note) {
            Some((before, raised)) => self.lower(before, raised),
            // The note was cut off while it was written, so the weight was not changed.
            None => self.forget(),
        }
    }

    fn raise(&self) -> Result<Option<u16>> {
        match self.domain.weight()? {
            Some(before) if before < self.weight => {
                let written = write(&self.note, before, self.weight);
                written.map_err(Error::io(self.note.display().to_string()))?;
                self.domain
                    .set_weight(self.weight)
                    .inspect_err(|_| self.forget())?;
                log::debug!(
                    "the control domain's weight is {}, not {before}",
                    self.weight
                );
                Ok(Some(before))
            }
            _ => Ok(None),
        }
    }

    /// Not if somebody else has changed it since.
    fn lower(&self, before: u16, raised: u16) {
        let lowered = self.domain.weight().and_then(|weight| {
            if weight == Some(raised) {
                self.domain.set_weight(before)?;
            }
            Ok(())
        });
        match lowered {
            Ok(()) => self.forget(),
            Err(error) => log::warn!("cannot restore the control domain's weight: {error}"),
        }
    }

    fn forget(&self) {
        if let Err(error) = fs::remove_file(&self.note)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{}: {error}", self.note.display());
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.turns -= 1;
        if state.turns == 0
            && let Some(before) = state.before.take()
        {
            self.0.lower(before, self.0.weight);
        }
    }
}

fn write(note: &Path, before: u16, raised: u16) -> io::Result<()> {
    if let Some(folder) = note.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(note, format!("{before} {raised}\n"))
}

fn parse(note: &str) -> Option<(u16, u16)> {
    let (before, raised) = note.strip_suffix('\n')?.split_once(' ')?;
    Some((before.parse().ok()?, raised.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::{Priority, Weighed};
    use crate::job::{Error, Result};

    /// A domain with this weight gets no other.
    const REFUSING: u16 = 1;

    /// A domain; one without a weight is scheduled without weights.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<Option<u16>>>);

    impl Weighed for Fake {
        fn weight(&self) -> Result<Option<u16>> {
            Ok(*self.0.lock())
        }

        fn set_weight(&self, weight: u16) -> Result<()> {
            let mut own = self.0.lock();
            let own = own.as_mut().filter(|own| **own != REFUSING);
            *own.ok_or_else(|| Error::Xen("it is refused".to_owned()))? = weight;
            Ok(())
        }
    }

    struct Host {
        domain: Fake,
        folder: tempfile::TempDir,
    }

    impl Host {
        fn with(weight: Option<u16>) -> Self {
            let domain = Fake(Arc::new(Mutex::new(weight)));
            let folder = tempfile::tempdir().unwrap();
            Self { domain, folder }
        }

        fn note(&self) -> PathBuf {
            self.folder.path().join("run/weight")
        }

        /// A run of the agent that wants this weight.
        fn agent(&self, weight: u16) -> Arc<Priority> {
            Priority::of(Box::new(self.domain.clone()), weight, self.note())
        }

        fn weight(&self) -> Option<u16> {
            *self.domain.0.lock()
        }
    }

    #[test]
    fn the_weight_is_raised_from_the_first_to_the_last() {
        let host = Host::with(Some(256));
        let agent = host.agent(1024);
        let (first, second) = (agent.take(), agent.take());
        assert_eq!(host.weight(), Some(1024));
        drop(first);
        assert_eq!(host.weight(), Some(1024));
        drop(second);
        assert_eq!(host.weight(), Some(256));
        assert!(!host.note().exists());
    }

    #[test]
    fn one_that_is_high_enough_or_not_to_be_changed_or_not_there_stays() {
        for (weight, wanted) in [(Some(2000), 1024), (Some(256), 0), (None, 1024)] {
            let host = Host::with(weight);
            let agent = host.agent(wanted);
            let turn = agent.take();
            assert_eq!(host.weight(), weight);
            drop(turn);
            assert_eq!(host.weight(), weight);
        }
    }

    #[test]
    fn what_an_operator_sets_meanwhile_stays() {
        let host = Host::with(Some(256));
        let turn = host.agent(1024).take();
        host.domain.set_weight(512).unwrap();
        drop(turn);
        assert_eq!(host.weight(), Some(512));
        assert!(!host.note().exists());
    }

    #[test]
    fn what_a_killed_agent_leaves_the_next_one_sets_back() {
        let host = Host::with(Some(300));
        let killed = host.agent(1024).take();
        std::mem::forget(killed);
        assert_eq!(host.weight(), Some(1024));
        let next = host.agent(2048);
        next.tidy();
        assert_eq!(host.weight(), Some(300));
        assert!(!host.note().exists());
        // Nothing is left to set back.
        host.domain.set_weight(1024).unwrap();
        next.tidy();
        assert_eq!(host.weight(), Some(1024));
    }

    #[test]
    fn what_fails_leaves_no_note() {
        // Xen does not set the weight.
        let host = Host::with(Some(REFUSING));
        drop(host.agent(1024).take());
        assert_eq!(
            (host.weight(), host.note().exists()),
            (Some(REFUSING), false)
        );
        // A folder stands where the note is to be.
        let host = Host::with(Some(256));
        std::fs::create_dir_all(host.note()).unwrap();
        let turn = host.agent(1024).take();
        assert_eq!(host.weight(), Some(256));
        drop(turn);
        assert_eq!(host.weight(), Some(256));
    }

    #[test]
    fn a_torn_note_changes_nothing() {
        for note in ["", "2", "256", "256 ", "256 1024", "256 99999\n", "a b\n"] {
            let host = Host::with(Some(1024));
            std::fs::create_dir_all(host.note().parent().unwrap()).unwrap();
            std::fs::write(host.note(), note).unwrap();
            host.agent(1024).tidy();
            assert_eq!(host.weight(), Some(1024), "{note}");
            assert!(!host.note().exists());
        }
    }
}
