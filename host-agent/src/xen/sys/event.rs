//! Event channels of this domain, through `/dev/xen/evtchn`.

// UNSAFETY: two ioctls that take a structure.
#![expect(unsafe_code, reason = "ioctls take addresses")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// `_IOC(_IOC_NONE, 'E', nr, size)`, as `<xen/evtchn.h>` numbers its requests.
const fn request(nr: u64, size: usize) -> libc::Ioctl {
    ((size as u64) << 16 | (b'E' as u64) << 8 | nr) as libc::Ioctl
}

/// The process's event channels; those bound through it are closed with it.
#[derive(Debug)]
pub(crate) struct EventChannels(File);

impl EventChannels {
    /// Opens the device.
    pub(crate) fn open() -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/xen/evtchn")?;
        Ok(Self(file))
    }

    /// Binds to a port that `domid` has allocated for this domain; returns the local port.
    pub(crate) fn bind(&self, domid: u32, port: u32) -> io::Result<u32> {
        let mut argument = [domid, port];
        self.ioctl(request(1, size_of_val(&argument)), &mut argument)
    }

    /// Raises the event at the other end of a local port.
    pub(crate) fn notify(&self, port: u32) -> io::Result<()> {
        let mut argument = [port];
        self.ioctl(request(4, size_of_val(&argument)), &mut argument)
            .map(drop)
    }

    fn ioctl<const N: usize>(
        &self,
        request: libc::Ioctl,
        argument: &mut [u32; N],
    ) -> io::Result<u32> {
        // SAFETY: the request's number carries the size of the structure, and it has just that many words.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument.as_mut_ptr()) };
        u32::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}
