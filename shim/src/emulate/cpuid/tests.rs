//! What a guest sees of a machine, and that it never changes.

use proptest::prelude::any;
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::{CAPACITY, FrozenCpuid, HypervisorLeaves, Leaf, OSXSAVE, Vendor, View, XSAVE};

const HYPERVISOR: HypervisorLeaves = HypervisorLeaves {
    version: (4, 17),
    machine_address_width: 40,
};

/// A server with AVX-512, protection keys, MPX and AMX.
fn server(leaf: u32, subleaf: u32) -> Leaf {
    match (leaf, subleaf) {
        (0, _) => [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        (1, _) => [0x806f8, 0x0b20_0800, !0, !0],
        (2, _) => [0x00fe_ff01, 0xf0, 0, 0],
        (4, 0) => [0x7c00_4121, 0x02c0_003f, 63, 0],
        (4, 1) => [0x7c00_4122, 0x01c0_003f, 63, 0],
        (5 | 6 | 9 | 0xa, _) => [!0; 4],
        (7, 0) => [2, !0, !0, !0],
        (7, 1 | 2) => [!0; 4],
        (0xb, n) => [1, 2, 0x100 | n, 11],
        (0xd, 0) => [0x602e7, 0x2b00, 0x2b00, 0],
        (0xd, 1) => [0x1f, 0x2b00, 0x1900, 0],
        (0xd, 2) => [256, 576, 0, 0],
        (0xd, 5) => [64, 1088, 0, 0],
        (0xd, 6) => [512, 1152, 0, 0],
        (0xd, 7) => [1024, 1664, 0, 0],
        (0xd, 9) => [8, 2688, 0, 0],
        (0xd, 18) => [8192, 2816, 6, 0],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0001, _) => [0, 0, !0, !0],
        (0x8000_0002..=0x8000_0004, _) => [0x2058_5858; 4],
        (0x8000_0007, _) => [0, 0, 0, !0],
        (0x8000_0008, _) => [0x30_392e, !0, !0, !0],
        _ => [0; 4],
    }
}

fn guest() -> FrozenCpuid {
    FrozenCpuid::freeze(server, &HYPERVISOR)
}

fn native(cpuid: &FrozenCpuid, leaf: u32, subleaf: u32) -> Leaf {
    cpuid.query(leaf, subleaf, View::Native, false, 1)
}

fn bit(register: u32, bit: u32) -> bool {
    register & 1 << bit != 0
}

#[test]
fn the_hypervisor_introduces_itself_as_xen() {
    let cpuid = guest();
    let [max, ebx, ecx, edx] = native(&cpuid, 0x4000_0000, 0);
    assert_eq!(max, 0x4000_0005);
    assert_eq!(
        [ebx, ecx, edx].map(u32::to_le_bytes).as_flattened(),
        b"XenVMMXenVMM"
    );
    assert_eq!(native(&cpuid, 0x4000_0001, 0)[0], 4 << 16 | 17);
    assert_eq!(native(&cpuid, 0x4000_0002, 0)[..2], [1, 0x4000_0000]);
    assert_eq!(native(&cpuid, 0x4000_0003, 0), [0, 0, 0, 1]);
    for subleaf in [1, 2] {
        assert_eq!(native(&cpuid, 0x4000_0003, subleaf), [0; 4]);
    }
    assert_eq!(native(&cpuid, 0x4000_0004, 0), [0; 4]);
    assert_eq!(native(&cpuid, 0x4000_0005, 0), [0, 40, 0, 0]);
    assert!(bit(native(&cpuid, 1, 0)[2], 31));
}

#[test]
fn what_needs_ring_0_or_hardware_of_its_own_is_hidden() {
    let cpuid = guest();
    let [_, ebx, ecx, edx] = native(&cpuid, 1, 0);
    // VME PSE MTRR PGE PSE36 ACPI HTT; MONITOR VMX PCID X2APIC TSC-deadline PDCM.
    for hidden in [1, 3, 12, 13, 17, 22, 28] {
        assert!(!bit(edx, hidden), "leaf 1 edx bit {hidden}");
    }
    for hidden in [3, 5, 15, 17, 21, 24] {
        assert!(!bit(ecx, hidden), "leaf 1 ecx bit {hidden}");
    }
    assert_eq!(ebx, 0x0001_0800, "APIC id 0, one CPU, CLFLUSH size kept");
    let [_, ebx, ecx, edx] = native(&cpuid, 7, 0);
    // TSC_ADJUST SGX SMEP INVPCID MPX SMAP PT; UMIP PKU OSPKE CET-SS LA57; UINTR CET-IBT AMX.
    assert!([1, 2, 7, 10, 14, 20, 25].iter().all(|&n| !bit(ebx, n)));
    assert!([2, 3, 4, 7, 16].iter().all(|&n| !bit(ecx, n)));
    assert!([5, 20, 22, 24, 25].iter().all(|&n| !bit(edx, n)));
    let [_, _, ecx, edx] = native(&cpuid, 0x8000_0001, 0);
    // Page1GB; SVM, CR8 legacy, topology extensions.
    assert!(!bit(edx, 26) && !bit(ecx, 2) && !bit(ecx, 4) && !bit(ecx, 22));
    for leaf in [
        3,
        5,
        6,
        9,
        0xa,
        0xb,
        0xe,
        0x1f,
        0x8000_0007,
        0x8000_001e,
        0x4000_0100,
    ] {
        assert_eq!(native(&cpuid, leaf, 0), [0; 4], "leaf {leaf:#x}");
    }
    assert_eq!(native(&cpuid, 0, 0)[0], 0xd);
}

#[test]
fn what_a_process_can_use_is_kept() {
    let cpuid = guest();
    let [_, _, ecx, edx] = native(&cpuid, 1, 0);
    assert!([0, 4, 6, 8, 15, 24, 25, 26].iter().all(|&n| bit(edx, n)));
    assert!(
        [0, 9, 13, 19, 20, 23, 25, 26, 28, 30]
            .iter()
            .all(|&n| bit(ecx, n))
    );
    let [_, ebx, ..] = native(&cpuid, 7, 0);
    assert!([0, 3, 5, 8, 9, 16, 18, 29].iter().all(|&n| bit(ebx, n)));
    let [_, _, ecx, edx] = native(&cpuid, 0x8000_0001, 0);
    assert!([11, 20, 27, 29].iter().all(|&n| bit(edx, n)) && bit(ecx, 0));
    assert_eq!(native(&cpuid, 0x8000_0008, 0)[0], 0x392e);
    assert_eq!(native(&cpuid, 2, 7), server(2, 0));
    assert_eq!(cpuid.vendor(), Vendor::Intel);
    // Caches as they are, but shared with nobody.
    assert_eq!(native(&cpuid, 4, 1), [0x0122, 0x01c0_003f, 63, 0]);
    assert_eq!(native(&cpuid, 4, 2), [0; 4]);
}

#[test]
fn osxsave_follows_cr4_except_for_the_forced_view() {
    let cpuid = guest();
    let ecx = |view, osxsave| cpuid.query(1, 5, view, osxsave, 1)[2];
    assert_eq!(ecx(View::Native, false) & OSXSAVE, 0);
    assert_ne!(ecx(View::Native, true) & OSXSAVE, 0);
    assert_ne!(ecx(View::ForcedKernel, false) & OSXSAVE, 0);
    let old = |leaf, subleaf| {
        let mut regs = server(leaf, subleaf);
        if leaf == 1 {
            regs[2] &= !XSAVE;
        }
        regs
    };
    let cpuid = FrozenCpuid::freeze(old, &HYPERVISOR);
    assert_eq!(
        cpuid.query(1, 0, View::ForcedKernel, false, 1)[2] & OSXSAVE,
        0
    );
    assert_eq!(cpuid.query(0xd, 0, View::Native, false, 1), [0; 4]);
    assert!(!cpuid.xcr0_allowed(1));
}

#[test]
fn the_save_area_is_as_large_as_what_is_enabled() {
    let cpuid = guest();
    let sizes = |xcr0| {
        let [parts, current, max, _] = cpuid.query(0xd, 0, View::Native, true, xcr0);
        assert_eq!((parts, max), (0xe7, 2688));
        (current, cpuid.query(0xd, 1, View::Native, true, xcr0)[1])
    };
    assert_eq!(sizes(1), (576, 576));
    assert_eq!(sizes(7), (832, 832));
    assert_eq!(sizes(0xe7), (2688, 2432));
    assert_eq!(
        cpuid.query(0xd, 1, View::Native, true, 7)[0],
        7,
        "no XSAVES, no XFD"
    );
    assert_eq!(native(&cpuid, 0xd, 9), [0; 4], "no protection keys");
    assert_eq!(native(&cpuid, 0xd, 18), [0; 4], "no AMX");
}

#[test]
fn compacted_parts_are_aligned_where_the_cpu_says_so() {
    let raw = |leaf, subleaf| match (leaf, subleaf) {
        (0xd, 2) => [250, 576, 0, 0],
        (0xd, 5) => [64, 1088, 2, 0],
        _ => server(leaf, subleaf),
    };
    let cpuid = FrozenCpuid::freeze(raw, &HYPERVISOR);
    let size = cpuid.query(0xd, 1, View::Native, true, 0xe7)[1];
    assert_eq!(size, 832 + 64 + 512 + 1024);
}

#[test]
fn xcr0_takes_only_what_the_cpu_would_take() {
    let cpuid = guest();
    for good in [1, 3, 7, 0xe7] {
        assert!(cpuid.xcr0_allowed(good), "{good:#x}");
    }
    for bad in [0, 2, 5, 0x27, 0xe3, 0x207, 0x1b, 0x602e7, u64::MAX] {
        assert!(!cpuid.xcr0_allowed(bad), "{bad:#x}");
    }
}

#[test]
fn amd_repeats_the_first_leaf() {
    let amd = |leaf, subleaf| match leaf {
        0 => [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        _ => server(leaf, subleaf),
    };
    let cpuid = FrozenCpuid::freeze(amd, &HYPERVISOR);
    assert_eq!(cpuid.vendor(), Vendor::Amd);
    let [first, extended] = [1, 0x8000_0001].map(|leaf| native(&cpuid, leaf, 0)[3]);
    assert_eq!(extended & 0x0183_f3ff, first & 0x0183_f3ff);
    assert_eq!(
        native(&guest(), 0x8000_0001, 0)[3] & 0x0183_f3ff & !(1 << 11),
        0
    );
}

proptest! {
    #[test]
    fn no_machine_overfills_the_table_or_leaks_through_unknown_leaves(
        seed in any::<u32>(),
        leaf in any::<u32>(),
        subleaf in any::<u32>(),
        xcr0 in any::<u64>(),
    ) {
        let wild = |leaf: u32, subleaf: u32| {
            let mix = (leaf ^ subleaf.rotate_left(16) ^ seed).wrapping_mul(0x9e37_79b9);
            match leaf {
                0x8000_0000 => [!(mix >> 20) | 0x8000_ffff, mix, mix, mix],
                0xd if subleaf == 0 => [!0; 4],
                _ => [mix | 0x11, !mix, mix.rotate_left(7) | XSAVE | 1 << 28, mix],
            }
        };
        let cpuid = FrozenCpuid::freeze(wild, &HYPERVISOR);
        prop_assert!(cpuid.used < CAPACITY);
        let answer = cpuid.query(leaf, subleaf, View::Native, false, xcr0);
        let known = matches!(leaf, 0..=0xd | 0x4000_0000..=0x4000_0005 | 0x8000_0000..=0x8000_0021);
        prop_assert!(known || answer == [0; 4]);
        prop_assert_eq!(answer, cpuid.query(leaf, subleaf, View::Native, false, xcr0));
    }
}
