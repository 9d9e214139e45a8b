//! Numbers and bits of the processor's registers, by the manuals' names (SDM Vol. 3A 2.5 and Vol. 4, APM Vol. 2 3.1 and
//! appendix A).  What is made of them is said where that is done.

/// Bits of CR0.
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1 << 0;
    /// WAIT obeys [`TS`].
    pub const MP: u64 = 1 << 1;
    /// The FPU traps at its next use.
    pub const TS: u64 = 1 << 3;
    /// There is a 387; always set.
    pub const ET: u64 = 1 << 4;
    /// Errors of the FPU are exceptions.
    pub const NE: u64 = 1 << 5;
    /// Ring 0 obeys read-only pages, too.
    pub const WP: u64 = 1 << 16;
    /// Alignment may be checked in ring 3.
    pub const AM: u64 = 1 << 18;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4.
pub mod cr4 {
    /// Ring 3 may not read the time-stamp counter.
    pub const TSD: u64 = 1 << 2;
    /// DR4 and DR5 are no aliases of DR6 and DR7.
    pub const DE: u64 = 1 << 3;
    /// Page-table entries of eight bytes.
    pub const PAE: u64 = 1 << 5;
    /// Machine checks are exceptions.
    pub const MCE: u64 = 1 << 6;
    /// FXSAVE, and SSE.
    pub const OSFXSR: u64 = 1 << 9;
    /// Errors of SSE are exceptions of their own.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// RDFSBASE and its like.
    pub const FSGSBASE: u64 = 1 << 16;
    /// XSAVE, and XCR0.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Ring 0 may not execute pages of ring 3.
    pub const SMEP: u64 = 1 << 20;
    /// Ring 0 may not touch pages of ring 3 unless AC is set.
    pub const SMAP: u64 = 1 << 21;
}

/// Bits of `EFER`.
pub mod efer {
    /// SYSCALL.
    pub const SCE: u64 = 1 << 0;
    /// Long mode is wanted.
    pub const LME: u64 = 1 << 8;
    /// Long mode is on.
    pub const LMA: u64 = 1 << 10;
    /// Pages may be not executable.
    pub const NXE: u64 = 1 << 11;
}

/// Numbers of model-specific registers.
pub mod msr {
    macro_rules! numbers {
        ($($name:ident = $value:literal;)*) => {
            $(#[doc = concat!("`", stringify!($name), "`")] pub const $name: u32 = $value;)*
        };
    }

    numbers! {
        P5_MC_ADDR = 0;
        P5_MC_TYPE = 1;
        TSC = 0x10;
        PLATFORM_ID = 0x17;
        APIC_BASE = 0x1b;
        SPEC_CTRL = 0x48;
        PRED_CMD = 0x49;
        UCODE_REV = 0x8b;
        PLATFORM_INFO = 0xce;
        MPERF = 0xe7;
        APERF = 0xe8;
        ARCH_CAPABILITIES = 0x10a;
        MISC_FEATURES_ENABLES = 0x140;
        SYSENTER_CS = 0x174;
        SYSENTER_ESP = 0x175;
        SYSENTER_EIP = 0x176;
        MCG_CAP = 0x179;
        MCG_STATUS = 0x17a;
        PERF_STATUS = 0x198;
        PERF_CTL = 0x199;
        THERM_CONTROL = 0x19a;
        THERM_STATUS = 0x19c;
        MISC_ENABLE = 0x1a0;
        ENERGY_PERF_BIAS = 0x1b0;
        PAT = 0x277;
        PERF_CAPABILITIES = 0x345;
        MC0_CTL = 0x400;
        MC31_MISC = 0x47f;
        HYPERCALL = 0x4000_0000;
        EFER = 0xc000_0080;
        STAR = 0xc000_0081;
        LSTAR = 0xc000_0082;
        CSTAR = 0xc000_0083;
        SFMASK = 0xc000_0084;
        FS_BASE = 0xc000_0100;
        GS_BASE = 0xc000_0101;
        KERNEL_GS_BASE = 0xc000_0102;
        TSC_AUX = 0xc000_0103;
        HWCR = 0xc001_0015;
        NB_CFG = 0xc001_001f;
        FID_VID_CTL = 0xc001_0041;
        FID_VID_STATUS = 0xc001_0042;
        PSTATE_LIMIT = 0xc001_0061;
        PSTATE7 = 0xc001_006b;
        DR1_MASK = 0xc001_1019;
        DR3_MASK = 0xc001_101b;
        DR0_MASK = 0xc001_1027;
        DE_CFG = 0xc001_1029;
    }
}
