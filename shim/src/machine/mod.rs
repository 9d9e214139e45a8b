//! The machine that the image runs on: everything that takes a privileged instruction, an
//! assembly stub or a raw address.  Only the image has it; the library is tested without.

#![expect(
    unsafe_code,
    reason = "the machine: memory, processor and hypervisor have no safe form"
)]

pub mod cpu;
pub mod debug;
pub mod entry;
pub mod frames;
pub mod globals;
pub mod heap;
pub mod instructions;
pub mod layout;
pub mod memory;
pub mod paging;
pub mod tables;
pub mod xen;

pub use cpu::Bare;
