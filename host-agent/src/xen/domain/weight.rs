//! A domain's weight with the host's scheduler.

use zerocopy::FromZeros;

use super::Domain;
use crate::job::{Error, Result};
use crate::xen::abi::{SchedulerOp, domctl, scheduler};

impl Domain<'_> {
    /// Its share of the processors when others want them too, relative to theirs (256 unless somebody has
    /// changed it), for each of its vCPUs with credit2; nothing if the scheduler has no weights.
    ///
    /// # Errors
    /// If Xen does not tell.
    pub(crate) fn weight(&self) -> Result<Option<u16>> {
        let info = self.scheduling()?;
        Ok(info.map(|info| info.weight))
    }

    /// Sets it; its cap stays.
    ///
    /// # Errors
    /// If Xen does not, or its scheduler has no weights.
    pub(crate) fn set_weight(&self, weight: u16) -> Result<()> {
        let without = || Error::Xen("Xen's scheduler has no weights".to_owned());
        let mut info = self.scheduling()?.ok_or_else(without)?;
        (info.cmd, info.weight) = (scheduler::PUTINFO, weight);
        self.domctl(domctl::SCHEDULER_OP, &mut info, &mut [])
            .map(drop)
            .map_err(|error| self.failed("set the weight of", &error))
    }

    /// What the scheduler knows of it, which refuses who takes it for another one.
    fn scheduling(&self) -> Result<Option<SchedulerOp>> {
        for sched_id in [scheduler::CREDIT2, scheduler::CREDIT] {
            let mut info = SchedulerOp {
                sched_id,
                cmd: scheduler::GETINFO,
                ..SchedulerOp::new_zeroed()
            };
            match self.domctl(domctl::SCHEDULER_OP, &mut info, &mut []) {
                Ok(_) => return Ok(Some(info)),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(self.failed("get the weight of", &error)),
            }
        }
        Ok(None)
    }
}
