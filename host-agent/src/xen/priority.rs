//! The control domain before the guests, as long as it copies one of them.
//!
//! A guest that keeps its processors busy takes them from the agent that copies it, too: the copying takes
//! twice as long, and with it all that a guest pays for being copied.  So the control domain's weight with
//! Xen's scheduler is raised meanwhile.  That takes nothing from anybody while nothing is to be done, and
//! is what many hosts have always; a weight that is high enough already stays.
//!
//! The weight of before is written down until it is set again: a daemon that is killed leaves the higher
//! one, which does no harm, and its next run sets it back.  Only the daemon does this: there is one of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::domain::Xen;
use crate::job::{Error, Result};

/// Where the weight of before is written down; gone after the host's next start, as the weight is.
const NOTE: &str = "/run/unmoved/weight";

/// What has a weight.
pub(crate) trait Weighed: Send + Sync {
    /// As it is; nothing if there are no weights.
    fn weight(&self) -> Result<Option<u16>>;

    /// Changes it.
    fn set_weight(&self, weight: u16) -> Result<()>;
}

/// The domain that the agent runs in; the toolstack runs nowhere else.
struct ControlDomain(Xen);

impl Weighed for ControlDomain {
    fn weight(&self) -> Result<Option<u16>> {
        self.0.domain(0).weight()
    }

    fn set_weight(&self, weight: u16) -> Result<()> {
        self.0.domain(0).set_weight(weight)
    }
}

/// Who raises the weight, and for how many.
pub(crate) struct Priority {
    domain: Box<dyn Weighed>,
    /// While something is copied; 0 if nothing is to be changed.
    weight: u16,
    note: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    turns: usize,
    /// The weight of before, if it was changed.
    before: Option<u16>,
}

/// As long as it exists, the control domain has its priority.
pub(crate) struct Turn(Arc<Priority>);

impl Priority {
    /// Of this host's control domain.
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

    /// Raises the weight, if nobody has.  What goes wrong is only logged: it merely takes longer then.
    pub(crate) fn take(self: &Arc<Self>) -> Turn {
        let mut state = self.state.lock();
        state.turns += 1;
        if state.turns == 1 && self.weight != 0 {
            state.before = self
                .raise()
                .inspect_err(|error| {
                    log::warn!("cannot raise the control domain's weight: {error}")
                })
                .unwrap_or_default();
        }
        drop(state);
        Turn(self.clone())
    }

    /// Sets the weight back that this run of the agent, which ends, or one before it has left.
    pub(crate) fn tidy(&self) {
        let Ok(note) = fs::read_to_string(&self.note) else {
            return;
        };
        match parse(&note) {
            Some((before, raised)) => self.lower(before, raised),
            // It was torn when it was written, so nothing was changed.
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
