//! From the PVH entry to a PV guest that is ready to run.
//!
//! A guest kernel goes through three hands: [`payload`] finds the ELF image in the file that the
//! toolstack loaded and unpacks it, [`Kernel`] reads what it wants from its headers and notes, and
//! [`build`] lays out the guest's memory around it.  Nothing is copied that can be used in place:
//! the frames that the file was unpacked into become the guest's.

mod builder;
mod elf;
mod frames;
mod free;
mod hypercall_page;
mod layout;
mod load;
mod memory;
mod notes;
pub mod payload;
mod ramdisk;
pub mod share;
mod tables;

#[cfg(test)]
mod tests;

pub use builder::{BuildError, GuestFrames, HostPages, Start, build};
pub use elf::{Kernel, KernelError, Segment};
pub use frames::{FrameList, FrameRun};
pub use free::FreeMemory;
pub use hypercall_page::fill_hypercall_page;
pub use layout::{Layout, LayoutError};
pub use notes::{NoteError, Notes};
pub use ramdisk::{Truncated, check_ramdisk};
