//! A switch that SIGTERM and SIGINT turn on, and counting signal handlers for checks.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::check;

static ASKED_TO_STOP: AtomicBool = AtomicBool::new(false);
static COUNTED: AtomicU64 = AtomicU64::new(0);

extern "C" fn ask_to_stop(_signal: libc::c_int) {
    ASKED_TO_STOP.store(true, Ordering::Relaxed);
}

extern "C" fn count(_signal: libc::c_int) {
    COUNTED.fetch_add(1, Ordering::Relaxed);
}

fn install(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid: no flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler only touches atomics, so it may run at any time; `action` lives.
    check(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    Ok(())
}

/// From now on SIGTERM and SIGINT are noted instead of ending the process.
///
/// # Errors
/// As `sigaction(2)`.
pub fn note_stop_requests() -> io::Result<()> {
    install(libc::SIGTERM, ask_to_stop)?;
    install(libc::SIGINT, ask_to_stop)
}

/// Whether SIGTERM or SIGINT came.
#[must_use]
pub fn stop_requested() -> bool {
    ASKED_TO_STOP.load(Ordering::Relaxed)
}

/// From now on `signal` is counted.
///
/// # Errors
/// As `sigaction(2)`.
pub fn count_signal(signal: libc::c_int) -> io::Result<()> {
    install(signal, count)
}

/// How many counted signals were delivered to this process.
#[must_use]
pub fn counted() -> u64 {
    COUNTED.load(Ordering::Relaxed)
}

/// Sends `signal` to the calling thread; handled before the call returns.
pub fn raise(signal: libc::c_int) {
    // SAFETY: raise touches no memory of ours.
    unsafe { libc::raise(signal) };
}
