//! ELF notes that a kernel carries for Xen (`xen/include/public/elfnote.h`).
//!
//! The owner of all of them is [`OWNER`]; numbers are little-endian and 1 to 8 bytes long, text is
//! NUL-terminated.

/// Name of the owner of Xen's notes.
pub const OWNER: &[u8] = b"Xen";

/// Free text (`XEN_ELFNOTE_INFO`).
pub const INFO: u32 = 0;
/// Virtual address of the entry point.
pub const ENTRY: u32 = 1;
/// Virtual address of the page that the hypercall stubs go to.
pub const HYPERCALL_PAGE: u32 = 2;
/// Virtual address that the first page of memory is mapped at.
pub const VIRT_BASE: u32 = 3;
/// What to subtract from the ELF's physical addresses to get pseudo-physical ones.
pub const PADDR_OFFSET: u32 = 4;
/// Version of Xen's interface that the kernel was built for, `"xen-3.0"`.
pub const XEN_VERSION: u32 = 5;
/// Name of the operating system.
pub const GUEST_OS: u32 = 6;
/// Its version.
pub const GUEST_VERSION: u32 = 7;
/// Loader to be used, `"generic"`.
pub const LOADER: u32 = 8;
/// 32-bit only: whether the kernel uses PAE.
pub const PAE_MODE: u32 = 9;
/// Features that the kernel knows, as text; those after a `!` it insists on.
pub const FEATURES: u32 = 10;
/// Whether the BSD symbol table is wanted, `"yes"`.
pub const BSD_SYMTAB: u32 = 11;
/// Lowest address that the hypervisor may use.
pub const HV_START_LOW: u32 = 12;
/// Pairs of mask and value that tell a valid level-1 entry.
pub const L1_MFN_VALID: u32 = 13;
/// Whether the kernel copes with a suspend that was called off.
pub const SUSPEND_CANCEL: u32 = 14;
/// Virtual address that the kernel wants the P2M list at.
pub const INIT_P2M: u32 = 15;
/// Whether the kernel takes the ramdisk by frame number, unmapped.
pub const MOD_START_PFN: u32 = 16;
/// Features that the kernel knows, as a bit map of `XENFEAT_*`.
pub const SUPPORTED_FEATURES: u32 = 17;
/// Physical address of the PVH entry point.
pub const PHYS32_ENTRY: u32 = 18;
/// Alignment and range that the kernel may be loaded at with the PVH entry point.
pub const PHYS32_RELOC: u32 = 19;
