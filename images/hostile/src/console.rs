//! Lines on the PV console.  The ring's other end may be slow: a writer waits, events masked.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use xen_abi::Mfn;
use xen_abi::console::{OUT, OUT_CONS, OUT_PROD, OUT_SIZE};
use xen_abi::evtchn::op;
use xen_abi::start_info::StartInfo;
use xen_abi::{hypercall as nr, sched};

use crate::call::hypercall;
use crate::memory;

static RING: AtomicU64 = AtomicU64::new(0);
static PORT: AtomicU32 = AtomicU32::new(0);

/// Prints a line.
macro_rules! say {
    ($($arg:tt)*) => { $crate::console::line(format_args!($($arg)*)) };
}
pub(crate) use say;

/// Finds the ring.
pub fn init(info: &StartInfo) {
    RING.store(memory::va_of(Mfn(info.console_mfn)), Ordering::Relaxed);
    PORT.store(info.console_evtchn, Ordering::Relaxed);
}

/// The console's port, which attacks leave alone so that they can be told of.
pub fn port() -> u32 {
    PORT.load(Ordering::Relaxed)
}

/// Prints a line.
pub fn line(text: fmt::Arguments<'_>) {
    // The ring takes anything.
    let _ = Ring.write_fmt(text);
    let _ = Ring.write_str("\n");
    notify();
}

/// Waits until everything has been taken.
pub fn drain() {
    while index(OUT_CONS).load(Ordering::Acquire) != index(OUT_PROD).load(Ordering::Relaxed) {
        wait();
    }
}

struct Ring;

impl Write for Ring {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            let put = index(OUT_PROD).load(Ordering::Relaxed);
            while put.wrapping_sub(index(OUT_CONS).load(Ordering::Acquire)) >= OUT_SIZE {
                wait();
            }
            let at = RING.load(Ordering::Relaxed) + (OUT as u64) + u64::from(put & (OUT_SIZE - 1));
            // SAFETY: inside the ring page, which is mapped for good and read by nobody here.
            unsafe { (at as *mut u8).write_volatile(byte) };
            index(OUT_PROD).store(put.wrapping_add(1), Ordering::Release);
        }
        Ok(())
    }
}

fn index(offset: usize) -> &'static AtomicU32 {
    let at = RING.load(Ordering::Relaxed) as usize + offset;
    // SAFETY: an aligned field of the ring page, which stays mapped; both ends use it atomically.
    unsafe { AtomicU32::from_ptr(at as *mut u32) }
}

fn notify() {
    let port = port();
    hypercall(
        nr::EVENT_CHANNEL_OP,
        [op::SEND, &raw const port as u64, 0, 0, 0],
    );
}

fn wait() {
    notify();
    hypercall(nr::SCHED_OP, [sched::op::YIELD, 0, 0, 0, 0]);
}
