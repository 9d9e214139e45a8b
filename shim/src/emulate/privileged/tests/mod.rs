//! Privileged instructions, from bytes to effect.

mod io;

use xen_abi::Mfn;
use xen_abi::trap::TrapInfo;

use super::super::regs::{After, RF, TF};
use super::{CodeSize, GuestCpu, Outcome};
use crate::boot::fill_hypercall_page;
use crate::cpu::first;
use crate::cpu::first::CR0;
use crate::cpu::{Assist, Regs};
use crate::registers::cr4;
use crate::testing::Bench;

const DONE: Outcome = Outcome::Done(After::Continue);
/// `ud2; .ascii "xen"; cpuid`
const FORCED_CPUID: [u8; 7] = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2];

fn regs(rax: u64, rcx: u64, rdx: u64) -> Regs {
    let mut regs = Regs {
        rip: 0x1000,
        rflags: RF | 0x202,
        ..Default::default()
    };
    (regs.rax, regs.rcx, regs.rdx) = (rax, rcx, rdx);
    regs
}

/// A guest whose kernel runs, has I/O privilege, and takes general protection faults.
fn kernel() -> Bench {
    let mut bench = Bench::new();
    let vcpu = &mut bench.guest.vcpus[0];
    vcpu.iopl = 1;
    vcpu.traps[13].address = Bench::HANDLER;
    bench
}

/// The same, while a process runs.
fn process() -> Bench {
    let mut bench = kernel();
    set_cpl(&mut bench, 3);
    bench
}

/// Has the guest run at this privilege level, as it sees it.
fn set_cpl(bench: &mut Bench, cpl: u8) {
    bench.guest.vcpus[0].in_kernel = cpl < 3;
    bench.guest.assist.set(Assist::ARCHITECTURAL_IOPL, cpl == 0);
}

fn general_protection(bytes: &[u8], size: CodeSize, regs: &mut Regs, bench: &mut Bench) -> Outcome {
    let mut cpu = GuestCpu::new(&mut bench.guest, 0);
    super::general_protection(bytes, size, regs, &mut cpu)
}

fn invalid_opcode(bytes: &[u8], size: CodeSize, regs: &mut Regs, bench: &mut Bench) -> Outcome {
    let mut cpu = GuestCpu::new(&mut bench.guest, 0);
    super::invalid_opcode(bytes, size, regs, &mut cpu)
}

fn run(bytes: &[u8], regs: &mut Regs, bench: &mut Bench) -> Outcome {
    general_protection(bytes, CodeSize::Bits64, regs, bench)
}

/// Asserts that an instruction comes back to the guest and changes nothing.
fn refused(bytes: &[u8], before: &Regs, bench: &mut Bench) {
    let mut regs = *before;
    assert_eq!(
        run(bytes, &mut regs, bench),
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
    let mut bench = kernel();
    let mut regs = regs(CR0 | 8, 0, 0);
    assert_eq!(run(&[0x0f, 0x22, 0xc0], &mut regs, &mut bench), DONE);
    assert!(bench.guest.vcpus[0].task_switched && bench.guest.m.task_switched);
    assert_eq!((regs.rip, regs.rflags), (0x1003, 0x202), "RF is gone");
    // mov %cr0, %r9
    assert_eq!(run(&[0x41, 0x0f, 0x20, 0xc1], &mut regs, &mut bench), DONE);
    assert_eq!(regs.gpr(9), CR0 | 8);
    assert_eq!(run(&[0x0f, 0x06], &mut regs, &mut bench), DONE);
    assert!(!bench.guest.vcpus[0].task_switched && !bench.guest.m.task_switched);
    regs.set_gpr(0, CR0 ^ 1 << 16);
    refused(&[0x0f, 0x22, 0xc0], &regs, &mut bench);
}

#[test]
fn cr4_is_masked_and_never_faults() {
    let mut bench = kernel();
    assert_eq!(
        run(&[0x0f, 0x22, 0xe0], &mut regs(u64::MAX, 0, 0), &mut bench),
        DONE
    );
    let all = first::CR4 | cr4::TSD | cr4::DE | cr4::FSGSBASE | cr4::OSXSAVE;
    assert_eq!((bench.guest.vcpus[0].cr4, bench.guest.m.cr4), (all, all));
    assert_eq!(
        run(&[0x0f, 0x22, 0xe0], &mut regs(0, 0, 0), &mut bench),
        DONE
    );
    let cr4 = (bench.guest.vcpus[0].cr4, bench.guest.m.cr4);
    assert_eq!(cr4, (first::CR4, first::CR4));
}

#[test]
fn cr3_switches_tables_or_faults() {
    let mut bench = kernel();
    bench.make_user();
    let spaces = bench.guest.vcpus[0].spaces.as_ref();
    let other = spaces.and_then(|spaces| spaces.user()).expect("made");
    assert_eq!(
        run(
            &[0x0f, 0x22, 0xd8],
            &mut regs(other.addr(), 0, 0),
            &mut bench
        ),
        DONE
    );
    assert_eq!(bench.guest.m.root, other);
    let mut after = regs(0, 0, 0);
    assert_eq!(run(&[0x0f, 0x20, 0xd8], &mut after, &mut bench), DONE);
    assert_eq!(after.gpr(0), other.addr());
    refused(&[0x0f, 0x22, 0xd8], &regs(0, 0, 0), &mut bench);
    // There is no CR8.
    refused(&[0x44, 0x0f, 0x20, 0xc0], &regs(0, 0, 0), &mut bench);
}

#[test]
fn debug_registers_4_and_5_are_aliases_until_de_is_set() {
    let mut bench = kernel();
    // mov %rax, %db5; mov %db7, %rcx
    assert_eq!(
        run(&[0x0f, 0x23, 0xe8], &mut regs(0x400, 0, 0), &mut bench),
        DONE
    );
    let mut after = regs(0, 0, 0);
    assert_eq!(run(&[0x0f, 0x21, 0xf9], &mut after, &mut bench), DONE);
    assert_eq!(after.gpr(1), 0x400);
    refused(&[0x0f, 0x23, 0xf8], &regs(1 << 32, 0, 0), &mut bench);
    bench.guest.vcpus[0].cr4 |= 1 << 3;
    refused(&[0x0f, 0x21, 0xe8], &regs(0, 0, 0), &mut bench);
}

#[test]
fn msrs_come_in_two_halves() {
    let mut bench = kernel();
    let mut regs = regs(0xdead_beef_8000_0000, 0xc000_0101, 0xffff_8880);
    assert_eq!(run(&[0x0f, 0x30], &mut regs, &mut bench), DONE);
    assert_eq!(bench.guest.m.gs_base, 0xffff_8880_8000_0000);
    regs.set_gpr(1, 0xffff_ffff_c000_0101);
    assert_eq!(run(&[0x0f, 0x32], &mut regs, &mut bench), DONE);
    assert_eq!((regs.gpr(0), regs.gpr(2)), (0x8000_0000, 0xffff_8880));
    regs.set_gpr(1, 0x1234);
    refused(&[0x0f, 0x32], &regs, &mut bench);
}

#[test]
fn the_hypercall_page_needs_a_frame_of_the_guest() {
    let mut bench = kernel();
    let page = bench.page(5);
    let frame = bench.frame(page);
    let mut before = regs(frame.addr(), 0x4000_0000, 0);
    assert_eq!(run(&[0x0f, 0x30], &mut before, &mut bench), DONE);
    let mut filled = [0; 4096];
    fill_hypercall_page(&mut filled);
    assert_eq!(bench.get::<[u8; 4096]>(page), filled);
    for frame in [Mfn(0), Bench::SHIM, bench.guest.m.root] {
        let before = regs(frame.addr(), 0x4000_0000, 0);
        refused(&[0x0f, 0x30], &before, &mut bench);
    }
}

#[test]
fn osxsave_leaks_only_to_a_kernel_that_forces_emulation() {
    const OSXSAVE: u64 = 1 << 27;
    let forced = |bench: &mut Bench| {
        let mut regs = regs(1, 0, 0);
        let outcome = invalid_opcode(&FORCED_CPUID, CodeSize::Bits64, &mut regs, bench);
        assert_eq!((outcome, regs.rip), (DONE, 0x1007));
        regs.gpr(1) & OSXSAVE
    };
    let native = |bench: &mut Bench| {
        let mut regs = regs(1, 0, 0);
        assert_eq!(run(&[0x0f, 0xa2], &mut regs, bench), DONE);
        regs.gpr(1) & OSXSAVE
    };
    assert_ne!(forced(&mut kernel()), 0);
    assert_eq!(forced(&mut process()), 0);
    assert_eq!(native(&mut kernel()), 0);
    assert_eq!(native(&mut process()), 0);
    let mut enabled = process();
    enabled.guest.vcpus[0].cr4 = cr4::OSXSAVE;
    assert_ne!(native(&mut enabled), 0);
}

#[test]
fn a_guest_can_make_cpuid_fault_for_its_processes() {
    let mut bench = process();
    bench.guest.vcpus[0].misc_features = 1;
    refused(&[0x0f, 0xa2], &regs(0, 0, 0), &mut bench);
    let mut after = regs(0, 0, 0);
    let outcome = invalid_opcode(&FORCED_CPUID, CodeSize::Bits64, &mut after, &mut bench);
    assert_eq!(
        outcome,
        Outcome::Inject {
            vector: 13,
            error_code: Some(0)
        }
    );
    assert_eq!(after.rip, 0x1005, "at the instruction behind the prefix");
    set_cpl(&mut bench, 1);
    assert_eq!(run(&[0x0f, 0xa2], &mut regs(0, 0, 0), &mut bench), DONE);
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
    let mut after = Regs {
        rflags: TF,
        ..regs(0, 0, 0)
    };
    let outcome = run(&[0x0f, 0xa2], &mut after, &mut process());
    assert_eq!(outcome, Outcome::Done(After::DebugTrap));
}

#[test]
fn thirty_two_bit_code_stays_below_4_gib() {
    let mut after = Regs {
        rip: 0xffff_ffff,
        ..regs(0x4000_0000, 0, 0)
    };
    let bytes = [0x0f, 0xa2];
    let outcome = general_protection(&bytes, CodeSize::Bits32, &mut after, &mut process());
    assert_eq!((outcome, after.rip, after.gpr(0)), (DONE, 1, 0x4000_0005));
}

#[test]
fn software_interrupts_depend_on_the_gate() {
    let mut bench = kernel();
    for (vector, flags) in [(0x20, 0), (0x21, 1), (0x82, 3)] {
        bench.guest.vcpus[0].traps[usize::from(vector)] = TrapInfo {
            vector,
            flags,
            address: Bench::HANDLER,
            ..TrapInfo::default()
        };
    }
    let mut int = |vector: u8, cpl: u8| {
        set_cpl(&mut bench, cpl);
        let mut regs = regs(0, 0, 0);
        let outcome = run(&[0xcd, vector], &mut regs, &mut bench);
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
    let mut bench = kernel();
    let bytes = [0x0f, 0x01, 0xd1];
    refused(&bytes, &regs(7, 0, 0), &mut bench);
    bench.guest.vcpus[0].cr4 |= cr4::OSXSAVE;
    assert_eq!(run(&bytes, &mut regs(7, 0, 0), &mut bench), DONE);
    assert_eq!(bench.guest.m.xcr0, 7);
    refused(&bytes, &regs(5, 0, 0), &mut bench);
    refused(&bytes, &regs(7, 1, 0), &mut bench);
    refused(&bytes, &regs(7, 0, 1), &mut bench);
}

#[test]
fn the_kernel_reads_the_tsc_even_when_processes_may_not() {
    let mut after = regs(0, 0, 0);
    let mut bench = kernel();
    bench.guest.vcpus[0].tsc_aux = 7;
    let tsc = bench.guest.m.clock.tsc();
    assert_eq!(run(&[0x0f, 0x01, 0xf9], &mut after, &mut bench), DONE);
    assert_eq!(after.gprs()[..3], [tsc & 0xffff_ffff, 7, tsc >> 32]);
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
