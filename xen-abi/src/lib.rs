//! Xen's public interface as Rust types: numbers, structures and layouts that a PV guest, a PVH
//! guest and the hypervisor agree on.
//!
//! Nothing here acts; names are those of Xen's public headers (`xen/include/public/`), sizes and
//! offsets are asserted at compile time.

#![no_std]
#![forbid(unsafe_code)]
