//! Privileged instructions, from bytes to effect.

mod io;

use xen_abi::Mfn;

use super::super::fake::FakeRegs;
use super::super::fake::{FakeVcpu, intel};
use super::super::regs::{After, RF, TF};
use super::{CR4_FIXED, CR4_OSXSAVE, CodeSize, Outcome, general_protection, invalid_opcode};
use crate::cpu::first::CR0;

const DONE: Outcome = Outcome::Done(After::Continue);
/// `ud2; .ascii "xen"; cpuid`
const FORCED_CPUID: [u8; 7] = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2];

fn regs(rax: u64, rcx: u64, rdx: u64) -> FakeRegs {
    let mut regs = FakeRegs {
        rip: 0x1000,
        rflags: RF | 0x202,
        ..Default::default()
    };
    regs.gprs[..3].copy_from_slice(&[rax, rcx, rdx]);
    regs
}

fn kernel() -> FakeVcpu {
    FakeVcpu::new(intel)
}

fn process() -> FakeVcpu {
    FakeVcpu { cpl: 3, ..kernel() }
}

fn run(bytes: &[u8], regs: &mut FakeRegs, vcpu: &mut FakeVcpu) -> Outcome {
    general_protection(bytes, CodeSize::Bits64, regs, vcpu)
}

/// Asserts that an instruction comes back to the guest and changes nothing.
fn refused(bytes: &[u8], before: &FakeRegs, vcpu: &mut FakeVcpu) {
    let mut regs = before.clone();
    assert_eq!(
        run(bytes, &mut regs, vcpu),
        Outcome::NotHandled,
        "{bytes:02x?}"
    );
    assert_eq!(&regs, before, "{bytes:02x?}");
}

#[test]
fn processes_have_no_privileged_instructions() {
    let privileged: [&[u8]; 12] = [
        &[0x0f, 0x06],       // clts
        &[0x0f, 0x20, 0xc0], // mov %cr0, %rax
        &[0x0f, 0x22, 0xd8], // mov %rax, %cr3
        &[0x0f, 0x21, 0xc0], // mov %db0, %rax
        &[0x0f, 0x23, 0xc0], // mov %rax, %db0
        &[0x0f, 0x32],       // rdmsr
        &[0x0f, 0x30],       // wrmsr
        &[0x0f, 0x31],       // rdtsc
        &[0x0f, 0x01, 0xd1], // xsetbv
        &[0x0f, 0x09],       // wbinvd
        &[0xfa],             // cli
        &[0xec],             // in (%dx), %al
    ];
    for bytes in privileged {
        refused(bytes, &regs(0, 0x10, 0), &mut process());
    }
}

#[test]
fn the_kernel_changes_only_ts_of_cr0() {
    let mut vcpu = kernel();
    let mut regs = regs(CR0 | 8, 0, 0);
    assert_eq!(run(&[0x0f, 0x22, 0xc0], &mut regs, &mut vcpu), DONE);
    assert!(vcpu.ts);
    assert_eq!((regs.rip, regs.rflags), (0x1003, 0x202), "RF is gone");
    // mov %cr0, %r9
    assert_eq!(run(&[0x41, 0x0f, 0x20, 0xc1], &mut regs, &mut vcpu), DONE);
    assert_eq!(regs.gprs[9], CR0 | 8);
    assert_eq!(run(&[0x0f, 0x06], &mut regs, &mut vcpu), DONE);
    assert!(!vcpu.ts);
    regs.gprs[0] = CR0 ^ 1 << 16;
    refused(&[0x0f, 0x22, 0xc0], &regs, &mut vcpu);
}

#[test]
fn cr4_is_masked_and_never_faults() {
    let mut vcpu = kernel();
    assert_eq!(
        run(&[0x0f, 0x22, 0xe0], &mut regs(u64::MAX, 0, 0), &mut vcpu),
        DONE
    );
    assert_eq!(vcpu.cr4, CR4_FIXED | 1 << 2 | 1 << 3 | 1 << 16 | 1 << 18);
    assert_eq!(
        run(&[0x0f, 0x22, 0xe0], &mut regs(0, 0, 0), &mut vcpu),
        DONE
    );
    assert_eq!(vcpu.cr4, CR4_FIXED);
}

#[test]
fn cr3_switches_tables_or_faults() {
    let mut vcpu = kernel();
    assert_eq!(
        run(&[0x0f, 0x22, 0xd8], &mut regs(0x5000, 0, 0), &mut vcpu),
        DONE
    );
    let mut after = regs(0, 0, 0);
    assert_eq!(run(&[0x0f, 0x20, 0xd8], &mut after, &mut vcpu), DONE);
    assert_eq!(after.gprs[0], 0x5000);
    refused(&[0x0f, 0x22, 0xd8], &regs(0, 0, 0), &mut vcpu);
    // There is no CR8.
    refused(&[0x44, 0x0f, 0x20, 0xc0], &regs(0, 0, 0), &mut vcpu);
}

#[test]
fn debug_registers_4_and_5_are_aliases_until_de_is_set() {
    let mut vcpu = kernel();
    // mov %rax, %db5; mov %db7, %rcx
    assert_eq!(
        run(&[0x0f, 0x23, 0xe8], &mut regs(0x400, 0, 0), &mut vcpu),
        DONE
    );
    let mut after = regs(0, 0, 0);
    assert_eq!(run(&[0x0f, 0x21, 0xf9], &mut after, &mut vcpu), DONE);
    assert_eq!(after.gprs[1], 0x400);
    refused(&[0x0f, 0x23, 0xf8], &regs(1 << 32, 0, 0), &mut vcpu);
    vcpu.cr4 |= 1 << 3;
    refused(&[0x0f, 0x21, 0xe8], &regs(0, 0, 0), &mut vcpu);
}

#[test]
fn msrs_come_in_two_halves() {
    let mut vcpu = kernel();
    let mut regs = regs(0xdead_beef_8000_0000, 0xc000_0101, 0xffff_8880);
    assert_eq!(run(&[0x0f, 0x30], &mut regs, &mut vcpu), DONE);
    assert_eq!(vcpu.bases[1], 0xffff_8880_8000_0000);
    regs.gprs[1] = 0xffff_ffff_c000_0101;
    assert_eq!(run(&[0x0f, 0x32], &mut regs, &mut vcpu), DONE);
    assert_eq!((regs.gprs[0], regs.gprs[2]), (0x8000_0000, 0xffff_8880));
    regs.gprs[1] = 0x1234;
    refused(&[0x0f, 0x32], &regs, &mut vcpu);
}

#[test]
fn the_hypercall_page_needs_a_frame_of_the_guest() {
    let mut vcpu = kernel();
    assert_eq!(
        run(&[0x0f, 0x30], &mut regs(0x5000, 0x4000_0000, 0), &mut vcpu),
        DONE
    );
    refused(&[0x0f, 0x30], &regs(0, 0x4000_0000, 0), &mut vcpu);
    assert_eq!(vcpu.pages, [Mfn(5), Mfn(0)]);
}

#[test]
fn osxsave_leaks_only_to_a_kernel_that_forces_emulation() {
    const OSXSAVE: u64 = 1 << 27;
    let forced = |vcpu: &mut FakeVcpu| {
        let mut regs = regs(1, 0, 0);
        let outcome = invalid_opcode(&FORCED_CPUID, CodeSize::Bits64, &mut regs, vcpu);
        assert_eq!((outcome, regs.rip), (DONE, 0x1007));
        regs.gprs[1] & OSXSAVE
    };
    let native = |vcpu: &mut FakeVcpu| {
        let mut regs = regs(1, 0, 0);
        assert_eq!(run(&[0x0f, 0xa2], &mut regs, vcpu), DONE);
        regs.gprs[1] & OSXSAVE
    };
    assert_ne!(forced(&mut kernel()), 0);
    assert_eq!(forced(&mut process()), 0);
    assert_eq!(native(&mut kernel()), 0);
    assert_eq!(native(&mut process()), 0);
    let mut enabled = FakeVcpu {
        cr4: CR4_OSXSAVE,
        ..process()
    };
    assert_ne!(native(&mut enabled), 0);
}

#[test]
fn a_guest_can_make_cpuid_fault_for_its_processes() {
    let mut vcpu = FakeVcpu {
        misc_features: 1,
        ..process()
    };
    refused(&[0x0f, 0xa2], &regs(0, 0, 0), &mut vcpu);
    let mut after = regs(0, 0, 0);
    let outcome = invalid_opcode(&FORCED_CPUID, CodeSize::Bits64, &mut after, &mut vcpu);
    assert_eq!(
        outcome,
        Outcome::Inject {
            vector: 13,
            error_code: Some(0)
        }
    );
    assert_eq!(after.rip, 0x1005, "at the instruction behind the prefix");
    vcpu.cpl = 1;
    assert_eq!(run(&[0x0f, 0xa2], &mut regs(0, 0, 0), &mut vcpu), DONE);
}

#[test]
fn an_invalid_opcode_is_nothing_but_forced_cpuid() {
    for bytes in [&[0x0f, 0x0b][..], &[0x0f, 0xa2], &[0x0f, 0x30]] {
        let mut after = regs(0, 0, 0);
        let outcome = invalid_opcode(bytes, CodeSize::Bits64, &mut after, &mut kernel());
        assert_eq!(outcome, Outcome::NotHandled);
    }
}

#[test]
fn a_single_stepped_cpuid_owes_a_debug_trap() {
    let mut after = FakeRegs {
        rflags: TF,
        ..regs(0, 0, 0)
    };
    let outcome = run(&[0x0f, 0xa2], &mut after, &mut process());
    assert_eq!(outcome, Outcome::Done(After::DebugTrap));
}

#[test]
fn thirty_two_bit_code_stays_below_4_gib() {
    let mut after = FakeRegs {
        rip: 0xffff_ffff,
        ..regs(0x4000_0000, 0, 0)
    };
    let bytes = [0x0f, 0xa2];
    let outcome = general_protection(&bytes, CodeSize::Bits32, &mut after, &mut process());
    assert_eq!((outcome, after.rip, after.gprs[0]), (DONE, 1, 0x4000_0005));
}

#[test]
fn software_interrupts_depend_on_the_gate() {
    let mut vcpu = kernel();
    vcpu.gates = [(0x20, 0), (0x21, 1), (0x82, 3)].to_vec();
    let mut int = |vector: u8, cpl: u8| {
        vcpu.cpl = cpl;
        let mut regs = regs(0, 0, 0);
        let outcome = run(&[0xcd, vector], &mut regs, &mut vcpu);
        (outcome, regs.rip)
    };
    let hit = |vector| {
        (
            Outcome::Inject {
                vector,
                error_code: None,
            },
            0x1002,
        )
    };
    let miss = |vector: u32| {
        (
            Outcome::Inject {
                vector: 13,
                error_code: Some(vector << 3 | 2),
            },
            0x1000,
        )
    };
    assert_eq!(int(0x21, 1), hit(0x21));
    assert_eq!(int(0x82, 3), hit(0x82));
    assert_eq!(int(0x20, 1), miss(0x20));
    assert_eq!(int(0x20, 0), hit(0x20));
    assert_eq!(int(0x21, 3), miss(0x21));
    assert_eq!(int(0xff, 1), miss(0xff));
}

#[test]
fn xsetbv_needs_osxsave_and_a_valid_combination() {
    let mut vcpu = kernel();
    let bytes = [0x0f, 0x01, 0xd1];
    refused(&bytes, &regs(7, 0, 0), &mut vcpu);
    vcpu.cr4 |= CR4_OSXSAVE;
    assert_eq!(run(&bytes, &mut regs(7, 0, 0), &mut vcpu), DONE);
    assert_eq!(vcpu.xcr0, 7);
    refused(&bytes, &regs(5, 0, 0), &mut vcpu);
    refused(&bytes, &regs(7, 1, 0), &mut vcpu);
    refused(&bytes, &regs(7, 0, 1), &mut vcpu);
}

#[test]
fn the_kernel_reads_the_tsc_even_when_processes_may_not() {
    let mut after = regs(0, 0, 0);
    assert_eq!(run(&[0x0f, 0x01, 0xf9], &mut after, &mut kernel()), DONE);
    assert_eq!(after.gprs[..3], [0x2345_6789, 7, 1]);
}

#[test]
fn what_a_pv_guest_may_not_have_goes_back_to_it() {
    let never: [&[u8]; 8] = [
        &[0xf4],             // hlt
        &[0x0f, 0x08],       // invd
        &[0x0f, 0x01, 0x38], // invlpg (%rax)
        &[0x0f, 0x01, 0x10], // lgdt (%rax)
        &[0x0f, 0x01, 0xf0], // lmsw %ax
        &[0x0f, 0x00, 0xd8], // ltr %ax
        &[0x0f, 0x33],       // rdpmc
        &[0x48, 0x89, 0x07], // mov %rax, (%rdi)
    ];
    for bytes in never {
        refused(bytes, &regs(0, 0, 0), &mut kernel());
    }
    refused(&[0x0f], &regs(0, 0, 0), &mut kernel());
}
