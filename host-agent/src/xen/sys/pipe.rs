//! The size of pipes.

// UNSAFETY: one system call.
#![expect(unsafe_code, reason = "fcntl has no safe form in std")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets the capacity of a pipe, in bytes.
pub(crate) fn set_pipe_size(pipe: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the request takes a number, and the descriptor is open.
    let result = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
