//! Turns the leaves of the machine into those of the guest, leaf by leaf.

use super::features::{
    AMD_REPEATED, EXTENDED_1_ECX, EXTENDED_1_EDX, EXTENDED_8_EBX, EXTENDED_21_EAX, EXTENDED_21_ECX,
    HYPERVISOR, LEAF_1_ECX, LEAF_1_EDX, LEAF_7_1_EAX, LEAF_7_1_EDX, LEAF_7_2_EDX, LEAF_7_EBX,
    LEAF_7_ECX, LEAF_7_EDX, LEAF_D_1_EAX,
};
use super::{FrozenCpuid, Leaf, XSAVE, xstate};

/// The highest basic leaf that a PV guest sees.
const MAX_BASIC: u32 = 0xd;
/// The first extended leaf.
const EXTENDED: u32 = 0x8000_0000;
/// The highest extended leaf that a PV guest sees.
const MAX_EXTENDED: u32 = EXTENDED + 0x21;
/// Cache descriptions beyond this many are ignored; machines have four.
const MAX_CACHES: u32 = 8;

/// Whose variant of the instruction set a CPU implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD, or Hygon, which is the same in all that matters here.
    Amd,
    /// Anybody else.
    Other,
}

impl Vendor {
    /// Reads it from CPUID leaf 0.
    pub fn of([_, ebx, ecx, edx]: Leaf) -> Self {
        match [ebx, edx, ecx].map(u32::to_le_bytes).as_flattened() {
            b"GenuineIntel" => Self::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Self::Amd,
            _ => Self::Other,
        }
    }
}

/// Adds all leaves but the hypervisor's own.
pub fn fill(table: &mut FrozenCpuid, raw: &impl Fn(u32, u32) -> Leaf) {
    let mut leaf0 = raw(0, 0);
    table.vendor = Vendor::of(leaf0);
    leaf0[0] = leaf0[0].min(MAX_BASIC);
    table.add(0, 0, true, leaf0);
    // In ascending order: later leaves look up what was kept of earlier ones, and the lookup is a
    // binary search.
    for leaf in 1..=leaf0[0] {
        basic(table, raw, leaf);
    }
    let mut extended0 = raw(EXTENDED, 0);
    // A processor without extended leaves answers with the last basic one.
    if extended0[0] >> 16 == EXTENDED >> 16 {
        extended0[0] = extended0[0].min(MAX_EXTENDED);
        table.add(EXTENDED, 0, true, extended0);
        for leaf in EXTENDED + 1..=extended0[0] {
            let regs = extended(table, leaf, raw(leaf, 0));
            table.add(leaf, 0, true, regs);
        }
    }
}

/// Adds one basic leaf.  Power management (6), monitors (5), direct cache access (9), counters
/// (0xa) and APIC topology (0xb) are nothing that the guest has.
fn basic(table: &mut FrozenCpuid, raw: &impl Fn(u32, u32) -> Leaf, leaf: u32) {
    match leaf {
        1 => {
            let [eax, ebx, ecx, edx] = raw(1, 0);
            // Keeps brand index and CLFLUSH size; one logical CPU with APIC id 0.
            let ebx = ebx & 0xffff | 1 << 16;
            let ecx = ecx & LEAF_1_ECX | HYPERVISOR;
            table.add(1, 0, true, [eax, ebx, ecx, edx & LEAF_1_EDX]);
        }
        2 => table.add(2, 0, true, raw(2, 0)),
        4 => {
            for n in 0..MAX_CACHES {
                let [eax, ebx, ecx, edx] = raw(4, n);
                if eax & 0x1f == 0 {
                    break;
                }
                // Bits 31:14 count the CPUs that share a cache or package: each vCPU is alone.
                table.add(4, n, false, [eax & 0x3fff, ebx, ecx, edx]);
            }
        }
        7 => {
            let [last, ebx, ecx, edx] = raw(7, 0);
            let avx512 = if usable(table, raw) & 1 << 5 != 0 {
                !0
            } else {
                !AVX512_EBX
            };
            let last = last.min(2);
            let regs = [
                last,
                ebx & LEAF_7_EBX & avx512,
                ecx & LEAF_7_ECX,
                edx & LEAF_7_EDX,
            ];
            table.add(7, 0, false, regs);
            if last >= 1 {
                let [eax, _, _, edx] = raw(7, 1);
                table.add(7, 1, false, [eax & LEAF_7_1_EAX, 0, 0, edx & LEAF_7_1_EDX]);
            }
            if last >= 2 {
                table.add(7, 2, false, [0, 0, 0, raw(7, 2)[3] & LEAF_7_2_EDX]);
            }
        }
        0xd if table.leaf(1, 0)[2] & XSAVE != 0 => extended_state(table, raw),
        _ => {}
    }
}

/// AVX512F and everything in leaf 7 `ebx` that needs it.
const AVX512_EBX: u32 = 1 << 16 | 1 << 17 | 1 << 21 | 1 << 28 | 1 << 30 | 1 << 31;

/// Returns the state components that the guest may use.
fn usable(table: &FrozenCpuid, raw: &impl Fn(u32, u32) -> Leaf) -> u64 {
    let ecx = table.leaf(1, 0)[2];
    if ecx & XSAVE == 0 || table.leaf(0, 0)[0] < 0xd {
        return 0;
    }
    let [low, _, _, high] = raw(0xd, 0);
    let machine = u64::from(high) << 32 | u64::from(low);
    xstate::supported(machine, ecx & 1 << 28 != 0, raw(7, 0)[1] & 1 << 16 != 0)
}

fn extended_state(table: &mut FrozenCpuid, raw: &impl Fn(u32, u32) -> Leaf) {
    let xcr0 = usable(table, raw);
    table.xcr0 = xcr0;
    for n in (2..63).filter(|n| xcr0 & 1 << n != 0) {
        let [size, offset, flags, _] = raw(0xd, n);
        table.add(0xd, n, false, [size, offset, flags & 2, 0]);
    }
    let all = xstate::standard_size(table, xcr0);
    table.add(0xd, 0, false, [xcr0 as u32, all, all, (xcr0 >> 32) as u32]);
    table.add(0xd, 1, false, [raw(0xd, 1)[0] & LEAF_D_1_EAX, 0, 0, 0]);
}

/// Returns one extended leaf.
fn extended(table: &FrozenCpuid, leaf: u32, [eax, ebx, ecx, edx]: Leaf) -> Leaf {
    match leaf - EXTENDED {
        1 => {
            let mut features = edx & EXTENDED_1_EDX;
            if table.vendor == Vendor::Amd {
                features |= table.leaf(1, 0)[3] & AMD_REPEATED;
            }
            [eax, ebx, ecx & EXTENDED_1_ECX, features]
        }
        // The brand string, and descriptions of caches and TLBs.
        2..=6 | 0x19 => [eax, ebx, ecx, edx],
        // Widths of physical and linear addresses; `ecx` would count cores.
        8 => [eax & 0xffff, ebx & EXTENDED_8_EBX, 0, 0],
        // How wide floating point execution is.
        0x1a => [eax & 7, 0, 0, 0],
        0x21 => [eax & EXTENDED_21_EAX, 0, ecx & EXTENDED_21_ECX, 0],
        // 7 would promise a TSC that never changes its rate, which a move can not promise;
        // the others describe topology, virtualisation, profiling and memory encryption.
        _ => [0; 4],
    }
}
