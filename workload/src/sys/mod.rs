//! The operating system's unsafe calls behind safe functions: one file per subject.

#![expect(unsafe_code, reason = "system calls that std does not have")]

pub mod block;
pub mod buffer;
pub mod interface;
pub mod signal;
pub mod system;
pub mod task;
pub mod time;
pub mod tty;
pub mod userfault;

use std::io;

/// Turns the C convention (-1 and `errno`) into a result.
///
/// # Errors
/// The current `errno` if `value` is negative.
pub fn check(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// As [`check`], for calls that answer a `long`.
///
/// # Errors
/// The current `errno` if `value` is negative.
pub fn check_long(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}
