//! Which MSRs a guest finds, and what it may write to them.

use xen_abi::Mfn;

use super::super::fake::{FakeVcpu, amd, intel};
use super::{EFER, MsrPolicy, MsrState, PAT, Written, nr, read, write};

fn get(vcpu: &FakeVcpu, msr: u32) -> Option<u64> {
    read(msr, vcpu, &vcpu.policy)
}

fn put(vcpu: &mut FakeVcpu, msr: u32, value: u64) -> Written {
    let policy = vcpu.policy;
    write(msr, value, vcpu, &policy)
}

#[test]
fn segment_bases_are_the_vcpus_and_stay_canonical() {
    let mut vcpu = FakeVcpu::new(intel);
    for (n, msr) in [nr::FS_BASE, nr::GS_BASE, nr::KERNEL_GS_BASE]
        .into_iter()
        .enumerate()
    {
        let base = 0xffff_8880_0000_0000 + n as u64;
        assert_eq!(put(&mut vcpu, msr, base), Written::Done);
        assert_eq!((get(&vcpu, msr), vcpu.bases[n]), (Some(base), base));
        assert_eq!(put(&mut vcpu, msr, 0x8000_0000_0000), Written::Fault);
    }
}

#[test]
fn constants_are_xens_and_can_only_be_confirmed() {
    let mut vcpu = FakeVcpu::new(intel);
    assert_eq!(get(&vcpu, nr::EFER), Some(0xd01));
    assert_eq!(put(&mut vcpu, nr::EFER, EFER), Written::Done);
    assert_eq!(put(&mut vcpu, nr::EFER, EFER | 1 << 12), Written::Fault);
    assert_eq!(get(&vcpu, nr::PAT), Some(PAT));
    assert_eq!(put(&mut vcpu, nr::PAT, PAT), Written::Fault);
    assert_eq!(get(&vcpu, nr::APIC_BASE), Some(0xfee0_0900));
    vcpu.vcpu = 1;
    assert_eq!(get(&vcpu, nr::APIC_BASE), Some(0xfee0_0800));
    assert_eq!(put(&mut vcpu, nr::APIC_BASE, 0xfee0_0800), Written::Fault);
    assert_eq!(get(&vcpu, nr::PERF_CAPABILITIES), Some(0));
    assert_eq!(get(&vcpu, nr::MISC_ENABLE), Some(!(1 << 7 | 1 << 18)));
    assert_eq!(put(&mut vcpu, nr::MISC_ENABLE, 0), Written::Done);
    assert_eq!(get(&vcpu, nr::MISC_ENABLE), Some(!(1 << 7 | 1 << 18)));
}

#[test]
fn unknown_msrs_fault_once_the_guest_can_take_it() {
    let mut vcpu = FakeVcpu::new(intel);
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
        assert_eq!(get(&vcpu, msr), None, "{msr:#x}");
        assert_eq!(put(&mut vcpu, msr, 0), Written::Fault, "{msr:#x}");
    }
    vcpu.gp_handler = false;
    assert_eq!(get(&vcpu, 0x3a), Some(0));
    assert_eq!(get(&vcpu, 0x4000_0001), None);
    assert_eq!(put(&mut vcpu, 0x3a, 0), Written::Fault);
}

#[test]
fn the_hypercall_page_msr_names_a_frame() {
    let mut vcpu = FakeVcpu::new(intel);
    assert_eq!(get(&vcpu, nr::HYPERCALL), Some(0));
    let filled = put(&mut vcpu, nr::HYPERCALL, 0x1234_5000);
    assert_eq!(filled, Written::FillHypercallPage(Mfn(0x12345)));
    assert_eq!(put(&mut vcpu, nr::HYPERCALL, 0x1234_5001), Written::Fault);
}

#[test]
fn cpuid_faulting_can_be_asked_for_where_it_can_be_had() {
    let mut vcpu = FakeVcpu::new(intel);
    assert_eq!(get(&vcpu, nr::PLATFORM_INFO), Some(1 << 31));
    assert_eq!(put(&mut vcpu, nr::MISC_FEATURES_ENABLES, 1), Written::Done);
    assert_eq!(get(&vcpu, nr::MISC_FEATURES_ENABLES), Some(1));
    assert_eq!(put(&mut vcpu, nr::MISC_FEATURES_ENABLES, 2), Written::Fault);
    let policy = MsrPolicy::freeze(|_| None, &vcpu.cpuid, false);
    assert_eq!(read(nr::PLATFORM_INFO, &vcpu, &policy), Some(0));
    assert_eq!(
        write(nr::MISC_FEATURES_ENABLES, 1, &mut vcpu, &policy),
        Written::Fault
    );
}

#[test]
fn speculation_control_takes_what_cpuid_promises() {
    let mut vcpu = FakeVcpu::new(intel);
    assert_eq!(put(&mut vcpu, nr::SPEC_CTRL, 0x87), Written::Done);
    assert_eq!(get(&vcpu, nr::SPEC_CTRL), Some(0x87));
    assert_eq!(put(&mut vcpu, nr::SPEC_CTRL, 0x400), Written::Fault);
    assert_eq!(put(&mut vcpu, nr::PRED_CMD, 1), Written::Done);
    assert_eq!(put(&mut vcpu, nr::PRED_CMD, 2), Written::Fault);
    assert_eq!(vcpu.barriers, [1]);
    assert_eq!(get(&vcpu, nr::PRED_CMD), None, "it can only be written");
    // RRSBA_CTRL and the like are the hypervisor's business.
    let capabilities = get(&vcpu, nr::ARCH_CAPABILITIES).expect("promised by CPUID");
    assert_eq!(capabilities & (1 << 7 | 1 << 9 | 1 << 18), 0);

    let mut vcpu = FakeVcpu::new(amd);
    assert_eq!(get(&vcpu, nr::SPEC_CTRL), None);
    assert_eq!(put(&mut vcpu, nr::PRED_CMD, 1), Written::Done);
    assert_eq!(get(&vcpu, nr::ARCH_CAPABILITIES), None);
}

#[test]
fn vendors_have_their_own() {
    let (intel, amd) = (FakeVcpu::new(intel), FakeVcpu::new(amd));
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
    let mut vcpu = FakeVcpu::new(intel);
    assert_eq!(put(&mut vcpu, nr::TSC_AUX, 0xffff_ffff), Written::Done);
    assert_eq!(put(&mut vcpu, nr::TSC_AUX, 1 << 32), Written::Fault);
    assert_eq!(get(&vcpu, nr::TSC_AUX), Some(0xffff_ffff));
    for (n, msr) in [nr::DR0_MASK, nr::DR1_MASK, nr::DR1_MASK + 1, nr::DR3_MASK]
        .into_iter()
        .enumerate()
    {
        assert_eq!(put(&mut vcpu, msr, n as u64 + 1), Written::Done);
        assert_eq!(put(&mut vcpu, msr, u64::MAX), Written::Fault);
        assert_eq!(vcpu.breakpoint_mask(n as u8), n as u32 + 1);
    }
}

#[test]
fn there_are_two_machine_check_banks_that_stay_silent() {
    let mut vcpu = FakeVcpu::new(intel);
    assert_eq!(get(&vcpu, nr::MCG_CAP), Some(2));
    assert_eq!(put(&mut vcpu, nr::MC0_CTL, u64::MAX), Written::Done);
    assert_eq!(
        (get(&vcpu, nr::MC0_CTL), get(&vcpu, nr::MC0_CTL + 1)),
        (Some(0), Some(0))
    );
    assert_eq!(put(&mut vcpu, nr::MCG_CAP, 0), Written::Fault);
}

#[test]
fn no_msr_of_a_guest_depends_on_the_host_it_runs_on_now() {
    // Two hosts that differ in everything, one frozen policy: the same answers.
    let here = FakeVcpu::new(intel);
    let answers = |vcpu: &FakeVcpu| -> Vec<_> {
        (0..0x2000)
            .chain(0xc000_0000..0xc000_2000)
            .map(|msr| get(vcpu, msr))
            .collect()
    };
    let mut there = FakeVcpu::new(amd);
    there.policy = here.policy;
    assert_eq!(answers(&here), answers(&there));
}
