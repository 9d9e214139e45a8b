//! Which MSRs a guest finds, and what it may write to them.

use xen_abi::Mfn;
use xen_abi::trap::{TrapInfo, vector};

use super::{EFER, MsrPolicy, PAT, Written, nr, read, write};
use crate::emulate::cpuid::Leaf;
use crate::testing::{Bench, amd, intel, policies};

/// A guest that was started on such a processor and has a handler for #GP.  The MSRs of the machine that it
/// writes through are there.
fn on(processor: fn(u32, u32) -> Leaf) -> Bench {
    let mut bench = Bench::new();
    (bench.guest.cpuid, bench.guest.msrs) = policies(processor);
    set_handler(&mut bench, Bench::HANDLER);
    for msr in [nr::SPEC_CTRL, nr::PRED_CMD, nr::TSC_AUX, nr::DR0_MASK] {
        bench.guest.m.msrs.insert(msr, 0);
    }
    (nr::DR1_MASK..=nr::DR3_MASK).for_each(|msr| {
        bench.guest.m.msrs.insert(msr, 0);
    });
    bench
}

fn set_handler(bench: &mut Bench, address: u64) {
    bench.guest.vcpus[0].traps[usize::from(vector::GENERAL_PROTECTION)] = TrapInfo {
        vector: vector::GENERAL_PROTECTION,
        address,
        ..TrapInfo::default()
    };
}

fn get(bench: &Bench, msr: u32) -> Option<u64> {
    let guest = &bench.guest;
    read(msr, &guest.vcpus[0], &guest.m, &guest.msrs)
}

fn put(bench: &mut Bench, msr: u32, value: u64) -> Written {
    let guest = &mut bench.guest;
    let (vcpu, m) = (&mut guest.vcpus[0], &mut guest.m);
    write(msr, value, vcpu, m, &guest.msrs)
}

/// What the machine's own MSR holds.
fn real(bench: &Bench, msr: u32) -> Option<u64> {
    bench.guest.m.msrs.get(&msr).copied()
}

#[test]
fn segment_bases_are_the_vcpus_and_stay_canonical() {
    let mut bench = on(intel);
    for (n, msr) in [nr::FS_BASE, nr::GS_BASE, nr::KERNEL_GS_BASE]
        .into_iter()
        .enumerate()
    {
        let base = 0xffff_8880_0000_0000 + n as u64;
        assert_eq!(put(&mut bench, msr, base), Written::Done);
        assert_eq!(get(&bench, msr), Some(base));
        let guest = &bench.guest;
        let (fs, gs) = (guest.m.fs_base, guest.m.gs_base);
        let bases = [fs, gs, guest.vcpus[0].other_gs_base];
        assert_eq!(bases[n], base);
        assert_eq!(put(&mut bench, msr, 0x8000_0000_0000), Written::Fault);
    }
}

#[test]
fn constants_are_xens_and_can_only_be_confirmed() {
    let mut bench = on(intel);
    assert_eq!(get(&bench, nr::EFER), Some(0xd01));
    assert_eq!(put(&mut bench, nr::EFER, EFER), Written::Done);
    assert_eq!(put(&mut bench, nr::EFER, EFER | 1 << 12), Written::Fault);
    assert_eq!(get(&bench, nr::PAT), Some(PAT));
    assert_eq!(put(&mut bench, nr::PAT, PAT), Written::Fault);
    assert_eq!(get(&bench, nr::APIC_BASE), Some(0xfee0_0900));
    bench.guest.vcpus[0].id = 1;
    assert_eq!(get(&bench, nr::APIC_BASE), Some(0xfee0_0800));
    assert_eq!(put(&mut bench, nr::APIC_BASE, 0xfee0_0800), Written::Fault);
    assert_eq!(get(&bench, nr::PERF_CAPABILITIES), Some(0));
    assert_eq!(get(&bench, nr::MISC_ENABLE), Some(!(1 << 7 | 1 << 18)));
    assert_eq!(put(&mut bench, nr::MISC_ENABLE, 0), Written::Done);
    assert_eq!(get(&bench, nr::MISC_ENABLE), Some(!(1 << 7 | 1 << 18)));
}

#[test]
fn unknown_msrs_fault_once_the_guest_can_take_it() {
    let mut bench = on(intel);
    for msr in [
        2,
        0x3a,
        0x122,
        0x1d9,
        0x38f,
        0x4000_0001,
        0x4000_00ff,
        0xc000_0081,
        u32::MAX,
    ] {
        assert_eq!(get(&bench, msr), None, "{msr:#x}");
        assert_eq!(put(&mut bench, msr, 0), Written::Fault, "{msr:#x}");
    }
    set_handler(&mut bench, 0);
    assert_eq!(get(&bench, 0x3a), Some(0));
    assert_eq!(get(&bench, 0x4000_0001), None);
    assert_eq!(put(&mut bench, 0x3a, 0), Written::Fault);
}

#[test]
fn the_hypercall_page_msr_names_a_frame() {
    let mut bench = on(intel);
    assert_eq!(get(&bench, nr::HYPERCALL), Some(0));
    let filled = put(&mut bench, nr::HYPERCALL, 0x1234_5000);
    assert_eq!(filled, Written::FillHypercallPage(Mfn(0x12345)));
    assert_eq!(put(&mut bench, nr::HYPERCALL, 0x1234_5001), Written::Fault);
}

#[test]
fn cpuid_faulting_can_be_asked_for_where_it_can_be_had() {
    let mut bench = on(intel);
    assert_eq!(get(&bench, nr::PLATFORM_INFO), Some(1 << 31));
    assert_eq!(put(&mut bench, nr::MISC_FEATURES_ENABLES, 1), Written::Done);
    assert_eq!(get(&bench, nr::MISC_FEATURES_ENABLES), Some(1));
    assert_eq!(
        put(&mut bench, nr::MISC_FEATURES_ENABLES, 2),
        Written::Fault
    );
    bench.guest.msrs = MsrPolicy::freeze(|_| None, &bench.guest.cpuid, false);
    assert_eq!(get(&bench, nr::PLATFORM_INFO), Some(0));
    assert_eq!(
        put(&mut bench, nr::MISC_FEATURES_ENABLES, 1),
        Written::Fault
    );
}

#[test]
fn speculation_control_takes_what_cpuid_promises() {
    let mut bench = on(intel);
    assert_eq!(put(&mut bench, nr::SPEC_CTRL, 0x87), Written::Done);
    assert_eq!(get(&bench, nr::SPEC_CTRL), Some(0x87));
    assert_eq!(real(&bench, nr::SPEC_CTRL), Some(0x87));
    assert_eq!(put(&mut bench, nr::SPEC_CTRL, 0x400), Written::Fault);
    assert_eq!(put(&mut bench, nr::PRED_CMD, 1), Written::Done);
    assert_eq!(put(&mut bench, nr::PRED_CMD, 2), Written::Fault);
    assert_eq!(real(&bench, nr::PRED_CMD), Some(1));
    assert_eq!(get(&bench, nr::PRED_CMD), None, "it can only be written");
    // RRSBA_CTRL and the like are the hypervisor's business.
    let capabilities = get(&bench, nr::ARCH_CAPABILITIES).expect("promised by CPUID");
    assert_eq!(capabilities & (1 << 7 | 1 << 9 | 1 << 18), 0);

    let mut bench = on(amd);
    assert_eq!(get(&bench, nr::SPEC_CTRL), None);
    assert_eq!(put(&mut bench, nr::PRED_CMD, 1), Written::Done);
    assert_eq!(get(&bench, nr::ARCH_CAPABILITIES), None);
}

#[test]
fn vendors_have_their_own() {
    let (intel, amd) = (on(intel), on(amd));
    for msr in [
        nr::PERF_STATUS,
        nr::THERM_STATUS,
        nr::MISC_ENABLE,
        nr::PLATFORM_ID,
    ] {
        assert!(
            get(&intel, msr).is_some() && get(&amd, msr).is_none(),
            "{msr:#x}"
        );
    }
    for msr in [
        nr::HWCR,
        nr::PSTATE_LIMIT,
        nr::PSTATE7,
        nr::DE_CFG,
        nr::FID_VID_CTL,
    ] {
        assert!(
            get(&intel, msr).is_none() && get(&amd, msr).is_some(),
            "{msr:#x}"
        );
    }
}

#[test]
fn auxiliary_registers_are_32_bits_wide() {
    let mut bench = on(intel);
    assert_eq!(put(&mut bench, nr::TSC_AUX, 0xffff_ffff), Written::Done);
    assert_eq!(put(&mut bench, nr::TSC_AUX, 1 << 32), Written::Fault);
    assert_eq!(get(&bench, nr::TSC_AUX), Some(0xffff_ffff));
    assert_eq!(real(&bench, nr::TSC_AUX), Some(0xffff_ffff));
    for (n, msr) in [nr::DR0_MASK, nr::DR1_MASK, nr::DR1_MASK + 1, nr::DR3_MASK]
        .into_iter()
        .enumerate()
    {
        assert_eq!(put(&mut bench, msr, n as u64 + 1), Written::Done);
        assert_eq!(put(&mut bench, msr, u64::MAX), Written::Fault);
        assert_eq!(bench.guest.vcpus[0].breakpoint_masks[n], n as u32 + 1);
        assert_eq!(real(&bench, msr), Some(n as u64 + 1));
    }
}

#[test]
fn there_are_two_machine_check_banks_that_stay_silent() {
    let mut bench = on(intel);
    assert_eq!(get(&bench, nr::MCG_CAP), Some(2));
    assert_eq!(put(&mut bench, nr::MC0_CTL, u64::MAX), Written::Done);
    assert_eq!(
        (get(&bench, nr::MC0_CTL), get(&bench, nr::MC0_CTL + 1)),
        (Some(0), Some(0))
    );
    assert_eq!(put(&mut bench, nr::MCG_CAP, 0), Written::Fault);
}

#[test]
fn no_msr_of_a_guest_depends_on_the_host_it_runs_on_now() {
    // Two hosts that differ in everything, one frozen policy: the same answers.
    let here = on(intel);
    let all = || (0..0x2000).chain(0xc000_0000..0xc000_2000);
    let answers = |bench: &Bench| -> Vec<_> { all().map(|msr| get(bench, msr)).collect() };
    let mut there = on(amd);
    there.guest.msrs = here.guest.msrs;
    there.guest.m.msrs.extend(all().map(|msr| (msr, 0x1234)));
    assert_eq!(answers(&here), answers(&there));
}
