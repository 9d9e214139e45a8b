//! The console ring (`xen/include/public/io/console.h`).

/// Bytes from the host to the guest.
pub const IN_SIZE: u32 = 1024;
/// Bytes from the guest to the host.
pub const OUT_SIZE: u32 = 2048;
/// Offset of `in`.
pub const IN: usize = 0;
/// Offset of `out`.
pub const OUT: usize = 1024;
/// Offset of `in_cons`, u32.
pub const IN_CONS: usize = 3072;
/// Offset of `in_prod`, u32.
pub const IN_PROD: usize = 3076;
/// Offset of `out_cons`, u32.
pub const OUT_CONS: usize = 3080;
/// Offset of `out_prod`, u32.
pub const OUT_PROD: usize = 3084;
