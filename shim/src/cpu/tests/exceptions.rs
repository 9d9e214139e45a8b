//! Which handler an exception reaches, with which error code, and what is emulated instead.

use xen_abi::hypercall::{FPU_TASKSWITCH, PHYSDEV_OP, VM_ASSIST};
use xen_abi::physdev::SetIobitmap;
use xen_abi::sched::ShutdownReason;
use xen_abi::trap::{FLAT_RING3_CS64, TrapInfo, rflags, vector};

use super::{distinct, stack};
use crate::cpu::{HostTraps, Regs, UPCALL_VECTOR, first};
use crate::testing::Bench;

/// A process whose kernel handles what it does.
fn process(code: &[u8]) -> Bench {
    let mut bench = Bench::new();
    bench.handlers_for_user();
    bench.make_user();
    bench.enter_user();
    distinct(&mut bench.regs);
    bench.put(Bench::USER, code);
    bench
}

/// The kernel itself, at some code.
fn kernel(code: &[u8]) -> Bench {
    let mut bench = Bench::new();
    bench.handlers_for_user();
    bench.put(Bench::KERNEL, code);
    bench.regs.rip = Bench::KERNEL;
    bench.regs.rsp = bench.page(90);
    bench
}

fn handler(number: u8) -> u64 {
    Bench::HANDLER + u64::from(number)
}

#[test]
fn an_interruption_by_the_host_changes_nothing() {
    for mut bench in [process(&[0x90]), kernel(&[0x90])] {
        let before = bench.regs;
        bench.trap(UPCALL_VECTOR, 0);
        let mut after = bench.regs;
        (after.vector, after.error) = (before.vector, before.error);
        assert_eq!(after, before);
    }
}

#[test]
fn int_80_has_the_privilege_that_the_guest_gave_it() {
    let mut bench = process(&[0xcd, 0x80]);
    bench.regs.rip += 2;
    bench.trap(vector::INT80, 0);
    assert_eq!(bench.regs.rip, handler(0x80));
    assert_eq!(stack(&bench, 3)[2], Bench::USER + 2);
    // A gate that is not for programs, and one that is not there.
    for flags in [None, Some(1)] {
        let mut bench = process(&[0xcd, 0x80]);
        match flags {
            Some(flags) => bench.guest.vcpus[0].traps[0x80].flags = flags,
            None => bench.guest.vcpus[0].traps[0x80].address = 0,
        }
        bench.regs.rip += 2;
        bench.trap(vector::INT80, 0);
        assert_eq!(bench.regs.rip, handler(13));
        assert_eq!(stack(&bench, 4)[2..], [0x80 << 3 | 2, Bench::USER]);
    }
    // The kernel counts as ring 1.
    let mut bench = kernel(&[0xcd, 0x80]);
    bench.guest.vcpus[0].traps[0x80].flags = 1;
    bench.trap(vector::INT80, 0);
    assert_eq!(bench.regs.rip, handler(0x80));
}

#[test]
fn a_breakpoint_is_passed_on_whatever_its_privilege() {
    for flags in [0, 3] {
        let mut bench = process(&[0xcc]);
        bench.guest.vcpus[0].traps[3].flags = flags;
        bench.regs.rip += 1;
        bench.trap(vector::BREAKPOINT, 0);
        assert_eq!(bench.regs.rip, handler(3));
        assert_eq!(stack(&bench, 3)[2], Bench::USER + 1, "behind it");
    }
}

#[test]
fn a_protection_fault_keeps_its_error_code() {
    let mut bench = process(&[0xf4]);
    bench.trap(vector::GENERAL_PROTECTION, 0x1230);
    assert_eq!(bench.regs.rip, handler(13));
    assert_eq!(stack(&bench, 4)[2..], [0x1230, Bench::USER]);
}

#[test]
fn page_faults_say_who_was_at_it() {
    for (error, in_process, in_kernel) in [(0, 4, 0), (2, 6, 2), (7, 7, 3), (0x15, 0x15, 0x11)] {
        let mut bench = process(&[0x90]);
        bench.guest.m.fault_address = 0x12_3456;
        bench.trap(vector::PAGE_FAULT, error);
        assert_eq!(stack(&bench, 3)[2], in_process, "error {error:#x}");
        let mut bench = kernel(&[0x90]);
        bench.guest.m.fault_address = 0x12_3456;
        bench.trap(vector::PAGE_FAULT, error);
        assert_eq!(stack(&bench, 3)[2], in_kernel, "error {error:#x}");
    }
}

#[test]
fn single_steps_and_breakpoints_report_their_reason() {
    let mut bench = process(&[0x90]);
    bench.guest.m.debug[6] = 0xffff_4ff1;
    bench.trap(vector::DEBUG, 0);
    assert_eq!(bench.regs.rip, handler(1));
    assert_eq!(bench.guest.vcpus[0].debug[6], 0xffff_4ff1);
    // The CPU's own register starts anew each time; the guest's is cleared by the guest.
    assert_eq!(bench.guest.m.debug[6], first::DR6);
    bench.guest.m.debug[6] |= 2;
    bench.trap(vector::DEBUG, 0);
    assert_eq!(bench.guest.vcpus[0].debug[6], 0xffff_4ff3);
}

#[test]
fn the_fpu_is_given_back_on_its_trap() {
    let mut bench = process(&[0x90]);
    bench.trap(vector::INT80, 0);
    assert_eq!(bench.call(FPU_TASKSWITCH, &[1]), Ok(0));
    bench.enter_user();
    bench.trap(vector::DEVICE_NOT_AVAILABLE, 0);
    assert_eq!(bench.regs.rip, handler(7));
    assert!(!bench.guest.m.task_switched);
}

#[test]
fn forced_cpuid_is_emulated_for_both_and_nothing_else_behind_the_signature_is() {
    let cpuid = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2];
    for mut bench in [process(&cpuid), kernel(&cpuid)] {
        bench.regs.rax = 0x4000_0000;
        bench.regs.rcx = 0;
        let rip = bench.regs.rip;
        bench.trap(vector::INVALID_OPCODE, 0);
        assert_eq!(bench.regs.rip, rip + 7);
        let name = [bench.regs.rbx, bench.regs.rcx, bench.regs.rdx];
        assert_eq!(name, [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e]);
    }
    let rdtsc = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0x31];
    let mut bench = process(&rdtsc);
    bench.trap(vector::INVALID_OPCODE, 0);
    assert_eq!(bench.regs.rip, handler(6));
}

#[test]
fn an_emulated_instruction_that_is_single_stepped_traps_after_it() {
    let mut bench = kernel(&[0x0f, 0xa2]);
    bench.regs.rax = 0;
    bench.regs.rflags |= rflags::TF;
    bench.trap(vector::GENERAL_PROTECTION, 0);
    assert_eq!(bench.regs.rip, handler(1));
    assert_eq!(stack(&bench, 3)[2], Bench::KERNEL + 2);
    assert_ne!(bench.guest.vcpus[0].debug[6] & 1 << 14, 0);
}

#[test]
fn the_kernel_writes_its_msrs_before_it_has_any_handler() {
    // wrmsr GS_BASE, the first thing that Linux does.
    let mut bench = Bench::new();
    bench.put(Bench::KERNEL, &[0x0fu8, 0x30]);
    bench.regs.rip = Bench::KERNEL;
    bench.regs.rcx = 0xc000_0101;
    (bench.regs.rax, bench.regs.rdx) = (0x8123_4000, 0xffff_ffff);
    bench.trap(vector::GENERAL_PROTECTION, 0);
    assert_eq!(bench.regs.rip, Bench::KERNEL + 2);
    assert_eq!(bench.guest.m.gs_base, 0xffff_ffff_8123_4000);
    // A program may not.
    let mut bench = process(&[0x0f, 0x30]);
    bench.trap(vector::GENERAL_PROTECTION, 0);
    assert_eq!(bench.regs.rip, handler(13));
}

#[test]
fn ports_are_for_whom_the_guest_says() {
    // in (%dx), %al.
    let read_port = [0xec];
    for (iopl, is_architectural, allowed) in [(0, false, false), (1, false, true), (0, true, true)]
    {
        let mut bench = kernel(&read_port);
        let arg = bench.arg(&(iopl as u32));
        assert_eq!(bench.call(PHYSDEV_OP, &[6, arg]), Ok(0));
        if is_architectural {
            assert_eq!(bench.call(VM_ASSIST, &[0, 4]), Ok(0));
        }
        bench.regs.rip = Bench::KERNEL;
        bench.trap(vector::GENERAL_PROTECTION, 0);
        if allowed {
            assert_eq!(bench.regs.rip, Bench::KERNEL + 1);
            assert_eq!(bench.regs.rax as u8, 0xff, "there is nothing");
        } else {
            assert_eq!(bench.regs.rip, handler(13));
        }
    }
    // The bitmap lets a program have single ports.
    for (port, allowed) in [(0x3f8, true), (0x3f9, false), (0x2000, false)] {
        for is_process in [false, true] {
            let mut bench = kernel(&read_port);
            let bitmap = bench.page(20);
            bench.put(bitmap, &[0xffu8; 1024]);
            bench.put(bitmap + 0x3f8 / 8, &0xfeu8);
            let arg = bench.arg(&SetIobitmap {
                bitmap,
                nr_ports: 0x1000,
                pad: 0,
            });
            assert_eq!(bench.call(PHYSDEV_OP, &[7, arg]), Ok(0));
            bench.regs.rip = Bench::KERNEL;
            if is_process {
                // Its own tables do not have the kernel's bitmap.
                bench.make_user();
                bench.enter_user();
                bench.put(Bench::USER, &read_port);
            }
            let rip = bench.regs.rip;
            bench.regs.rdx = port;
            bench.trap(vector::GENERAL_PROTECTION, 0);
            let expected = if allowed { rip + 1 } else { handler(13) };
            assert_eq!(bench.regs.rip, expected, "port {port:#x}");
        }
    }
}

#[test]
fn code_that_ends_with_its_page_is_read_to_there() {
    let mut bench = Bench::new();
    bench.handlers_for_user();
    let page = bench.page(100);
    let next = bench.page(101);
    bench.put(page + 4094, &[0x0fu8, 0xa2]);
    assert_eq!(bench.remap(next, xen_abi::mmu::Pte(0)), Ok(0));
    (bench.regs.rip, bench.regs.rax) = (page + 4094, 0x4000_0000);
    bench.trap(vector::GENERAL_PROTECTION, 0);
    assert_eq!(bench.regs.rip, page + 4096);
    assert_eq!(bench.regs.rbx, 0x566e_6558);
}

/// `create_bounce_frame` of Xen crashes a domain that is to enter a handler at address 0, by
/// whatever vector and from either mode; only what comes from outside is lost.
#[test]
fn an_exception_that_nobody_handles_ends_the_domain() {
    for number in (0..32).filter(|number| ![vector::NMI, vector::MACHINE_CHECK].contains(number)) {
        for mut bench in [process(&[0x90]), kernel(&[0x90])] {
            bench.guest.vcpus[0].traps[usize::from(number)].address = 0;
            let ended = bench.ends(|bench| bench.trap(number, 0));
            assert_eq!(ended, ShutdownReason::CRASH, "vector {number}");
        }
    }
}

fn with_handler(mut bench: Bench, number: u8) -> Bench {
    bench.guest.vcpus[0].traps[usize::from(number)] = TrapInfo {
        vector: number,
        flags: TrapInfo::MASKS_EVENTS,
        cs: FLAT_RING3_CS64,
        pad: 0,
        address: handler(number),
    };
    bench
}

#[test]
fn an_nmi_of_the_host_reaches_the_handler_or_is_lost() {
    // It interrupts ring 3 ...
    for bench in [process(&[0x90]), kernel(&[0x90])] {
        let mut bench = with_handler(bench, vector::NMI);
        let rip = bench.regs.rip;
        bench.guest.m.host_traps.set(HostTraps::NMI);
        bench.trap(vector::NMI, 0);
        assert_eq!(bench.regs.rip, handler(vector::NMI));
        assert_eq!(stack(&bench, 3)[2], rip, "no error code");
        // ... or the shim, while that serves something else.
        bench.guest.m.host_traps.set(HostTraps::NMI);
        bench.trap(UPCALL_VECTOR, 0);
        assert_eq!(bench.regs.rip, handler(vector::NMI), "one at a time");
        assert!(bench.guest.vcpus[0].nmi_pending);
    }
    for mut bench in [process(&[0x90]), kernel(&[0x90])] {
        let rip = bench.regs.rip;
        bench.guest.m.host_traps.set(HostTraps::NMI);
        bench.trap(vector::NMI, 0);
        assert_eq!(bench.regs.rip, rip);
        assert!(!bench.guest.vcpus[0].nmi_pending);
    }
}

#[test]
fn a_machine_check_comes_before_an_nmi_and_must_have_a_handler() {
    let bench = with_handler(kernel(&[0x90]), vector::NMI);
    let mut bench = with_handler(bench, vector::MACHINE_CHECK);
    bench.guest.m.host_traps.set(HostTraps::all());
    bench.trap(vector::MACHINE_CHECK, 0);
    assert_eq!(bench.regs.rip, handler(vector::MACHINE_CHECK));
    assert!(bench.guest.vcpus[0].nmi_pending, "it follows");
    bench.trap(UPCALL_VECTOR, 0);
    assert_eq!(bench.regs.rip, handler(vector::NMI));
    let mut bench = process(&[0x90]);
    bench.guest.m.host_traps.set(HostTraps::MACHINE_CHECK);
    let ended = bench.ends(|bench| bench.trap(vector::MACHINE_CHECK, 0));
    assert_eq!(ended, ShutdownReason::CRASH);
}

#[test]
fn a_guest_that_hides_where_it_was_is_ended() {
    let mut bench = kernel(&[0x90]);
    let ended = bench.ends(|bench| bench.enter_as(Regs::LOST_FRAME, 0));
    assert_eq!(ended, ShutdownReason::CRASH);
}
