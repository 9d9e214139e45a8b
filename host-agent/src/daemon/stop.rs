//! An orderly stop: finishes or undoes what is in progress, because nobody knows when the daemon runs again.
//!
//! A daemon may be killed at any moment, and the next run recovers its jobs.  But a suspended guest stays
//! suspended until then: for a moment during an upgrade, and without limit after `systemctl stop`.  So a stop
//! waits, but not for ever:
//!
//! | in progress | is |
//! |---|---|
//! | nothing yet: a look at a guest, a job about to begin | aborted, refused |
//! | a departing guest, not handed over | aborted: it resumes here, and the destination is told |
//! | a departing guest, handed over | waited for, unless its destination does not answer |
//! | an arriving guest, incomplete | discarded, and the source is told: it resumes there |
//! | an arriving guest, complete | waited for: its source is about to hand it over, or to report a failure |
//! | a HELD job, such as one with a damaged journal | left as it is |
//! | a save or restore | aborted, or waited for if everything is copied |
//!
//! A complete copy is always kept, because it may be the last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::incoming::Incoming;
use super::job::{Direction, Job};
use super::{Daemon, spawn};
use crate::job::{Control, Error, Phase, Result};

/// Longest time for an orderly stop: less than systemd waits for it (`TimeoutStopSec` in the unit).
pub const LONGEST: Duration = Duration::from_secs(80);
/// Longest wait for a destination that does not answer.  By then the guest runs, or does not belong to this
/// host.
const ENOUGH: Duration = Duration::from_secs(10);
/// Interval between two checks, because there is no event for all jobs.
const LOOK: Duration = Duration::from_millis(20);

/// Whether the daemon is stopping.
#[derive(Debug, Default)]
pub(super) struct Stop {
    is_asked: AtomicBool,
    /// Controls of those who only look at a guest, which is not a job.
    looking: Mutex<Vec<Weak<Control>>>,
}

impl Stop {
    /// Whether it is stopping.
    pub(super) fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::SeqCst)
    }
}

impl Daemon {
    /// Finishes or undoes what is in progress, and starts nothing new.  Returns when no guest depends on this
    /// daemon any more, or after `limit`.
    pub fn stop(self: &Arc<Self>, limit: Duration) {
        let until = Instant::now() + limit;
        // First: what starts after this is refused, and what started before is found below.
        self.stop.is_asked.store(true, Ordering::SeqCst);
        self.stop.looking.lock().iter().for_each(|control| {
            if let Some(control) = control.upgrade() {
                control.abort();
            }
        });
        let mut jobs = self.jobs();
        jobs.retain(|job| job.direction != Direction::Incoming && job.result().is_none());
        for job in &jobs {
            job.control.abort();
        }
        let coming = self.stop_incoming(until);
        let mut let_go = None;
        let is_looking = || {
            let mut looking = self.stop.looking.lock();
            looking.retain(|control| control.strong_count() > 0);
            !looking.is_empty()
        };
        while Instant::now() < until {
            jobs.retain(|job| !is_settled(job));
            let waits = jobs.iter().any(|job| job.has_guest());
            let since = *let_go.get_or_insert_with(Instant::now);
            if waits {
                let_go = None;
            }
            // The guests run; only their destinations have not been told.
            let is_enough = jobs.is_empty() || (!waits && since.elapsed() > ENOUGH);
            if is_enough && !is_looking() && coming.iter().all(thread::JoinHandle::is_finished) {
                break;
            }
            thread::sleep(LOOK);
        }
        for job in jobs.iter().filter(|job| !is_settled(job)) {
            log::warn!("job {} stays as it is: {:?}", job.id, job.control.phase());
        }
    }

    /// Each in a thread of its own, because a toolstack may be slow.
    fn stop_incoming(self: &Arc<Self>, until: Instant) -> Vec<thread::JoinHandle<()>> {
        // Under the lock under which new sessions are refused from now on.
        let all: Vec<Arc<Incoming>> = self.incoming.lock().values().cloned().collect();
        let under_way = all.into_iter().filter(|session| session.stop_receiving());
        let stopping = under_way.filter_map(|session| {
            let stopping = spawn("stop", move || session.stop(until));
            stopping.inspect_err(|error| log::error!("{error}")).ok()
        });
        stopping.collect()
    }

    /// Lets nothing new begin once the daemon stops.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is stopping.
    pub(super) fn refuse_if_stopping(&self) -> Result<()> {
        if self.stop.is_asked() {
            return Err(Error::Refused(format!(
                "the agent of {} is stopping: it starts nothing new",
                self.config.name
            )));
        }
        Ok(())
    }

    /// Adds a new job, unless the daemon is stopping.
    ///
    /// # Errors
    /// As [`Daemon::refuse_if_stopping`].
    pub(super) fn add_new(&self, job: &Arc<Job>) -> Result<()> {
        // First: a stop looks for jobs after it has set the flag.
        self.add(job);
        self.refuse_if_stopping().inspect_err(|error| {
            job.end(Err(error.to_string()));
        })
    }

    /// Registers a look at a guest, as long as the control exists; a stop aborts it.
    ///
    /// # Errors
    /// As [`Daemon::refuse_if_stopping`].
    pub(super) fn register_look(&self, control: &Arc<Control>) -> Result<()> {
        let mut looking = self.stop.looking.lock();
        looking.retain(|other| other.strong_count() > 0);
        looking.push(Arc::downgrade(control));
        drop(looking);
        self.refuse_if_stopping()
    }
}

/// Whether waiting for the job is pointless.
fn is_settled(job: &Job) -> bool {
    let is_the_destinations = job.control.phase() == Phase::HandedOver;
    job.result().is_some()
        || job.status(u64::MAX).is_held
        || (is_the_destinations && job.hangs().is_some())
}

#[cfg(test)]
mod tests {
    use super::LONGEST;

    #[test]
    fn systemd_waits_longer_than_an_orderly_end_takes() {
        let unit = include_str!("../../systemd/unmovedd.service");
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix("TimeoutStopSec="));
        let seconds: u64 = line.expect("it is there").parse().expect("seconds");
        assert!(seconds > LONGEST.as_secs());
    }
}
