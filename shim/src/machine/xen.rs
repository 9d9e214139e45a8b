//! The Xen underneath: hypercalls, the real shared info page, and the events in it.

use core::arch::asm;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use log::error;
use unmoved_shim::cpu::UPCALL_VECTOR;
use unmoved_shim::host::grants::TableFrames;
use unmoved_shim::host::{Arrival, Host, HostEvent, HostPort, Ring, Xen};
use unmoved_shim::mem::Frames;
use unmoved_shim::points::time::{HostTime, SECOND};
use xen_abi::evtchn::{self, AllocUnbound, BindVirq, Status};
use xen_abi::hvm;
use xen_abi::memory::{self, AddToPhysmap, Reservation};
use xen_abi::sched::{self, Poll, ShutdownReason};
use xen_abi::shared_info::{
    EVTCHN_MASK, EVTCHN_PENDING, WC_NSEC, WC_SEC, WC_SEC_HI, WC_VERSION, time_info, vcpu_info,
};
use xen_abi::vcpu::{self, SetSingleshotTimer};
use xen_abi::{DomId, Errno, Mfn, Port, hypercall as nr};
use zerocopy::{FromBytes, IntoBytes};

use super::instructions;
use super::layout::{self, gfn};

/// Whether hypercalls are made by VMMCALL (AMD) or VMCALL.
static USE_VMMCALL: AtomicBool = AtomicBool::new(false);

/// Makes a hypercall.
///
/// # Safety
///
/// What the arguments point to must be as the call expects, and stay for its length.
unsafe fn hypercall(number: u64, args: [u64; 3]) -> Result<u64, Errno> {
    let [mut rdi, mut rsi, mut rdx] = args;
    let result: u64;
    // SAFETY: by the caller's promise; the registers that a debug build of Xen destroys are named.
    unsafe {
        if USE_VMMCALL.load(Ordering::Relaxed) {
            asm!("vmmcall", inlateout("rax") number => result, inlateout("rdi") rdi,
                 inlateout("rsi") rsi, inlateout("rdx") rdx, options(nostack));
        } else {
            asm!("vmcall", inlateout("rax") number => result, inlateout("rdi") rdi,
                 inlateout("rsi") rsi, inlateout("rdx") rdx, options(nostack));
        }
    }
    let _ = (rdi, rsi, rdx);
    Errno::from_rax(result)
}

/// Makes a hypercall of the form `(command, pointer)`.
fn op<T: FromBytes + IntoBytes>(number: u64, command: u64, arg: &mut T) -> Result<u64, Errno> {
    // SAFETY: the structure is the one that the command is defined for, by the callers.
    unsafe { hypercall(number, [command, core::ptr::from_mut(arg) as u64, 0]) }
}

/// Finds Xen, and how hypercalls are made; `false` when this is another hypervisor.
pub fn detect() -> bool {
    let is_xen = (0x4000_0000..0x4001_0000).step_by(0x100).any(|base| {
        let [_, b, c, d] = instructions::cpuid(base, 0);
        [b, c, d].as_bytes() == b"XenVMMXenVMM"
    });
    let [_, b, c, d] = instructions::cpuid(0, 0);
    let is_amd = matches!([b, d, c].as_bytes(), b"AuthenticAMD" | b"HygonGenuine");
    USE_VMMCALL.store(is_amd, Ordering::Relaxed);
    is_xen
}

/// Reads one of the domain's parameters.
pub fn param(index: u32) -> Result<u64, Errno> {
    let mut param = hvm::Param {
        domid: DomId::SELF.0,
        index,
        ..hvm::Param::default()
    };
    op(nr::HVM_OP, hvm::GET_PARAM, &mut param)?;
    Ok(param.value)
}

/// Sets one of the domain's parameters.
fn set_param(index: u32, value: u64) -> Result<(), Errno> {
    let mut param = hvm::Param {
        domid: DomId::SELF.0,
        index,
        value,
        ..hvm::Param::default()
    };
    op(nr::HVM_OP, hvm::SET_PARAM, &mut param).map(drop)
}

/// Makes a page that belongs to the host appear at a frame number.
pub fn add_to_physmap(space: u32, index: u64, frame: Mfn) -> Result<(), Errno> {
    let mut add = AddToPhysmap {
        domid: DomId::SELF.0,
        size: 0,
        space,
        idx: index,
        gpfn: frame.0,
    };
    op(nr::MEMORY_OP, memory::op::ADD_TO_PHYSMAP, &mut add).map(drop)
}

/// Returns the domain's UUID.
pub fn uuid() -> [u8; 16] {
    let mut uuid = [0; 16];
    let _ = op(
        nr::XEN_VERSION,
        xen_abi::version::op::GUEST_HANDLE,
        &mut uuid,
    );
    uuid
}

/// Writes a line to the domain's console, for a shim that has no guest (yet) whose output it could
/// come between.  What does not fit the ring is lost: nobody waits here.
pub fn say_on_console(text: fmt::Arguments<'_>) {
    use xen_abi::console::{OUT, OUT_CONS, OUT_PROD, OUT_SIZE};
    struct Writer(Mfn);
    impl fmt::Write for Writer {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            let at = |offset| (layout::DIRECT + self.0.addr()) as usize + offset;
            let index = |offset: usize| {
                // SAFETY: the page is the console ring's, which both the boot tables and the later
                // ones map; the fields are aligned and used as atomics by both ends.
                unsafe { AtomicU32::from_ptr(at(offset) as *mut u32) }
            };
            for byte in s.bytes() {
                let put = index(OUT_PROD).load(Ordering::Relaxed);
                if put.wrapping_sub(index(OUT_CONS).load(Ordering::Acquire)) >= OUT_SIZE {
                    break;
                }
                let place = at(OUT + (put & (OUT_SIZE - 1)) as usize) as *mut u8;
                // SAFETY: inside the ring's page.
                unsafe { place.write_volatile(byte) };
                index(OUT_PROD).store(put.wrapping_add(1), Ordering::Release);
            }
            Ok(())
        }
    }
    let (Ok(page), Ok(port)) = (
        param(hvm::param::CONSOLE_PFN),
        param(hvm::param::CONSOLE_EVTCHN),
    ) else {
        return;
    };
    // The toolstack puts the page below 4 GiB, where it is always mapped; a page elsewhere is no ring.
    if page == 0 || page >= 1 << 20 {
        return;
    }
    // The ring takes anything.
    let _ = fmt::Write::write_fmt(&mut Writer(Mfn(page)), text);
    let mut port = port as u32;
    let _ = op(nr::EVENT_CHANNEL_OP, evtchn::op::SEND, &mut port);
}

/// Ends the domain as crashed, without needing anything to work.
pub fn crash() -> ! {
    let mut reason = ShutdownReason::CRASH.0;
    let _ = op(nr::SCHED_OP, sched::op::SHUTDOWN, &mut reason);
    instructions::halt()
}

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
        && status.status == evtchn::status::VIRQ
        && status.detail == evtchn::virq::TIMER
}

/// Asks for the page and the port of one of the host's daemons.
fn ring(ring: Ring) -> Result<(Mfn, HostPort), Errno> {
    let (page, port) = match ring {
        Ring::Store => (hvm::param::STORE_PFN, hvm::param::STORE_EVTCHN),
        Ring::Console => (hvm::param::CONSOLE_PFN, hvm::param::CONSOLE_EVTCHN),
    };
    Ok((Mfn(param(page)?), HostPort(Port(param(port)? as u32))))
}

/// The frames of the domain's grant table.
pub struct GrantFrames;

impl TableFrames for GrantFrames {
    fn map_next(&mut self, index: usize) -> Option<Mfn> {
        let index = index as u64;
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
            let version = SHARED.load32(gfn::SHARED_INFO, WC_VERSION);
            fence(Ordering::SeqCst);
            let low = u64::from(SHARED.load32(gfn::SHARED_INFO, WC_SEC));
            let high = u64::from(SHARED.load32(gfn::SHARED_INFO, WC_SEC_HI));
            let nanos = u64::from(SHARED.load32(gfn::SHARED_INFO, WC_NSEC));
            fence(Ordering::SeqCst);
            if version & 1 == 0 && version == SHARED.load32(gfn::SHARED_INFO, WC_VERSION) {
                return (high << 32 | low) * SECOND + nanos;
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

    fn wall_clock_ns(&self) -> u64 {
        self.wall_clock()
    }

    fn arm_timer(&mut self, deadline_ns: Option<u64>) {
        let result = match deadline_ns {
            Some(timeout_abs_ns) => {
                let mut set = SetSingleshotTimer {
                    timeout_abs_ns,
                    flags: 0,
                    pad: 0,
                };
                // SAFETY: the structure is the one of the command.
                unsafe {
                    hypercall(
                        nr::VCPU_OP,
                        [vcpu::op::SET_SINGLESHOT_TIMER, 0, &raw mut set as u64],
                    )
                }
            }
            // SAFETY: the command takes no structure.
            None => unsafe { hypercall(nr::VCPU_OP, [vcpu::op::STOP_SINGLESHOT_TIMER, 0, 0]) },
        };
        if let Err(errno) = result {
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
            SHARED.fetch_and64(gfn::SHARED_INFO, at, !(1 << bit));
            // Anything left over is looked at by the next call.
            SHARED.fetch_or64(gfn::SHARED_INFO, vcpu_info::PENDING_SEL, selected);
            return Some(self.classify(HostPort(Port(word as u32 * 64 + bit))));
        }
        None
    }

    fn wait(&mut self, until_ns: Option<u64>) {
        let mut ports = alloc::vec![self.store.0.0, self.console.0.0, self.timer.0.0];
        ports.extend(self.devices.iter().map(|port| port.0.0).take(125));
        let mut poll = Poll {
            ports: ports.as_ptr() as u64,
            nr_ports: ports.len() as u32,
            pad: 0,
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
        self.reservation(memory::op::DECREASE_RESERVATION, frame)
    }

    fn populate_frame(&mut self, frame: Mfn) -> Result<(), Errno> {
        self.reservation(memory::op::POPULATE_PHYSMAP, frame)
    }

    fn shutdown(&mut self, reason: ShutdownReason) -> u64 {
        let mut reason = reason.0;
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
            for port in core::mem::take(&mut self.devices) {
                self.close(port);
            }
            self.close(self.timer);
        }
        *self = Self::connect()?;
        Ok(arrival)
    }
}

impl HostXen {
    fn reservation(&mut self, command: u64, frame: Mfn) -> Result<(), Errno> {
        let extent = frame.0;
        let mut reservation = Reservation {
            extent_start: &raw const extent as u64,
            nr_extents: 1,
            domid: DomId::SELF.0,
            ..Reservation::default()
        };
        match op(nr::MEMORY_OP, command, &mut reservation)? {
            1 => Ok(()),
            _ => Err(Errno::ENOMEM),
        }
    }
}
