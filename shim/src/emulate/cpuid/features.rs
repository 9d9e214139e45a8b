//! Which CPU features a 64-bit PV guest may see.
//!
//! The bits are those that Xen's `cpufeatureset.h` marks as available to all guests, less what
//! would tie the guest to a machine or show a topology it does not have.  Features that need ring 0
//! (PCID, SMEP, …), large pages or an APIC are useless in ring 3 and hidden.

/// Makes a mask of bit numbers.
const fn mask(bits: &[u32]) -> u32 {
    let mut mask = 0;
    let mut n = 0;
    while n < bits.len() {
        mask |= 1 << bits[n];
        n += 1;
    }
    mask
}

/// Leaf 1 `edx`: FPU DE TSC MSR PAE MCE CX8 APIC SEP MCA CMOV PAT CLFLUSH MMX FXSR SSE SSE2 SS.
pub const LEAF_1_EDX: u32 = mask(&[
    0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 19, 23, 24, 25, 26, 27,
]);

/// Leaf 1 `ecx`: SSE3 PCLMULQDQ SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND.
pub const LEAF_1_ECX: u32 = mask(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 30]);

/// Leaf 1 `ecx`: there is a hypervisor.
pub const HYPERVISOR: u32 = 1 << 31;

/// Leaf 7 `ebx`: FSGSBASE BMI1 AVX2 FDP_EXCP_ONLY BMI2 ERMS NO_FPU_SEL AVX512{F,DQ} RDSEED ADX
/// AVX512IFMA CLFLUSHOPT CLWB AVX512CD SHA AVX512{BW,VL}.
pub const LEAF_7_EBX: u32 = mask(&[
    0, 3, 5, 6, 8, 9, 13, 16, 17, 18, 19, 21, 23, 24, 28, 29, 30, 31,
]);

/// Leaf 7 `ecx`: PREFETCHWT1 AVX512VBMI AVX512VBMI2 GFNI VAES VPCLMULQDQ AVX512VNNI AVX512BITALG
/// AVX512VPOPCNTDQ RDPID CLDEMOTE.
pub const LEAF_7_ECX: u32 = mask(&[0, 1, 6, 8, 9, 10, 11, 12, 14, 22, 25]);

/// Leaf 7 `edx`: FSRM MD_CLEAR SERIALIZE AVX512FP16 IBRSB STIBP ARCH_CAPS SSBD.
pub const LEAF_7_EDX: u32 = mask(&[4, 10, 14, 23, 26, 27, 29, 31]);

/// Leaf 7.1 `eax`: SHA512 SM3 SM4 AVX-VNNI AVX512BF16 FZRM FSRS FSRCS AVX-IFMA.
pub const LEAF_7_1_EAX: u32 = mask(&[0, 1, 2, 4, 5, 10, 11, 12, 23]);

/// Leaf 7.1 `edx`: AVX-VNNI-INT8 AVX-NE-CONVERT AVX-VNNI-INT16 PREFETCHI.
pub const LEAF_7_1_EDX: u32 = mask(&[4, 5, 10, 14]);

/// Leaf 7.2 `edx`: PSFD MCDT_NO.
pub const LEAF_7_2_EDX: u32 = mask(&[0, 5]);

/// Leaf 0xd.1 `eax`: XSAVEOPT XSAVEC XGETBV1.
pub const LEAF_D_1_EAX: u32 = mask(&[0, 1, 2]);

/// Leaf 0x80000001 `edx`: SYSCALL NX MMXEXT RDTSCP LM 3DNOWEXT 3DNOW.
pub const EXTENDED_1_EDX: u32 = mask(&[11, 20, 22, 27, 29, 30, 31]);

/// Bits of leaf 1 `edx` that AMD repeats in leaf 0x80000001.
pub const AMD_REPEATED: u32 = 0x0183_f3ff;

/// Leaf 0x80000001 `ecx`: LAHF ABM SSE4A MISALIGNSSE 3DNOWPREFETCH XOP FMA4 TBM DBEXT.
pub const EXTENDED_1_ECX: u32 = mask(&[0, 5, 6, 7, 8, 11, 16, 21, 26]);

/// Leaf 0x80000008 `ebx`: CLZERO RSTR_FP_ERR_PTRS IBPB SSB_NO BTC_NO IBPB_RET.
pub const EXTENDED_8_EBX: u32 = mask(&[0, 2, 12, 26, 29, 30]);

/// Leaf 0x80000021 `eax`: NO_NEST_BP LFENCE_DISPATCH VERW_CLEAR NSCB FSRS FSRC EPSF FSRSC
/// PREFETCHI SBPB IBPB_BRTYPE SRSO_NO SRSO_US_NO.
pub const EXTENDED_21_EAX: u32 = mask(&[0, 2, 5, 6, 10, 11, 18, 19, 20, 27, 28, 29, 30]);

/// Leaf 0x80000021 `ecx`: TSA_SQ_NO TSA_L1_NO.
pub const EXTENDED_21_ECX: u32 = mask(&[1, 2]);

/// MSR `ARCH_CAPABILITIES`: what the CPU is not vulnerable to, and what VERW clears.
pub const ARCH_CAPABILITIES: u64 =
    mask(&[0, 1, 2, 4, 5, 6, 8, 13, 14, 15, 17, 19, 20, 24, 26, 27, 28]) as u64 | 1 << 62;
