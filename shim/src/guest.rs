//! The guest: all of its state, and the loop that every entry from ring 3 goes through.

use alloc::vec::Vec;

use log::{error, info};
use xen_abi::sched::ShutdownReason;
use xen_abi::{DomId, Mfn};

use crate::cpu::deliver::{self, Bounce, Doomed};
use crate::cpu::{Assist, Machine, Regs, Vcpu};
use crate::emulate::cpuid::FrozenCpuid;
use crate::emulate::msr::MsrPolicy;
use crate::host::{Host, HostEvent};
use crate::hypercall;
use crate::migrate::Moves;
use crate::mm::{Flush, Ledger, ShimSlots};
use crate::options::{Blackout, Fault, Options};
use crate::points::evtchn::EventChannels;
use crate::points::identity::Identity;
use crate::points::time::Time;
use crate::points::{Outside, Points};

/// A view of the guest's memory for one operation; a macro, so that the rest of the guest stays
/// usable beside it.
macro_rules! mm {
    ($guest:expr) => {
        crate::mm::Mm {
            frames: &$guest.m,
            ledger: &mut $guest.ledger,
            slots: &$guest.slots,
            tlb: &$guest.m,
        }
    };
}
pub(crate) use mm;

/// What the guest consists of when it starts.
pub struct Parts {
    /// Owner and use of every frame.
    pub ledger: Ledger,
    /// The shim's own L4 entries.
    pub slots: ShimSlots,
    /// The shared info page.
    pub shared_info: Mfn,
    /// What the guest is told about itself.
    pub identity: Identity,
    /// What CPUID says.
    pub cpuid: FrozenCpuid,
    /// What MSRs say.
    pub msrs: MsrPolicy,
    /// The guest's ports.
    pub channels: EventChannels,
    /// The guest's time.
    pub time: Time,
    /// The vCPUs; number 0 is ready to run.
    pub vcpus: Vec<Vcpu>,
    /// How many pages the guest has, ballooned-out ones not counted.
    pub pages: u64,
    /// How many pages it may have.
    pub max_pages: u64,
    /// What was asked for on the shim's command line.
    pub options: Options,
}

/// The guest, on machine `M` and host `H`, with its other migration points `P`.
pub struct Guest<M: Machine, H: Host, P: Points<M, H>> {
    /// The machine.
    pub m: M,
    /// The Xen underneath.
    pub host: H,
    /// Store, console, grants, devices.
    pub points: P,
    /// Owner and use of every frame.
    pub ledger: Ledger,
    /// The shim's own L4 entries.
    pub slots: ShimSlots,
    /// The shared info page.
    pub shared_info: Mfn,
    /// What the guest is told about itself.
    pub identity: Identity,
    /// What CPUID says.
    pub cpuid: FrozenCpuid,
    /// What MSRs say.
    pub msrs: MsrPolicy,
    /// The guest's ports.
    pub channels: EventChannels,
    /// The guest's time.
    pub time: Time,
    /// The vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// Services chosen with `vm_assist`.
    pub assist: Assist,
    /// Frames that the guest has given back and may have again.
    pub ballooned: Vec<Mfn>,
    /// How many pages the guest has.
    pub pages: u64,
    /// How many pages it may have.
    pub max_pages: u64,
    /// When the host wakes us, in its time: at the earliest deadline or before.
    armed: Option<u64>,
    /// How long a suspend waits for requests in flight, nanoseconds.
    pub(crate) drain_ns: u64,
    /// Whether the guest's clocks count the time of a move.
    pub(crate) blackout: Blackout,
    /// What goes wrong on purpose in the next move.
    pub(crate) fault: Option<Fault>,
    /// The moves so far.
    pub moves: Moves,
    /// The last hypercalls, for a crash report.
    pub recent: Recent,
    /// What is left of the hypercall that was just interrupted: its arguments.
    pub(crate) continuation: Option<hypercall::Args>,
}

/// A ring of the last hypercalls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recent {
    calls: [(u64, u64, u64); 16],
    next: usize,
}

impl Recent {
    /// Notes a hypercall: number and first two arguments.
    #[inline]
    pub fn note(&mut self, number: u64, first: u64, second: u64) {
        self.calls[self.next % 16] = (number, first, second);
        self.next = self.next.wrapping_add(1);
    }

    /// Returns the calls, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let start = self.next.saturating_sub(16);
        (start..self.next).map(|index| self.calls[index % 16])
    }
}

impl<M: Machine, H: Host, P: Points<M, H>> Guest<M, H, P> {
    /// Puts a guest together.
    pub fn new(m: M, host: H, points: P, parts: Parts) -> Self {
        Self {
            m,
            host,
            points,
            ledger: parts.ledger,
            slots: parts.slots,
            shared_info: parts.shared_info,
            identity: parts.identity,
            cpuid: parts.cpuid,
            msrs: parts.msrs,
            channels: parts.channels,
            time: parts.time,
            vcpus: parts.vcpus,
            assist: Assist::empty(),
            ballooned: Vec::new(),
            pages: parts.pages,
            max_pages: parts.max_pages,
            armed: None,
            drain_ns: parts.options.drain_ns,
            blackout: parts.options.blackout,
            fault: parts.options.fault,
            moves: Moves::default(),
            recent: Recent::default(),
            continuation: None,
        }
    }

    /// The guest's own domain id, as it knows it.
    pub fn domid(&self) -> DomId {
        self.identity.domid
    }

    /// Handles one entry from ring 3 on vCPU `v`.  Returns whether the way back may be SYSRET.
    pub fn enter(&mut self, v: usize, regs: &mut Regs) -> bool {
        let outcome = match regs.vector {
            Regs::SYSCALL if self.vcpus[v].in_kernel => self.hypercall(v, regs),
            Regs::SYSCALL => self.system_call(v, regs),
            _ => self.exception(v, regs),
        };
        if let Err(doomed) = outcome.and_then(|()| self.work(v, regs)) {
            self.crash(v, regs, doomed);
        }
        may_sysret(regs)
    }

    /// Does everything that is due before vCPU `v` goes on: host events, timers, blocking, and at
    /// most one callback.
    #[inline]
    pub fn work(&mut self, v: usize, regs: &mut Regs) -> Result<(), Doomed> {
        if self.is_called(v) {
            self.catch_up(v);
        }
        self.arm(v);
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
            };
            return deliver::bounce(&mut self.m, &mut self.vcpus[v], self.assist, regs, to);
        }
        Ok(())
    }

    /// Whether there is more to do than to go on, which on most ways back there is not.
    #[inline]
    fn is_called(&self, v: usize) -> bool {
        self.host.has_events()
            || self.points.has_request()
            || self.vcpus[v].is_blocked
            || self.host.time_version() != self.vcpus[v].time_version
    }

    /// Handles what the host and the points have to say, and waits while the vCPU is blocked.
    #[inline(never)]
    fn catch_up(&mut self, v: usize) {
        loop {
            if self.host.has_events() {
                self.host_events();
            }
            if let Some(request) = self.points.take_request() {
                self.migrate(v, request);
                continue;
            }
            self.publish_time(v);
            if !self.vcpus[v].is_blocked || self.is_wanted(v) {
                break;
            }
            self.idle(v);
        }
        if self.vcpus[v].is_blocked {
            self.unblock(v);
        }
    }

    /// Delivers the pending NMI; `false` when the guest has no handler, upon which it is lost.
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
        self.expire(v);
        self.outside(Points::tick);
    }

    fn unblock(&mut self, v: usize) {
        let now = self.now();
        let vcpu = &mut self.vcpus[v];
        vcpu.is_blocked = false;
        vcpu.polling.clear();
        vcpu.timer.poll = None;
        self.set_runstate(v, xen_abi::vcpu::runstate::RUNNING, now);
    }

    /// Returns the guest's system time.
    pub fn now(&self) -> u64 {
        self.time.to_guest(self.host.now_ns())
    }

    /// Raises the timer interrupts whose time has come.
    pub fn expire(&mut self, v: usize) {
        let now = self.now();
        if crate::points::time::expire(&mut self.vcpus[v], now) {
            let virq = xen_abi::evtchn::virq::TIMER;
            self.channels
                .raise_virq(&self.m, &self.vcpus, virq, v as u32);
        }
    }

    /// Has the host wake us at the next deadline, which only matters while the guest runs.
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
    pub fn disarm(&mut self) {
        self.armed = None;
    }

    /// Handles what the host announced.
    pub fn host_events(&mut self) {
        while let Some(event) = self.host.take_event() {
            if event == HostEvent::Timer {
                self.armed = None;
                (0..self.vcpus.len()).for_each(|v| self.expire(v));
                self.outside(Points::tick);
            }
            self.outside(|points, outside| points.host_event(outside, event));
        }
    }

    /// Runs `f` on the points, with the rest of the guest as they may see it.
    pub fn outside<R>(&mut self, f: impl FnOnce(&mut P, &mut Outside<'_, M, H>) -> R) -> R {
        let mut outside = Outside {
            m: &self.m,
            host: &mut self.host,
            ledger: &mut self.ledger,
            slots: &self.slots,
            channels: &mut self.channels,
            vcpus: &mut self.vcpus,
            time: &mut self.time,
            shared_info: self.shared_info,
        };
        f(&mut self.points, &mut outside)
    }

    /// Copies the host's time to the guest if it has changed since.
    fn publish_time(&mut self, v: usize) {
        let version = self.host.time_version();
        if version != self.vcpus[v].time_version {
            self.publish_time_now(v);
        }
    }

    /// Copies the host's time to the guest.
    pub fn publish_time_now(&mut self, v: usize) {
        let host = self.host.time();
        self.vcpus[v].time_version = host.version;
        self.time.publish(&self.m, self.vcpus[v].info, &host);
    }

    /// Performs a flush on this vCPU.
    #[inline]
    pub fn flush(&mut self, flush: Flush) {
        match flush {
            Flush::None => {}
            Flush::Page(va) => self.m.flush_page(va.0),
            Flush::Full => {
                crate::mm::Tlb::flush_everything(&self.m);
                self.ledger.note_full_flush();
            }
        }
    }

    /// Ends the domain because the guest can not go on.
    pub fn crash(&mut self, v: usize, regs: &Regs, doomed: Doomed) -> ! {
        error!("guest crashed: {}", doomed.0);
        self.dump(v, regs);
        self.stop(ShutdownReason::CRASH)
    }

    /// Logs the state of a vCPU.
    pub fn dump(&self, v: usize, regs: &Regs) {
        let mode = if self.vcpus[v].in_kernel {
            "kernel"
        } else {
            "user"
        };
        error!(
            "vcpu {v} in {mode} mode, vector {:#x} error {:#x}",
            regs.vector, regs.error
        );
        error!(
            "rip {:#x}:{:#018x} rsp {:#x}:{:#018x} rflags {:#x}",
            regs.cs, regs.rip, regs.ss, regs.rsp, regs.rflags
        );
        error!(
            "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
            regs.rax, regs.rbx, regs.rcx, regs.rdx
        );
        error!(
            "rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}",
            regs.rsi, regs.rdi, regs.rbp, regs.r8
        );
        error!(
            "r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}",
            regs.r9, regs.r10, regs.r11, regs.r12
        );
        error!(
            "r13 {:016x} r14 {:016x} r15 {:016x}",
            regs.r13, regs.r14, regs.r15
        );
        for row in 0..8u64 {
            let mut words = [0; 4];
            let va = xen_abi::GuestVa(regs.rsp.wrapping_add(row * 32));
            if self
                .m
                .read_guest(va, zerocopy::IntoBytes::as_mut_bytes(&mut words))
                .is_err()
            {
                break;
            }
            error!(
                "stack {:016x} {:016x} {:016x} {:016x}",
                words[0], words[1], words[2], words[3]
            );
        }
        for (number, first, second) in self.recent.iter() {
            error!(
                "hypercall {} ({first:#x}, {second:#x})",
                xen_abi::hypercall::name(number)
            );
        }
    }

    /// Ends the domain.
    pub fn stop(&mut self, reason: ShutdownReason) -> ! {
        info!("shutdown, reason {}", reason.0);
        loop {
            self.outside(Points::end);
            self.host.shutdown(reason);
        }
    }
}

/// Whether SYSRET restores exactly what `regs` holds.
#[inline]
fn may_sysret(regs: &Regs) -> bool {
    use xen_abi::trap::{FLAT_RING3_CS64, FLAT_RING3_DS, rflags};
    regs.vector == Regs::SYSCALL
        && regs.rcx == regs.rip
        && regs.r11 == regs.rflags
        && regs.cs == u64::from(FLAT_RING3_CS64)
        && regs.ss == u64::from(FLAT_RING3_DS)
        && regs.rflags & (rflags::TF | rflags::RF) == 0
        // A non-canonical address would fault in ring 0, on the guest's stack (XSA-7).
        && (regs.rip.wrapping_add(1 << 47)) >> 48 == 0
}
