//! The part of the shim that can run, and be tested, on any host: no instruction here is privileged.
//!
//! The machine is reached through [`mem::Frames`] and [`mem::GuestMemory`], the hypervisor underneath
//! through the traits of [`host`]; the image in `main.rs` implements them on bare metal and the tests
//! implement them on ordinary memory.

#![cfg_attr(not(any(test, feature = "testing")), no_std)]

extern crate alloc;

pub mod boot;
pub mod cpu;
pub mod emulate;
pub mod guest;
pub mod heap;
pub mod host;
pub mod hypercall;
pub mod mem;
pub mod migrate;
pub mod mm;
pub mod options;
pub mod points;
pub mod registers;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
