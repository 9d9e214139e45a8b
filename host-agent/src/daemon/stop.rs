//! An orderly end: what is under way is finished or undone, for nobody knows when the daemon runs again.
//!
//! A daemon may be killed at any moment, and the next run takes up what it finds.  But until then a guest that
//! stands still goes on standing still: over an upgrade a moment, after `systemctl stop` for as long as
//! anybody likes.  So who stops the daemon waits, but not for ever:
//!
//! | what is under way | is |
//! |---|---|
//! | nothing yet: a look at a guest, a job that is to begin | aborted, refused |
//! | a guest that leaves, not handed over | aborted: it goes on here, and the destination is told |
//! | a guest that leaves, handed over | waited for, unless its destination does not answer |
//! | a guest that comes, not whole here | discarded, and the source is told: it goes on there |
//! | a guest that comes, whole here | waited for: its source is about to hand it over, or to say that it has failed |
//! | a job that is HELD, as one whose journal is damaged | left as it is |
//! | a save or restore | aborted, or waited for if all is copied |
//!
//! A copy that is whole is kept, whatever comes: it may be the last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::incoming::Incoming;
use super::job::{Direction, Job};
use super::{Daemon, spawn};
use crate::job::{Control, Error, Phase, Result};

/// Longest time that an orderly end takes: less than systemd waits for it (`TimeoutStopSec` in the unit).
pub const LONGEST: Duration = Duration::from_secs(80);
/// A destination that does not answer is not waited for longer than this; the guest runs by then, or is not
/// this host's to run.
const ENOUGH: Duration = Duration::from_secs(10);
/// How often it is looked: there is no event for all jobs.
const LOOK: Duration = Duration::from_millis(20);

/// Whether the daemon is about to end.
#[derive(Debug, Default)]
pub(super) struct Stop {
    is_asked: AtomicBool,
    /// Who only looks at a guest: that is no job.
    looking: Mutex<Vec<Weak<Control>>>,
}

impl Stop {
    /// If it is.
    pub(super) fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::SeqCst)
    }
}

impl Daemon {
    /// Ends what is under way, or undoes it, and begins nothing new from here on.  Comes back when no guest
    /// waits for this daemon any more, or after `limit`.
    pub fn stop(self: &Arc<Self>, limit: Duration) {
        let until = Instant::now() + limit;
        // First: what is begun from here on is refused, and what was begun before is found below.
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
            // Guests go on; only their destinations have still to hear of it.
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

    /// Each in a thread of its own, for a toolstack may take its time.
    fn stop_incoming(self: &Arc<Self>, until: Instant) -> Vec<thread::JoinHandle<()>> {
        // Under its lock, under which new ones are refused from now on.
        let all: Vec<Arc<Incoming>> = self.incoming.lock().values().cloned().collect();
        let under_way = all.into_iter().filter(|session| session.stop_receiving());
        let stopping = under_way.filter_map(|session| {
            let stopping = spawn("stop", move || session.stop(until));
            stopping.inspect_err(|error| log::error!("{error}")).ok()
        });
        stopping.collect()
    }

    /// # Errors
    /// [`Error::Refused`] if the daemon is about to end.
    pub(super) fn goes_on(&self) -> Result<()> {
        if self.stop.is_asked() {
            return Err(Error::Refused(format!(
                "the agent of {} is stopping: it starts nothing new",
                self.config.name
            )));
        }
        Ok(())
    }

    /// A new job, if the daemon is not about to end.
    ///
    /// # Errors
    /// As [`Daemon::goes_on`].
    pub(super) fn add_new(&self, job: &Arc<Job>) -> Result<()> {
        // First: who stops the daemon looks for jobs after he has said so.
        self.add(job);
        self.goes_on().inspect_err(|error| {
            job.end(Err(error.to_string()));
        })
    }

    /// Somebody looks at a guest, as long as the control is held; the end of the daemon aborts it.
    ///
    /// # Errors
    /// As [`Daemon::goes_on`].
    pub(super) fn look(&self, control: &Arc<Control>) -> Result<()> {
        let mut looking = self.stop.looking.lock();
        looking.retain(|other| other.strong_count() > 0);
        looking.push(Arc::downgrade(control));
        drop(looking);
        self.goes_on()
    }
}

/// Whether nothing is gained by waiting for it.
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
