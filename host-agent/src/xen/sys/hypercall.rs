//! Hypercalls through `/dev/xen/privcmd`, and the buffers in `/dev/xen/hypercall` that they work on.

// UNSAFETY: the kernel and Xen read and write what the arguments point to.
#![expect(unsafe_code, reason = "ioctls take addresses")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use super::Mapping;
use crate::job::PAGE_SIZE;

/// `_IOC(_IOC_NONE, 'P', nr, size)`, as `<xen/privcmd.h>` numbers its requests.
const fn request(nr: u64, size: usize) -> libc::Ioctl {
    ((size as u64) << 16 | (b'P' as u64) << 8 | nr) as libc::Ioctl
}

const HYPERCALL: libc::Ioctl = request(0, size_of::<HypercallArg>());
const MMAPBATCH_V2: libc::Ioctl = request(4, size_of::<MmapBatchV2>());
const MMAP_RESOURCE: libc::Ioctl = request(7, size_of::<MmapResource>());

/// `privcmd_hypercall_t`.
#[repr(C)]
struct HypercallArg {
    op: u64,
    arg: [u64; 5],
}
const _: () = assert!(size_of::<HypercallArg>() == 48);

/// `privcmd_mmapbatch_v2_t`.
#[repr(C)]
struct MmapBatchV2 {
    num: u32,
    dom: u16,
    addr: u64,
    arr: *const u64,
    err: *mut i32,
}
const _: () = assert!(size_of::<MmapBatchV2>() == 32);

/// `struct privcmd_mmap_resource`.
#[repr(C)]
struct MmapResource {
    dom: u16,
    kind: u32,
    id: u32,
    idx: u32,
    num: u64,
    addr: u64,
}
const _: () = assert!(size_of::<MmapResource>() == 32);

/// Memory that a hypercall may work on: the kernel keeps it in place.
#[derive(Debug)]
pub(crate) struct Buffer(Mapping);

impl Buffer {
    /// Its length in bytes, which may exceed what was asked for.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Copies out.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        self.0.read(offset, into);
    }

    /// Copies in.
    pub(crate) fn write(&mut self, offset: usize, from: &[u8]) {
        self.0.write(offset, from);
    }
}

/// An argument of a hypercall.
pub(crate) enum Argument<'a, 'b> {
    /// A number.
    Value(u64),
    /// A structure that Xen reads and writes.  At the given byte offsets it holds addresses of other
    /// buffers.  Addresses are filled in here and nowhere else.
    Structure(&'a mut Buffer, &'a mut [(usize, &'b mut Buffer)]),
}

/// What a hypercall returned; never negative.
pub(crate) type Reply = u64;

/// Access to Xen.
#[derive(Debug)]
pub(crate) struct Privcmd {
    privcmd: File,
    buffers: File,
}

impl Privcmd {
    /// Opens both devices.
    pub(crate) fn open() -> io::Result<Self> {
        let open = |path| OpenOptions::new().read(true).write(true).open(path);
        Ok(Self {
            privcmd: open("/dev/xen/privcmd")?,
            buffers: open("/dev/xen/hypercall")?,
        })
    }

    /// A zeroed buffer of at least this many bytes.
    pub(crate) fn buffer(&self, bytes: usize) -> io::Result<Buffer> {
        let len = bytes.max(1).next_multiple_of(PAGE_SIZE);
        Mapping::new(&self.buffers, len, true).map(Buffer)
    }

    /// Makes a hypercall with up to five arguments.  The caller vouches for the operation: Xen interprets the
    /// numbers in a structure as meant, and writes no more to a buffer than fits.
    ///
    /// # Errors
    /// The error number that Xen returned.
    pub(in crate::xen) fn call<const N: usize>(
        &self,
        op: u64,
        arguments: [Argument<'_, '_>; N],
    ) -> io::Result<Reply> {
        const { assert!(N <= 5) };
        let mut call = HypercallArg { op, arg: [0; 5] };
        for (value, argument) in call.arg.iter_mut().zip(arguments) {
            *value = match argument {
                Argument::Value(number) => number,
                Argument::Structure(structure, nested) => {
                    for (offset, buffer) in nested {
                        structure.write(*offset, &buffer.0.address().to_ne_bytes());
                    }
                    structure.0.address()
                }
            };
        }
        // SAFETY: 1. `call` is the structure that the request takes.  2. The addresses in it and in what it
        // points to are those of mapped buffers, which are borrowed exclusively until Xen is done.
        let reply = unsafe { libc::ioctl(self.privcmd.as_raw_fd(), HYPERCALL, &raw mut call) };
        // The kernel returns the result as an int; none of the results used here is larger.
        u64::try_from(reply).map_err(|_| io::Error::last_os_error())
    }

    /// Maps frames of a domain, in order.  `errors` gets 0 or a negative error number for each.  A frame that
    /// does not exist is not mapped and must not be touched.
    ///
    /// # Errors
    /// If no frame could be mapped.
    pub(crate) fn map_frames(
        &self,
        domid: u16,
        frames: &[u64],
        errors: &mut Vec<i32>,
        writable: bool,
    ) -> io::Result<Mapping> {
        let mapping = Mapping::new(&self.privcmd, frames.len() * PAGE_SIZE, writable)?;
        errors.clear();
        errors.resize(frames.len(), 0);
        let mut batch = MmapBatchV2 {
            num: u32::try_from(frames.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            dom: domid,
            addr: mapping.address(),
            arr: frames.as_ptr(),
            err: errors.as_mut_ptr(),
        };
        // SAFETY: 1. `batch` is the structure that the request takes.  2. `arr` and `err` have `num`
        // elements, the second borrowed exclusively.  3. The mapping has a page for each of them.
        let result = unsafe { libc::ioctl(self.privcmd.as_raw_fd(), MMAPBATCH_V2, &raw mut batch) };
        if result == 0 {
            return Ok(mapping);
        }
        let error = io::Error::last_os_error();
        // ENOENT: some frames are paged out; `errors` has each of them.
        if error.raw_os_error() == Some(libc::ENOENT) {
            return Ok(mapping);
        }
        Err(error)
    }

    /// Maps a frame of a domain's resource for reading; it need not be in the domain's memory
    /// (`XENMEM_acquire_resource`).
    ///
    /// # Errors
    /// If there is no such frame, or the kernel is older than Linux 4.18.
    pub(crate) fn map_resource(
        &self,
        domid: u16,
        kind: u32,
        id: u32,
        frame: u32,
    ) -> io::Result<Mapping> {
        let mapping = Mapping::new(&self.privcmd, PAGE_SIZE, false)?;
        let mut resource = MmapResource {
            dom: domid,
            kind,
            id,
            idx: frame,
            num: 1,
            addr: mapping.address(),
        };
        // SAFETY: 1. `resource` is the structure that the request takes.  2. The mapping has a page for the one
        // frame that is asked for.
        let result =
            unsafe { libc::ioctl(self.privcmd.as_raw_fd(), MMAP_RESOURCE, &raw mut resource) };
        if result == 0 {
            return Ok(mapping);
        }
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::{HYPERCALL, MMAP_RESOURCE, MMAPBATCH_V2};

    #[test]
    fn requests_have_the_headers_numbers() {
        assert_eq!(HYPERCALL, 0x30_5000);
        assert_eq!(MMAPBATCH_V2, 0x20_5004);
        assert_eq!(MMAP_RESOURCE, 0x20_5007);
    }
}
