//! A session that is to end before its source says so: by the orderly end of the daemon, or an operator.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::{Incoming, Inner, recovery};
use crate::job::{Error, Presence, Result};
use crate::session::{Choice, DestinationEvent, DestinationRecord, Standing};

/// Longest time that an operator waits for a call that is being answered, or for what is still sought.
const BUSY: Duration = Duration::from_secs(20);
/// How often it is looked whether the source has said its word, or it was found: there is no event for that.
const LOOK: Duration = Duration::from_millis(20);
/// What could not be thrown away is thrown away again after this.
const AGAIN: Duration = Duration::from_secs(1);

impl Incoming {
    /// Whoever is at work on it is to stop, unless all of it is here.  Gives whether there is something to be
    /// ended; what is still sought is left to the next run.
    pub(in crate::daemon) fn stop_receiving(&self) -> bool {
        if self.is_sought() || self.is_over() {
            return false;
        }
        self.give_up("the destination's agent is stopping");
        true
    }

    /// An operator has decided so.
    pub(in crate::daemon) fn stop_building(&self) {
        if !self.is_sought() {
            self.give_up("an operator at the destination gave it up");
        }
    }

    fn give_up(&self, why: &str) {
        let mut failure = self.failure.lock();
        // Under the lock, where whoever fails for it looks for why.  Too late for one that is whole.
        if self.job.control.abort() {
            failure.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Ends it: what is not whole is discarded; what is whole, or runs, gets until then for its source's word.
    pub(in crate::daemon) fn stop(self: &Arc<Self>, until: Instant) {
        loop {
            let Some(mut inner) = self.inner.try_lock_until(until) else {
                return;
            };
            self.run(&mut inner, DestinationEvent::Stopped);
            let has_failed = inner.machine.has_lease();
            let is_waiting = match inner.machine.record() {
                // An operator decides, if ever.
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

    /// Its inner half, when nobody is at work on it.
    ///
    /// # Errors
    /// If somebody still is.
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

    /// Whether an operator may choose this now.
    pub(in crate::daemon) fn may(&self, choice: Choice) -> Result<bool> {
        let mut inner = self.free()?;
        self.look_in_doubt(&mut inner);
        Ok(inner.machine.may(choice))
    }

    /// What may be decided in doubt depends on what there is.
    fn look_in_doubt(&self, inner: &mut Inner) {
        if inner.machine.doubt().is_some()
            && let Ok(destination) = self.destination(inner)
            && let Ok(presence) = destination.presence()
        {
            inner.machine.seen(presence);
        }
    }

    /// The last record (`None`: the journal does not say which it is), the copy here as it is found now, and the
    /// guest's UUID.
    pub(in crate::daemon) fn looked(
        &self,
    ) -> Result<(Option<DestinationRecord>, Presence, String)> {
        let mut inner = self.free()?;
        let Some(request) = inner.machine.request() else {
            // Not even that can be read of the journal: nothing is known that could be looked for.
            return Ok((None, Presence::Absent, String::new()));
        };
        let uuid = request.needs.uuid.clone();
        let presence = self.destination(&mut inner)?.presence()?;
        let is_sure = inner.machine.doubt().is_none();
        let last = inner.machine.record().filter(|_| is_sure).cloned();
        Ok((last, presence, uuid))
    }

    /// What tells how it stands, from how its copy is found, and the guest's number at the source; `None` if
    /// somebody is at work on it for that long, or it is still sought.
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
