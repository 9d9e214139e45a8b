//! The turn: what is due before a vCPU goes on, on every way back to it.
//!
//! Most ways back have nothing to do, and are as frequent as the guest's system calls; so
//! `has_work` is one cheap test for the usual case, and `catch_up` does the rest, a suspend included.

use xen_abi::trap::vector;

use super::{Guest, mm};
use crate::cpu::deliver::{self, Bounce, Doomed};
use crate::cpu::{HostTraps, Machine, Regs};
use crate::host::{Host, HostEvent};
use crate::points::Points;

impl<M: Machine, H: Host> Guest<M, H> {
    /// Does everything that is due before vCPU `v` goes on: host events, timers, blocking, and at
    /// most one callback.
    #[inline]
    pub fn before_return(&mut self, v: usize, regs: &mut Regs) -> Result<(), Doomed> {
        if self.has_work(v) {
            self.catch_up(v);
        }
        // Also where nothing was due: the hypercall that is just over may have set a timer.
        self.arm(v);
        self.take_host_traps(v);
        // Machine checks before NMIs before events, as Xen has it (`test_all_events`).
        if self.vcpus[v].machine_check_pending && !self.vcpus[v].machine_check_blocked {
            return self.machine_check(v, regs);
        }
        if self.vcpus[v].nmi_pending && !self.vcpus[v].nmi_blocked && self.nmi(v, regs)? {
            return Ok(());
        }
        if self.has_event(v) {
            let address = self.vcpus[v].event.address;
            if address == 0 {
                return Err(Doomed("an event, and no event callback"));
            }
            let to = Bounce {
                address,
                error: None,
                masks_events: true,
                clears_direction: false,
            };
            return deliver::bounce(&mut self.m, &mut self.vcpus[v], self.assist, regs, to);
        }
        Ok(())
    }

    /// Whether there is more to do than to go on, which on most ways back there is not.
    #[inline]
    fn has_work(&self, v: usize) -> bool {
        self.host.has_events()
            || self.points.is_suspend_due()
            || self.vcpus[v].is_blocked
            || self.leftovers.are_there()
            || self.ledger.is_releasing()
            || self.host.time_version() != self.vcpus[v].time_version
    }

    /// Handles what the host and the points have to say, ends what hypercalls left half done, and
    /// waits while the vCPU is blocked.
    #[inline(never)]
    fn catch_up(&mut self, v: usize) {
        loop {
            // Events first: the request to suspend comes by one.
            if self.host.has_events() {
                self.host_events();
            }
            if let Some(asked_at) = self.points.take_suspend() {
                self.carry_out_suspend(v, asked_at);
                // Moved or refused: time has passed, and more events may wait.
                continue;
            }
            // Each round is a step of its own, with the host's events between: a guest that drops a
            // large table keeps nobody waiting.
            self.ledger.work().note_look();
            if mm!(self).finish_releases().is_err() {
                continue;
            }
            self.publish_time(v);
            // An NMI ends the wait of a blocked vCPU, too.
            self.take_host_traps(v);
            if self.leftovers.are_there() {
                self.hand_back();
            }
            if !self.vcpus[v].is_blocked || self.is_wanted(v) {
                break;
            }
            // A vCPU with nothing to do is the best time to hand frames back, so it does not sleep
            // yet.
            if !self.leftovers.are_there() {
                self.idle(v);
            }
        }
        if self.vcpus[v].is_blocked {
            self.unblock(v);
        }
    }

    /// Notes what the host raised on the CPU itself.
    #[inline]
    fn take_host_traps(&mut self, v: usize) {
        let traps = self.m.take_host_traps();
        let vcpu = &mut self.vcpus[v];
        vcpu.nmi_pending |= traps.contains(HostTraps::NMI);
        vcpu.machine_check_pending |= traps.contains(HostTraps::MACHINE_CHECK);
    }

    /// Delivers the pending machine check.  Xen ends a domain that it can not tell of one
    /// (`mc_memerr_dhandler`).
    #[cold]
    fn machine_check(&mut self, v: usize, regs: &mut Regs) -> Result<(), Doomed> {
        self.vcpus[v].machine_check_pending = false;
        let trap = self.vcpus[v].traps[usize::from(vector::MACHINE_CHECK)];
        if trap.address == 0 {
            return Err(Doomed("a machine check that the kernel has no handler for"));
        }
        self.vcpus[v].machine_check_blocked = true;
        let to = Bounce {
            address: trap.address,
            error: None,
            masks_events: trap.masks_events(),
            clears_direction: false,
        };
        deliver::bounce(&mut self.m, &mut self.vcpus[v], self.assist, regs, to)
    }

    /// Delivers the pending NMI; `false` when the guest has no handler, and the NMI is lost.
    #[cold]
    fn nmi(&mut self, v: usize, regs: &mut Regs) -> Result<bool, Doomed> {
        self.vcpus[v].nmi_pending = false;
        let trap = self.vcpus[v].traps[2];
        if trap.address == 0 {
            return Ok(false);
        }
        self.vcpus[v].nmi_blocked = true;
        let to = Bounce {
            address: trap.address,
            error: None,
            masks_events: trap.masks_events(),
            clears_direction: false,
        };
        deliver::bounce(&mut self.m, &mut self.vcpus[v], self.assist, regs, to)?;
        Ok(true)
    }

    /// Whether an event is pending and not masked.
    #[inline]
    fn has_event(&self, v: usize) -> bool {
        // Both bytes, pending and mask, at once: pending is any non-zero value, mask must be 0.
        let info = self.vcpus[v].info;
        let both = self.m.load16(info.frame, info.offset);
        both & 0xff != 0 && both >> 8 == 0
    }

    /// Whether a blocked vCPU has a reason to run.
    fn is_wanted(&self, v: usize) -> bool {
        let vcpu = &self.vcpus[v];
        self.has_event(v)
            || vcpu.nmi_pending && !vcpu.nmi_blocked
            || vcpu.machine_check_pending && !vcpu.machine_check_blocked
            || vcpu
                .polling
                .iter()
                .any(|&port| self.channels.is_pending(&self.m, port))
    }

    fn idle(&mut self, v: usize) {
        let deadline = self.vcpus[v]
            .next_deadline()
            .map(|at| self.time.to_host(at));
        let deadline = deadline.into_iter().chain(self.points.deadline()).min();
        self.host.wait(deadline);
        // A wait that ends by its deadline brings no event.
        self.expire(v);
        self.with_points(Points::tick);
    }

    fn unblock(&mut self, v: usize) {
        let now = self.now();
        let vcpu = &mut self.vcpus[v];
        vcpu.is_blocked = false;
        vcpu.polling.clear();
        vcpu.timer.poll = None;
        self.set_runstate(v, xen_abi::vcpu::runstate::RUNNING, now);
    }

    /// Raises the timer interrupts whose time has come.
    pub fn expire(&mut self, v: usize) {
        let now = self.now();
        let was_blocked = self.vcpus[v].is_blocked;
        if crate::points::time::expire(&mut self.vcpus[v], now) {
            let virq = xen_abi::evtchn::virq::TIMER;
            self.channels
                .raise_virq(&self.m, &self.vcpus, virq, v as u32);
        }
        // A poll is over.  The guest reads in its runstate area that it runs.
        if was_blocked && !self.vcpus[v].is_blocked {
            self.unblock(v);
        }
    }

    /// Asks the host for an event at the next deadline, which matters only while the guest runs.
    #[inline]
    fn arm(&mut self, v: usize) {
        let deadline = self.vcpus[v]
            .next_deadline()
            .map(|at| self.time.to_host(at));
        let deadline = deadline.into_iter().chain(self.points.deadline()).min();
        // Being woken for a deadline that was since put off or taken back does no harm, and costs
        // less than to tell the host: a guest moves its timer twice each time that it idles.
        if let Some(at) = deadline
            && self.armed.is_none_or(|armed| at < armed)
        {
            self.armed = deadline;
            self.host.arm_timer(at);
        }
    }

    /// Forgets what the host was asked for, which a new host does not know.
    pub fn forget_armed_timer(&mut self) {
        self.armed = None;
    }

    /// Handles what the host announced.
    pub fn host_events(&mut self) {
        while let Some(event) = self.host.take_event() {
            if event == HostEvent::Timer {
                // The host's timer is a one-shot: what was armed is used up.
                self.armed = None;
                (0..self.vcpus.len()).for_each(|v| self.expire(v));
                self.with_points(Points::tick);
            }
            self.with_points(|points, env| points.host_event(env, event));
        }
    }
}
