//! Timers and runstate accounting.

use xen_abi::vcpu::{RunstateInfo, SetSingleshotTimer, runstate};
use xen_abi::{Errno, GuestVa};
use zerocopy::IntoBytes;

use super::{Answer, Args, read};
use crate::cpu::{Assist, Machine};
use crate::guest::Guest;
use crate::host::Host;

/// Shortest period of a periodic timer, nanoseconds (`VCPUOP_set_periodic_timer`).
const MIN_PERIOD_NS: u64 = 1_000_000;
/// Longest one (Xen's `STIME_DELTA_MAX`).
const MAX_PERIOD_NS: u64 = u64::MAX >> 2;
/// log2 of a delay in nanoseconds, 13 days, that nobody asks for on purpose.
const ABSURD_SHIFT: u32 = 50;
/// When Xen lets such a timer fire, nanoseconds from now.
const SOON_NS: u64 = 100_000_000;

impl<M: Machine, H: Host> Guest<M, H> {
    /// `set_timer_op(deadline)`; 0 for none.
    ///
    /// An absurdly distant deadline is a mistake of a kernel that has work to do, or an old kernel's
    /// way to say that it has none.  Neither may wait that long, so it comes soon.
    pub(super) fn set_timer_op(&mut self, v: usize, [deadline, ..]: Args) -> Answer {
        let now = self.now();
        // Saturates for a deadline that has passed, which is no mistake and fires at once. What Xen
        // takes for negative (`do_set_timer_op`) is far away in unsigned numbers.
        let deadline = if deadline.saturating_sub(now) >> ABSURD_SHIFT != 0 {
            now.saturating_add(SOON_NS)
        } else {
            deadline
        };
        self.vcpus[v].timer.singleshot = (deadline != 0).then_some(deadline);
        // One that has passed already raises its event before the guest goes on, so that none waits
        // for the host's timer.
        self.expire(v);
        Ok(0)
    }

    /// `VCPUOP_set_singleshot_timer`.
    pub(super) fn set_singleshot(&mut self, v: usize, arg: u64) -> Answer {
        let set: SetSingleshotTimer = read(&self.m, arg)?;
        // `VCPU_SSHOTTMR_future`; without it a time that has passed fires at once.
        if set.flags & 1 != 0 && set.timeout_abs_ns < self.now() {
            return Err(Errno::ETIME);
        }
        self.vcpus[v].timer.singleshot = Some(set.timeout_abs_ns);
        self.expire(v);
        Ok(0)
    }

    /// `VCPUOP_set_periodic_timer`.
    pub(super) fn set_periodic(&mut self, v: usize, arg: u64) -> Answer {
        let period: u64 = read(&self.m, arg)?;
        // A shorter one would keep the shim busy raising events.
        if !(MIN_PERIOD_NS..=MAX_PERIOD_NS).contains(&period) {
            return Err(Errno::EINVAL);
        }
        let next = self.now().checked_add(period).ok_or(Errno::EINVAL)?;
        self.vcpus[v].timer.periodic = Some((next, period));
        Ok(0)
    }

    /// Changes the state in which a vCPU's time is accounted, at guest time `now`.
    pub fn set_runstate(&mut self, v: usize, state: u32, now: u64) {
        let info = &mut self.vcpus[v].runstate;
        // The host's clock was read anew since then; should it have stepped back, the state has
        // lasted no time.
        let spent = now.saturating_sub(info.state_entry_time);
        // There are four states. The mask spares a test that could panic.
        let sum = &mut info.time[info.state as usize & 3];
        *sum = sum.saturating_add(spent);
        info.state = state;
        info.state_entry_time = now;
        self.publish_runstate(v);
    }

    /// Copies the runstate to where the guest wants it.  That address is the kernel's, so it can
    /// not be reached while user mode runs; the next change in kernel mode brings it up to date.
    pub(super) fn publish_runstate(&mut self, v: usize) {
        let vcpu = &self.vcpus[v];
        let Some(area) = vcpu.runstate_area else {
            return;
        };
        if !vcpu.in_kernel {
            return;
        }
        let mut info: RunstateInfo = vcpu.runstate;
        if self.assist.contains(Assist::RUNSTATE_UPDATE_FLAG) {
            // Does not wrap: `is_guests` has checked the whole area when it was registered.
            let entry = GuestVa(area.0.wrapping_add(8));
            // Mark, contents, then the mark away. Stores of one CPU are seen in this order by the
            // others, so a reader that finds no mark before and after has read one state.
            info.state_entry_time |= runstate::UPDATE;
            let marked = info.state_entry_time;
            // An area that has gone is the guest's loss; nothing here depends on it.
            let _ = self.m.write_guest(entry, marked.as_bytes());
            let _ = self.m.write_guest(area, info.as_bytes());
            info.state_entry_time &= !runstate::UPDATE;
            let _ = self.m.write_guest(entry, info.state_entry_time.as_bytes());
        } else {
            let _ = self.m.write_guest(area, info.as_bytes());
        }
    }
}
