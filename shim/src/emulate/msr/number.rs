//! Numbers of the MSRs that a PV guest may find.

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
