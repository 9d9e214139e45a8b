//! A process that waits in the kernel for a page that never comes.
//!
//! A page is registered with userfaultfd and then asked for through `process_vm_readv`.  That call
//! pins the page with `get_user_pages`, whose faults are *killable* but not *interruptible*: the
//! process sleeps in state D, a signal does not wake it and the freezer, which accepts only tasks
//! that sleep freezably or come back to user mode, can not freeze it.  Only SIGKILL ends it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::task::Mapping;
use super::{check, check_long};

/// `UFFDIO_API` and `UFFDIO_REGISTER` of `linux/userfaultfd.h`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

const PAGE: usize = 4096;

/// Sleeps for ever in state D.  Returns only if that could not be brought about.
#[must_use]
pub fn wait_for_ever() -> io::Error {
    match try_wait() {
        Ok(()) => io::Error::other("the page came after all"),
        Err(error) => error,
    }
}

fn open_userfault() -> io::Result<OwnedFd> {
    // SAFETY: userfaultfd takes flags only and answers a new descriptor.
    let fd = check_long(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn try_wait() -> io::Result<()> {
    let page = Mapping::new(PAGE, false)?;
    let fault = open_userfault()?;
    // struct uffdio_api: api, features, ioctls.
    let mut api = [UFFD_API, 0, 0];
    // SAFETY: the kernel reads and writes 24 bytes, which the array has.
    check(unsafe { libc::ioctl(fault.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) })?;
    // struct uffdio_register: start, len, mode, ioctls.
    let start = page.address() as u64;
    let mut register = [start, PAGE as u64, UFFDIO_REGISTER_MODE_MISSING, 0];
    // SAFETY: the kernel reads and writes 32 bytes, which the array has.
    check(unsafe { libc::ioctl(fault.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) })?;

    let mut target = [0_u8; 8];
    let local = libc::iovec {
        iov_base: target.as_mut_ptr().cast(),
        iov_len: target.len(),
    };
    let remote = libc::iovec {
        iov_base: page.address().cast(),
        iov_len: target.len(),
    };
    // SAFETY: both vectors describe live memory of at least the stated length.
    let moved = unsafe {
        libc::process_vm_readv(
            libc::pid_t::try_from(std::process::id()).map_err(io::Error::other)?,
            &raw const local,
            1,
            &raw const remote,
            1,
            0,
        )
    };
    if moved < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
