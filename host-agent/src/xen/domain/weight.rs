//! A domain's scheduler weight.

use zerocopy::FromZeros;

use super::Domain;
use crate::job::{Error, Result};
use crate::xen::abi::{SchedulerOp, domctl, scheduler};

impl Domain<'_> {
    /// Gets its weight: its share of the processors under contention, relative to others (256 by default),
    /// for each vCPU with credit2; `None` if the scheduler has no weights.
    ///
    /// # Errors
    /// If the hypercall fails.
    pub(crate) fn weight(&self) -> Result<Option<u16>> {
        let info = self.scheduling()?;
        Ok(info.map(|info| info.weight))
    }

    /// Sets the weight; the cap stays.
    ///
    /// # Errors
    /// If the hypercall fails, or the scheduler has no weights.
    pub(crate) fn set_weight(&self, weight: u16) -> Result<()> {
        let without = || Error::Xen("Xen's scheduler has no weights".to_owned());
        let mut info = self.scheduling()?.ok_or_else(without)?;
        (info.cmd, info.weight) = (scheduler::PUTINFO, weight);
        self.domctl(domctl::SCHEDULER_OP, &mut info, &mut [])
            .map(drop)
            .map_err(|error| self.failed("set the weight of", &error))
    }

    /// The scheduler's settings.  Xen refuses the call if the scheduler is not the one that is named.
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
