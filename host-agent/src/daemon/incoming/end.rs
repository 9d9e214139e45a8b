//! Ends a session before its source does: for an orderly stop of the daemon, or for an operator.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::{Incoming, Inner, recovery};
use crate::job::{Error, Presence, Result};
use crate::session::{Choice, DestinationEvent, DestinationRecord, Standing};

/// How long an operator waits for a call in progress, or for a domain that is still being looked for.
const BUSY: Duration = Duration::from_secs(20);
/// Interval between two checks whether the source has decided, or the domain was found.  There is no event
/// for that.
const LOOK: Duration = Duration::from_millis(20);
/// Pause before a failed discard is tried again.
const AGAIN: Duration = Duration::from_secs(1);

impl Incoming {
    /// Tells threads at work on the session to stop, unless everything has arrived.  Returns whether there is
    /// something to end.  A domain that is still being looked for is left to the next run.
    pub(in crate::daemon) fn stop_receiving(&self) -> bool {
        if self.is_sought() || self.is_over() {
            return false;
        }
        self.give_up("the destination's agent is stopping");
        true
    }

    /// Stops it for an operator.
    pub(in crate::daemon) fn stop_building(&self) {
        if !self.is_sought() {
            self.give_up("an operator at the destination gave it up");
        }
    }

    fn give_up(&self, why: &str) {
        let mut failure = self.failure.lock();
        // Set under the lock, where a thread that fails because of it looks for the reason.  Too late for a
        // complete copy.
        if self.job.control.abort() {
            failure.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Ends the session: an incomplete copy is discarded; a complete or running one waits until the deadline
    /// for the source.
    pub(in crate::daemon) fn stop(self: &Arc<Self>, until: Instant) {
        loop {
            let Some(mut inner) = self.inner.try_lock_until(until) else {
                return;
            };
            self.run(&mut inner, DestinationEvent::Stopped);
            let has_failed = inner.machine.has_lease();
            let is_waiting = match inner.machine.record() {
                // An operator may decide later.
                _ if inner.machine.doubt().is_some() => false,
                None | Some(DestinationRecord::Lost { .. }) => false,
                Some(record) => !record.is_final(),
            };
            drop(inner);
            if !is_waiting || Instant::now() >= until {
                return;
            }
            thread::sleep(if has_failed { AGAIN } else { LOOK });
        }
    }

    /// The session's inner state, if no thread is at work on it.
    ///
    /// # Errors
    /// If one still is.
    pub(super) fn free(&self) -> Result<MutexGuard<'_, Inner>> {
        let until = Instant::now() + BUSY;
        while self.is_sought() {
            if Instant::now() >= until {
                return Err(Error::Refused(recovery::SOUGHT.to_owned()));
            }
            thread::sleep(LOOK);
        }
        let inner = self.inner.try_lock_until(until);
        inner.ok_or_else(|| Error::Refused("the job is busy: see `unmoved status`".to_owned()))
    }

    /// Whether an operator may decide so now.
    pub(in crate::daemon) fn may(&self, choice: Choice) -> Result<bool> {
        let mut inner = self.free()?;
        self.look_in_doubt(&mut inner);
        Ok(inner.machine.may(choice))
    }

    /// In doubt, the possible decisions depend on the copy.
    fn look_in_doubt(&self, inner: &mut Inner) {
        if inner.machine.doubt().is_some()
            && let Ok(destination) = self.destination(inner)
            && let Ok(presence) = destination.presence()
        {
            inner.machine.seen(presence);
        }
    }

    /// The last record (`None`: the journal does not tell), the current state of the copy here, and the
    /// guest's UUID.
    pub(in crate::daemon) fn looked(
        &self,
    ) -> Result<(Option<DestinationRecord>, Presence, String)> {
        let mut inner = self.free()?;
        let Some(request) = inner.machine.request() else {
            // Not even the request is readable, so there is nothing to look for.
            return Ok((None, Presence::Absent, String::new()));
        };
        let uuid = request.needs.uuid.clone();
        let presence = self.destination(&mut inner)?.presence()?;
        let is_sure = inner.machine.doubt().is_none();
        let last = inner.machine.record().filter(|_| is_sure).cloned();
        Ok((last, presence, uuid))
    }

    /// The session's state, the state of its copy, and the guest's ID at the source; `None` if a thread was
    /// at work on it all the time, or its domain is still being looked for.
    pub(in crate::daemon) fn stands(
        &self,
        limit: Duration,
    ) -> Option<(impl Fn(Presence) -> Standing, Option<u32>)> {
        if self.is_sought() {
            return None;
        }
        let inner = self.inner.try_lock_for(limit)?;
        let domid = inner
            .machine
            .request()
            .map(|request| request.needs.source_domid);
        let record = inner.machine.record().cloned();
        let is_in_doubt = inner.machine.doubt().is_some();
        let told = move |copy| match is_in_doubt {
            true => Standing::in_doubt(copy),
            false => Standing::of_destination(record.as_ref(), copy),
        };
        Some((told, domid))
    }
}
