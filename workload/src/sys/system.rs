//! What only PID 1 and root do: mounts, modules, the kernel log, power.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::{check, check_long};

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Mounts a kernel file system on an existing directory.
///
/// # Errors
/// As `mount(2)`; `EBUSY` if it is there already.
pub fn mount(kind: &str, target: &str) -> io::Result<()> {
    let (kind, target) = (c_string(kind)?, c_string(target)?);
    // SAFETY: the strings live across the call; no data pointer is given.
    check(unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    })?;
    Ok(())
}

/// Loads an uncompressed kernel module from a file.
///
/// # Errors
/// As `finit_module(2)`; `EEXIST` if it is loaded already.
pub fn load_module_file(file: &File, parameters: &str) -> io::Result<()> {
    let parameters = c_string(parameters)?;
    // SAFETY: the descriptor is open and the string lives across the call.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            0,
        )
    })?;
    Ok(())
}

/// Loads a kernel module from memory.
///
/// # Errors
/// As `init_module(2)`.
pub fn load_module_image(image: &[u8], parameters: &str) -> io::Result<()> {
    let parameters = c_string(parameters)?;
    // SAFETY: pointer and length describe a live slice; the string lives across the call.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_init_module,
            image.as_ptr(),
            image.len(),
            parameters.as_ptr(),
        )
    })?;
    Ok(())
}

/// Kernel messages less urgent than `level` (1..=8) stay off the console.
///
/// # Errors
/// As `syslog(2)`.
pub fn console_level(level: u8) -> io::Result<()> {
    const SYSLOG_ACTION_CONSOLE_LEVEL: libc::c_int = 8;
    // SAFETY: this action takes no buffer.
    check(unsafe {
        libc::klogctl(
            SYSLOG_ACTION_CONSOLE_LEVEL,
            std::ptr::null_mut(),
            libc::c_int::from(level),
        )
    })?;
    Ok(())
}

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Switch off.
    Off,
    /// Start again.
    Restart,
    /// Stop without switching off.
    Halt,
}

/// Ends the machine at once, after writing back what is cached.  Returns only if refused.
#[must_use]
pub fn power(how: Power) -> io::Error {
    let command = match how {
        Power::Off => libc::RB_POWER_OFF,
        Power::Restart => libc::RB_AUTOBOOT,
        Power::Halt => libc::RB_HALT_SYSTEM,
    };
    // SAFETY: no memory is involved in either call.
    unsafe {
        libc::sync();
        libc::reboot(command);
    }
    io::Error::last_os_error()
}
