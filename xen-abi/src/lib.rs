//! Xen's public interface as Rust types: numbers, structures and layouts that a PV guest, a PVH
//! guest and the hypervisor agree on.
//!
//! Nothing here acts; names are those of Xen's public headers (`xen/include/public/`), sizes and
//! offsets are asserted at compile time.  Numbers that arrive from outside are newtypes with named
//! constants, never enums, so that an unknown value is representable.

#![no_std]
#![forbid(unsafe_code)]

mod errno;
mod ids;

pub mod blkif;
pub mod callback;
pub mod console;
pub mod elfnote;
pub mod evtchn;
pub mod grant;
pub mod hvm;
pub mod hypercall;
pub mod memory;
pub mod mmu;
pub mod netif;
pub mod physdev;
pub mod pvh;
pub mod sched;
pub mod shared_info;
pub mod start_info;
pub mod trap;
pub mod vcpu;
pub mod version;
pub mod xenbus;
pub mod xs_wire;

pub use errno::Errno;
pub use ids::{DomId, GuestVa, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn, Port};
