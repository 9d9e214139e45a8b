//! `xen_version` (`xen/include/public/version.h`, `features.h`).

/// Sub-operations (`XENVER_*`).
pub mod op {
    #![expect(missing_docs, reason = "each is the header's name without its prefix")]
    pub const VERSION: u64 = 0;
    pub const EXTRAVERSION: u64 = 1;
    pub const COMPILE_INFO: u64 = 2;
    pub const CAPABILITIES: u64 = 3;
    pub const CHANGESET: u64 = 4;
    pub const PLATFORM_PARAMETERS: u64 = 5;
    pub const GET_FEATURES: u64 = 6;
    pub const PAGESIZE: u64 = 7;
    pub const GUEST_HANDLE: u64 = 8;
    pub const COMMANDLINE: u64 = 9;
    pub const BUILD_ID: u64 = 10;
}

/// Bit of `XENFEAT_mmu_pt_update_preserve_ad`.
pub const FEATURE_MMU_PT_UPDATE_PRESERVE_AD: u32 = 5;
/// Bit of `XENFEAT_highmem_assist`.
pub const FEATURE_HIGHMEM_ASSIST: u32 = 6;
/// Bit of `XENFEAT_gnttab_map_avail_bits`.
pub const FEATURE_GNTTAB_MAP_AVAIL_BITS: u32 = 7;
