//! What a PV guest is started with (`struct start_info`, `xen/include/public/xen.h`).

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of [`StartInfo::cmd_line`], the terminating NUL included (`MAX_GUEST_CMDLINE`).
pub const MAX_CMD_LINE: usize = 1024;

/// What [`StartInfo::magic`] starts with for a 64-bit guest; zeroes follow.
pub const MAGIC_X86_64: &[u8] = b"xen-3.0-x86_64";

/// The domain may use the hardware (`SIF_PRIVILEGED`).
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// The domain is the control domain (`SIF_INITDOMAIN`).
pub const SIF_INITDOMAIN: u32 = 1 << 1;
/// The ramdisk is a multiboot module (`SIF_MULTIBOOT_MOD`).
pub const SIF_MULTIBOOT_MOD: u32 = 1 << 2;
/// [`StartInfo::mod_start`] is a frame number, not an address (`SIF_MOD_START_PFN`).
pub const SIF_MOD_START_PFN: u32 = 1 << 3;

/// The page whose virtual address is in `rsi` when the first vCPU starts.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StartInfo {
    /// `"xen-<version>-<platform>"`, zero-padded.
    pub magic: [u8; 32],
    /// Pages that the domain has.
    pub nr_pages: u64,
    /// *Machine address* of the shared info page.
    pub shared_info: u64,
    /// `SIF_*`.
    pub flags: u32,
    /// Zero.
    pub pad0: u32,
    /// Machine frame of the xenstore ring.
    pub store_mfn: u64,
    /// Event channel of the xenstore ring.
    pub store_evtchn: u32,
    /// Zero.
    pub pad1: u32,
    /// Machine frame of the console ring.
    pub console_mfn: u64,
    /// Event channel of the console ring.
    pub console_evtchn: u32,
    /// Zero.
    pub pad2: u32,
    /// Virtual address of the page tables, which start with the top level.
    pub pt_base: u64,
    /// Page-table frames of the kernel's mapping, contiguous from `pt_base`.
    pub nr_pt_frames: u64,
    /// Virtual address of the P2M list.
    pub mfn_list: u64,
    /// Virtual address of the ramdisk, or its first PFN (see [`SIF_MOD_START_PFN`]), or 0.
    pub mod_start: u64,
    /// Bytes of the ramdisk.
    pub mod_len: u64,
    /// Command line, NUL-terminated.
    pub cmd_line: [u8; MAX_CMD_LINE],
    /// First PFN of the P2M list and its page tables, if the list is outside the kernel's mapping.
    pub first_p2m_pfn: u64,
    /// Frames from there on.
    pub nr_p2m_frames: u64,
}

const _: () = {
    assert!(size_of::<StartInfo>() == 1168);
    assert!(offset_of!(StartInfo, nr_pages) == 32);
    assert!(offset_of!(StartInfo, shared_info) == 40);
    assert!(offset_of!(StartInfo, flags) == 48);
    assert!(offset_of!(StartInfo, store_mfn) == 56);
    assert!(offset_of!(StartInfo, store_evtchn) == 64);
    assert!(offset_of!(StartInfo, console_mfn) == 72);
    assert!(offset_of!(StartInfo, console_evtchn) == 80);
    assert!(offset_of!(StartInfo, pt_base) == 88);
    assert!(offset_of!(StartInfo, nr_pt_frames) == 96);
    assert!(offset_of!(StartInfo, mfn_list) == 104);
    assert!(offset_of!(StartInfo, mod_start) == 112);
    assert!(offset_of!(StartInfo, mod_len) == 120);
    assert!(offset_of!(StartInfo, cmd_line) == 128);
    assert!(offset_of!(StartInfo, first_p2m_pfn) == 1152);
    assert!(offset_of!(StartInfo, nr_p2m_frames) == 1160);
};
