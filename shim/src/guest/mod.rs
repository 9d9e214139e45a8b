//! The guest: all of its state, and the loop that every entry from ring 3 goes through.

mod crash;
mod leftovers;
mod moves;
mod turn;

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use xen_abi::{DomId, Mfn};

use crate::cpu::{Assist, Machine, Regs, Vcpu};
use crate::emulate::cpuid::FrozenCpuid;
use crate::emulate::msr::MsrPolicy;
use crate::host::Host;
use crate::mm::{Flush, Ledger, ShimSlots};
use crate::options::{Blackout, Fault, Options};
use crate::points::evtchn::EventChannels;
use crate::points::identity::Identity;
use crate::points::time::Time;
use crate::points::{Environment, Points};

pub use crash::Recent;
pub(crate) use leftovers::Leftovers;
pub use moves::Moves;

/// The argument registers of a hypercall: rdi, rsi, rdx, r10, r8.
pub type Args = [u64; 5];

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

/// The guest, on machine `M` and host `H`.
pub struct Guest<M: Machine, H: Host> {
    /// The machine.
    pub m: M,
    /// The Xen underneath.
    pub host: H,
    /// Store, console, grants, devices.
    pub points: Points,
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
    /// What goes wrong on purpose in the moves that are to come, one each.
    pub(crate) faults: VecDeque<Fault>,
    /// What is to go wrong in this one, or in the next that gets so far.
    pub(crate) fault: Option<Fault>,
    /// The moves so far.
    pub moves: Moves,
    /// What the last one may have brought along.
    pub(crate) leftovers: Leftovers,
    /// The last hypercalls, for a crash report.
    pub recent: Recent,
    /// What is left of the hypercall that was just interrupted: its arguments.
    pub(crate) continuation: Option<Args>,
}

impl<M: Machine, H: Host> Guest<M, H> {
    /// Assembles a guest from its parts.
    pub fn new(m: M, host: H, points: Points, mut parts: Parts) -> Self {
        parts.ledger.set_step(crate::mm::work::STEP);
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
            pages: parts.pages,
            max_pages: parts.max_pages,
            armed: None,
            drain_ns: parts.options.drain_ns,
            blackout: parts.options.blackout,
            faults: parts.options.faults.into(),
            fault: None,
            moves: Moves::default(),
            leftovers: Leftovers::default(),
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
        // Work is bounded from entry to entry: ring 3 runs with interrupts on, so the host has had
        // its turn since the last.
        self.ledger.work().note_look();
        let outcome = match regs.vector {
            Regs::SYSCALL if self.vcpus[v].in_kernel => self.hypercall(v, regs),
            Regs::SYSCALL => self.system_call(v, regs),
            _ => self.exception(v, regs),
        };
        if let Err(doomed) = outcome.and_then(|()| self.before_return(v, regs)) {
            self.crash(v, regs, doomed);
        }
        may_sysret(regs)
    }

    /// Returns the guest's system time.
    pub fn now(&self) -> u64 {
        self.time.to_guest(self.host.now_ns())
    }

    /// Runs `f` on the points, with the rest of the guest as they may see it.
    pub fn with_points<R>(
        &mut self,
        f: impl FnOnce(&mut Points, &mut Environment<'_, M, H>) -> R,
    ) -> R {
        let mut env = Environment {
            m: &self.m,
            host: &mut self.host,
            ledger: &mut self.ledger,
            slots: &self.slots,
            channels: &mut self.channels,
            vcpus: &mut self.vcpus,
            time: &mut self.time,
            shared_info: self.shared_info,
        };
        f(&mut self.points, &mut env)
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
        // The version of this very copy: the host may update its own again at any moment.
        self.vcpus[v].time_version = host.version;
        self.time.publish(&self.m, self.vcpus[v].info, &host);
    }

    /// Performs a flush on this vCPU.
    #[inline]
    pub fn flush(&mut self, flush: Flush) {
        match flush {
            Flush::None => {}
            // One page says nothing about the others, so the epoch stays.
            Flush::Page(va) => self.m.flush_page(va.0),
            Flush::Full => {
                crate::mm::Tlb::flush_everything(&self.m);
                // After the flush: from here on older stamps count as harmless.
                self.ledger.note_full_flush();
            }
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
