//! What a shim says and does at its end, or when there is no guest yet: it needs nothing to work but Xen.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use xen_abi::sched::{self, ShutdownReason};
use xen_abi::{Mfn, evtchn, hvm, hypercall as nr};

use super::call::{op, param};
use crate::machine::{instructions, layout};

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
                // Ours to write, so nobody else's store has to be seen.
                let put = index(OUT_PROD).load(Ordering::Relaxed);
                // Acquire: the byte is stored only after the daemon has read what was there. A
                // consumer's index that makes no sense looks like a full ring.
                if put.wrapping_sub(index(OUT_CONS).load(Ordering::Acquire)) >= OUT_SIZE {
                    break;
                }
                let place = at(OUT + (put & (OUT_SIZE - 1)) as usize) as *mut u8;
                // SAFETY: inside the ring's page.
                unsafe { place.write_volatile(byte) };
                // Release: the byte is there before the index says so.
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
    // SAFETY: no breakpoint is armed by this value.
    unsafe { instructions::set_debug_register(7, unmoved_shim::cpu::first::DR7) };
    let mut reason = ShutdownReason::CRASH.0;
    let _ = op(nr::SCHED_OP, sched::op::SHUTDOWN, &mut reason);
    instructions::halt()
}
