//! Memory behind a device file.  It is copied in and out but never referenced, because others write to it.

// UNSAFETY: mmap, munmap, and copies to and from what they give.
#![expect(unsafe_code, reason = "mappings are made by system calls")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

/// A shared mapping of a device file; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `&self` methods only copy.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from its beginning.
    pub(crate) fn new(file: &File, len: usize, writable: bool) -> io::Result<Self> {
        let write = if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | write,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, len })
    }

    /// Its start address in this process.
    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies from `offset`.  A page that others write meanwhile may be torn.
    ///
    /// # Panics
    /// If the range is outside the mapping.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        let start = self.at(offset, into.len());
        // SAFETY: `at` has checked the source; the destination is another, exclusive, allocation.
        unsafe { ptr::copy_nonoverlapping(start, into.as_mut_ptr(), into.len()) };
    }

    /// Appends `len` bytes from `offset`, without zeroing the memory first.
    ///
    /// # Panics
    /// If the range is outside the mapping.
    pub(crate) fn append(&self, offset: usize, len: usize, to: &mut Vec<u8>) {
        let start = self.at(offset, len);
        to.reserve(len);
        let spare = to.spare_capacity_mut().as_mut_ptr().cast();
        // SAFETY: `at` has checked the source, `reserve` has made the room, which nothing else refers to.
        unsafe { ptr::copy_nonoverlapping(start, spare, len) };
        // SAFETY: so many bytes beyond the old length have just been written.
        unsafe { to.set_len(to.len() + len) };
    }

    /// Copies to `offset`.
    ///
    /// # Panics
    /// If the range is outside the mapping.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        let start = self.at(offset, from.len());
        // SAFETY: `at` has checked the destination, and mappings are never referenced as slices.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), start, from.len()) };
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len), "outside a mapping");
        // SAFETY: within the mapping, as just checked.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping that `new` made; nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::Mapping;

    fn mapping() -> Mapping {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        Mapping::new(&file, 8192, true).unwrap()
    }

    #[test]
    fn what_is_written_can_be_read() {
        let mapping = mapping();
        mapping.write(4094, b"abcd");
        let mut read = [0; 6];
        mapping.read(4093, &mut read);
        assert_eq!(&read, b"\0abcd\0");
        let mut appended = b"x".to_vec();
        mapping.append(4094, 2, &mut appended);
        assert_eq!(appended, b"xab");
    }

    #[test]
    #[should_panic(expected = "outside a mapping")]
    fn nothing_is_read_beyond_the_end() {
        mapping().read(8190, &mut [0; 3]);
    }
}
