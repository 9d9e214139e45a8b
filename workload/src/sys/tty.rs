//! A console that passes bytes as they are.

use std::io;
use std::os::fd::AsRawFd;

use super::check;

/// Switches off echo, line editing and signals on a terminal, so that orders come in unchanged and
/// do not come back; output keeps its line ends.
///
/// # Errors
/// As `tcgetattr(3)`: not a terminal.
pub fn make_raw(terminal: &impl AsRawFd) -> io::Result<()> {
    let fd = terminal.as_raw_fd();
    // SAFETY: an all-zero termios is a valid value to be overwritten.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live termios.
    check(unsafe { libc::tcgetattr(fd, &raw mut settings) })?;
    settings.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    settings.c_iflag &= !(libc::IXON | libc::IXOFF | libc::INLCR | libc::IGNCR);
    settings.c_iflag |= libc::ICRNL;
    settings.c_cc[libc::VMIN] = 1;
    settings.c_cc[libc::VTIME] = 0;
    // SAFETY: as above.
    check(unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw const settings) })?;
    Ok(())
}
