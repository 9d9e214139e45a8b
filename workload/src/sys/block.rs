//! Block devices: opening without the page cache, size, discard.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::check;

/// `BLKDISCARD` of `linux/fs.h`.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// Opens a device or file for reading and writing; `direct` bypasses the page cache.
///
/// # Errors
/// As `open(2)`.
pub fn open(path: &Path, direct: bool) -> io::Result<File> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
}

/// The size in bytes of a device or file.
///
/// # Errors
/// As `lseek(2)`.
pub fn size(file: &File) -> io::Result<u64> {
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Tells the device that `length` bytes from `offset` hold nothing of value.
///
/// # Errors
/// `Unsupported` for what is not a block device, else as the device answers.
pub fn discard(file: &File, offset: u64, length: u64) -> io::Result<()> {
    if !file.metadata()?.file_type().is_block_device() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let range = [offset, length];
    // SAFETY: BLKDISCARD reads two u64 from the pointer, which is a live array of just that.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) })?;
    Ok(())
}
