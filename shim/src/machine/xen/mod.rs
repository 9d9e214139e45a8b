//! The Xen underneath: hypercalls, the real shared info page, and the events in it.

mod call;
mod last_words;
mod reservation;

use core::sync::atomic::{Ordering, fence};

use log::error;
use unmoved_shim::cpu::UPCALL_VECTOR;
use unmoved_shim::host::grants::TableFrames;
use unmoved_shim::host::{Arrival, Host, HostEvent, HostPort, Ring, Xen};
use unmoved_shim::mem::Frames;
use unmoved_shim::points::time::{HostTime, wall_ns};
use xen_abi::evtchn::{self, AllocUnbound, BindVirq, Status};
use xen_abi::hvm;
use xen_abi::memory;
use xen_abi::sched::{self, Poll, ShutdownReason};
use xen_abi::shared_info::{
    EVTCHN_MASK, EVTCHN_PENDING, WC_NSEC, WC_SEC, WC_SEC_HI, WC_VERSION, time_info, vcpu_info,
};
use xen_abi::vcpu::{self, SetSingleshotTimer};
use xen_abi::{DomId, Errno, Mfn, Port, hypercall as nr, version};

use self::call::{add_to_physmap, hypercall, op, param, set_param};
pub use self::call::{detect, uuid};
pub use self::last_words::{crash, say_on_console};
pub use self::reservation::{give_back, reserved_frames};
use super::layout::gfn;
use super::memory::direct;
use super::{globals, instructions};

/// Binds the timer of vCPU 0 to a new port.
fn bind_timer() -> Result<u32, Errno> {
    let mut bind = BindVirq {
        virq: evtchn::virq::TIMER,
        vcpu: 0,
        port: 0,
    };
    op(nr::EVENT_CHANNEL_OP, evtchn::op::BIND_VIRQ, &mut bind)?;
    Ok(bind.port)
}

/// Whether a port is the timer's in this domain.
fn is_timer(port: HostPort) -> bool {
    let mut status = Status {
        dom: DomId::SELF.0,
        port: port.0.0,
        ..Status::default()
    };
    op(nr::EVENT_CHANNEL_OP, evtchn::op::STATUS, &mut status).is_ok()
        // The number alone tells nothing: in a new domain the toolstack's ports have low numbers
        // too.
        && status.status == evtchn::status::VIRQ
        && status.detail == evtchn::virq::TIMER
}

/// Asks for the page and the port of one of the host's daemons.
fn ring(ring: Ring) -> Result<(Mfn, HostPort), Errno> {
    let (page, port) = match ring {
        Ring::Store => (hvm::param::STORE_PFN, hvm::param::STORE_EVTCHN),
        Ring::Console => (hvm::param::CONSOLE_PFN, hvm::param::CONSOLE_EVTCHN),
    };
    let (page, port) = (Mfn(param(page)?), param(port)?);
    // Neither frame 0 nor one that is not there can be a ring.
    if page == Mfn(0) || page.0 >= globals::frame_limit() {
        return Err(Errno::EINVAL);
    }
    Ok((page, HostPort(Port(port as u32))))
}

/// The frames of the domain's grant table.
pub struct GrantFrames;

impl TableFrames for GrantFrames {
    fn map_next(&mut self, index: usize) -> Option<Mfn> {
        let index = index as u64;
        // The frame numbers beyond are not set aside for it.
        if index >= gfn::GRANT_FRAMES {
            return None;
        }
        let frame = Mfn(gfn::GRANT_TABLE.0 + index);
        match add_to_physmap(memory::space::GRANT_TABLE, index, frame) {
            Ok(()) => Some(frame),
            Err(errno) => {
                error!("the host gives no frame {index} of the grant table: {errno}");
                None
            }
        }
    }
}

/// The connection to the host.
pub struct HostXen {
    store: HostPort,
    console: HostPort,
    timer: HostPort,
    /// Ports that devices made.
    devices: alloc::vec::Vec<HostPort>,
}

impl HostXen {
    /// Connects to the host that the domain is on now: shared info page, event announcements, timer.
    ///
    /// # Errors
    /// What the host answered to a request that it can not refuse to a domain started by its
    /// toolstack.
    pub fn connect() -> Result<Self, Errno> {
        add_to_physmap(memory::space::SHARED_INFO, 0, gfn::SHARED_INFO)?;
        // No event is ever masked but by being unbound, and nobody shows interest in port 0.
        for word in 0..64 {
            SHARED.store64(gfn::SHARED_INFO, EVTCHN_MASK + word * 8, 0);
        }
        set_param(
            hvm::param::CALLBACK_IRQ,
            hvm::callback_via_vector(UPCALL_VECTOR),
        )?;
        // Asked for each time: both have new numbers after a move.
        let (_, store) = ring(Ring::Store)?;
        let (_, console) = ring(Ring::Console)?;
        Ok(Self {
            store,
            console,
            timer: HostPort(Port(bind_timer()?)),
            devices: alloc::vec::Vec::new(),
        })
    }

    fn classify(&self, port: HostPort) -> HostEvent {
        match port {
            _ if port == self.timer => HostEvent::Timer,
            _ if port == self.store => HostEvent::Store,
            _ if port == self.console => HostEvent::Console,
            _ => HostEvent::Port(port),
        }
    }

    fn wall_clock(&self) -> u64 {
        loop {
            // Xen makes the version odd before it writes and even after; the fences keep the loads
            // between the two looks.
            let version = SHARED.load32(gfn::SHARED_INFO, WC_VERSION);
            fence(Ordering::SeqCst);
            let low = u64::from(SHARED.load32(gfn::SHARED_INFO, WC_SEC));
            let high = u64::from(SHARED.load32(gfn::SHARED_INFO, WC_SEC_HI));
            let nanos = SHARED.load32(gfn::SHARED_INFO, WC_NSEC);
            fence(Ordering::SeqCst);
            if version & 1 == 0 && version == SHARED.load32(gfn::SHARED_INFO, WC_VERSION) {
                return wall_ns(high << 32 | low, nanos);
            }
            core::hint::spin_loop();
        }
    }
}

/// Frame access for pages of the host.
const SHARED: super::frames::Direct = super::frames::Direct;

const fn time_field(offset: usize) -> usize {
    vcpu_info::TIME + offset
}

impl Xen for HostXen {
    fn alloc_unbound(&mut self, remote: DomId) -> Result<HostPort, Errno> {
        let mut alloc = AllocUnbound {
            dom: DomId::SELF.0,
            remote_dom: remote.0,
            port: 0,
        };
        op(nr::EVENT_CHANNEL_OP, evtchn::op::ALLOC_UNBOUND, &mut alloc)?;
        let port = HostPort(Port(alloc.port));
        self.devices.push(port);
        Ok(port)
    }

    fn close(&mut self, port: HostPort) {
        let mut arg = port.0.0;
        // One that is gone already needs no closing.
        let _ = op(nr::EVENT_CHANNEL_OP, evtchn::op::CLOSE, &mut arg);
        self.devices.retain(|&other| other != port);
    }

    fn notify(&mut self, port: HostPort) {
        let mut arg = port.0.0;
        // A port without another end swallows it.
        let _ = op(nr::EVENT_CHANNEL_OP, evtchn::op::SEND, &mut arg);
    }

    fn now_ns(&self) -> u64 {
        // In this order: the host may update its time between the two, and a TSC from before an
        // update lies before its time stamp, which makes the difference all but 2^64.
        let time = self.time();
        time.at(instructions::rdtsc())
    }
}

impl Host for HostXen {
    fn ring(&self, which: Ring) -> Result<(Mfn, HostPort), Errno> {
        ring(which)
    }

    fn time(&self) -> HostTime {
        let frame = gfn::SHARED_INFO;
        loop {
            // As for the wall clock. A copy of all fields from one update: the factor of one with
            // the time stamp of another would be a jump.
            let version = SHARED.load32(frame, time_field(time_info::VERSION));
            fence(Ordering::SeqCst);
            let time = HostTime {
                version,
                tsc_timestamp: SHARED.load64(frame, time_field(time_info::TSC_TIMESTAMP)),
                system_time: SHARED.load64(frame, time_field(time_info::SYSTEM_TIME)),
                tsc_to_system_mul: SHARED.load32(frame, time_field(time_info::TSC_TO_SYSTEM_MUL)),
                tsc_shift: SHARED.load8(frame, time_field(time_info::TSC_SHIFT)) as i8,
                flags: SHARED.load8(frame, time_field(time_info::FLAGS)),
            };
            fence(Ordering::SeqCst);
            if version & 1 == 0 && version == self.time_version() {
                return time;
            }
            core::hint::spin_loop();
        }
    }

    #[inline]
    fn time_version(&self) -> u32 {
        SHARED.load32(gfn::SHARED_INFO, time_field(time_info::VERSION))
    }

    fn wall_clock_at_zero_ns(&self) -> u64 {
        self.wall_clock()
    }

    fn arm_timer(&mut self, timeout_abs_ns: u64) {
        let mut set = SetSingleshotTimer {
            timeout_abs_ns,
            flags: 0,
            pad: 0,
        };
        let args = [vcpu::op::SET_SINGLESHOT_TIMER, 0, &raw mut set as u64];
        // SAFETY: the structure is the one of the command.
        // A deadline that has passed raises the event at once, as no flag asks for an error.
        if let Err(errno) = unsafe { hypercall(nr::VCPU_OP, args) } {
            error!("the host refused a timer: {errno}");
        }
    }

    #[inline]
    fn has_events(&self) -> bool {
        SHARED.load8(gfn::SHARED_INFO, vcpu_info::UPCALL_PENDING) != 0
    }

    fn take_event(&mut self) -> Option<HostEvent> {
        // Cleared first: whatever is raised from here on announces itself again.
        SHARED.store8(gfn::SHARED_INFO, vcpu_info::UPCALL_PENDING, 0);
        // A locked operation, and so a barrier between the flag and the words: Xen sets them in the
        // other order.
        let selected = SHARED.fetch_and64(gfn::SHARED_INFO, vcpu_info::PENDING_SEL, 0);
        if selected == 0 {
            return None;
        }
        for word in (0..64).filter(|word| selected & 1 << word != 0) {
            let at = EVTCHN_PENDING + word * 8;
            let pending = SHARED.load64(gfn::SHARED_INFO, at);
            if pending == 0 {
                continue;
            }
            let bit = pending.trailing_zeros();
            // Cleared before it is handled: an event that comes meanwhile sets it again.
            SHARED.fetch_and64(gfn::SHARED_INFO, at, !(1 << bit));
            // Anything left over is looked at by the next call.
            SHARED.fetch_or64(gfn::SHARED_INFO, vcpu_info::PENDING_SEL, selected);
            return Some(self.classify(HostPort(Port(word as u32 * 64 + bit))));
        }
        None
    }

    fn wait(&mut self, until_ns: Option<u64>) {
        let mut ports = alloc::vec![self.store.0.0, self.console.0.0, self.timer.0.0];
        // 128 is what one poll takes. It ends at once if one is pending, so an event between the
        // last look and here is not slept through.
        ports.extend(self.devices.iter().map(|port| port.0.0).take(125));
        let mut poll = Poll {
            ports: ports.as_ptr() as u64,
            nr_ports: ports.len() as u32,
            pad: 0,
            // 0 would be no limit, where the deadline is long past.
            timeout: until_ns.map_or(0, |at| at.max(1)),
        };
        // A refused poll is a short wait, nothing worse.
        let _ = op(nr::SCHED_OP, sched::op::POLL, &mut poll);
    }

    fn yield_now(&mut self) {
        let mut unused = 0u64;
        let _ = op(nr::SCHED_OP, sched::op::YIELD, &mut unused);
    }

    fn release_frame(&mut self, frame: Mfn) -> Result<(), Errno> {
        reservation::change(memory::op::DECREASE_RESERVATION, frame)
    }

    fn populate_frame(&mut self, frame: Mfn) -> Result<(), Errno> {
        reservation::change(memory::op::POPULATE_PHYSMAP, frame)
    }

    fn write_frame(&mut self, frame: Mfn) -> Result<(), Errno> {
        let args = [version::op::EXTRAVERSION, direct(frame) as u64, 0];
        // SAFETY: it writes 16 bytes, and the direct map covers all of the domain's memory.  Whatever the
        // frame holds is nobody's yet.
        unsafe { hypercall(nr::XEN_VERSION, args) }.map(drop)
    }

    fn shutdown(&mut self, reason: ShutdownReason) -> u64 {
        let mut reason = reason.0;
        // A host that refuses to suspend leaves everything as it was, like one that cancels.
        op(nr::SCHED_OP, sched::op::SHUTDOWN, &mut reason).unwrap_or(1)
    }

    fn reconnect(&mut self) -> Result<Arrival, Errno> {
        // A new domain has but the two ports that its toolstack made.
        let arrival = if is_timer(self.timer) {
            Arrival::SameDomain
        } else {
            Arrival::NewDomain
        };
        if arrival == Arrival::SameDomain {
            // The old ports are still bound, and would raise events that nobody knows about. In a
            // new domain the same numbers may be others' by now.
            for port in core::mem::take(&mut self.devices) {
                self.close(port);
            }
            self.close(self.timer);
        }
        *self = Self::connect()?;
        Ok(arrival)
    }
}
