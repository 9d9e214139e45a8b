//! Bounce frames: what a handler finds on its stack and in its registers.

use xen_abi::mmu::Pte;
use xen_abi::sched::ShutdownReason;
use xen_abi::trap::{FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_DS, rflags, vector};

use super::{distinct, stack};
use crate::cpu::{Assist, Callback, Regs};
use crate::testing::Bench;

pub(super) const CS64: u64 = FLAT_RING3_CS64 as u64;
pub(super) const CS32: u64 = FLAT_RING3_CS32 as u64;
pub(super) const DS: u64 = FLAT_RING3_DS as u64;
/// Arithmetic flags and ID, which every context has for itself.
const ARITHMETIC: u64 = 0x20_08d5;
/// What the entry of a handler clears.
pub(super) const CLEARED: u64 = rflags::TF | rflags::NT | rflags::RF | rflags::AC;
/// Something that the emulator does not know: `ud2`, and no signature behind it.
const UD2: [u8; 8] = [0x0f, 0x0b, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90];

/// A kernel with handlers, its stack at an odd place.
pub(super) fn kernel() -> Bench {
    let mut bench = Bench::new();
    bench.handlers_for_user();
    bench.mask_events(false);
    distinct(&mut bench.regs);
    bench.regs.rip = Bench::KERNEL + 0x55;
    bench.put(bench.regs.rip, &UD2);
    bench.regs.rsp = bench.page(90) + 0x123;
    bench.regs.rflags = ARITHMETIC | CLEARED | rflags::DF | rflags::IF | rflags::RESERVED;
    bench
}

/// A process on top of that kernel.
pub(super) fn process() -> Bench {
    let mut bench = Bench::new();
    bench.handlers_for_user();
    bench.make_user();
    bench.enter_user();
    distinct(&mut bench.regs);
    bench.put(Bench::USER, &UD2);
    bench.regs.rflags = ARITHMETIC | CLEARED | rflags::IF | rflags::RESERVED;
    bench
}

/// Checks what the handler starts with, and that nothing else was touched.
fn check_entry(bench: &Bench, before: Regs, handler: u64) {
    let regs = &bench.regs;
    assert_eq!((regs.rip, regs.cs, regs.ss), (handler, CS64, DS));
    let kept = before.rflags & !CLEARED | rflags::IF | rflags::RESERVED;
    assert_eq!(regs.rflags, kept);
    assert!(regs.rsp.is_multiple_of(8));
    assert!(bench.guest.vcpus[0].in_kernel);
    let mut rest = *regs;
    (rest.rip, rest.cs, rest.rflags) = (before.rip, before.cs, before.rflags);
    (rest.rsp, rest.ss) = (before.rsp, before.ss);
    (rest.vector, rest.error) = (before.vector, before.error);
    // What these held is in the frame.
    assert_eq!((rest.rcx, rest.r11), (regs.rip, regs.rflags), "for SYSRET");
    (rest.rcx, rest.r11) = (before.rcx, before.r11);
    assert_eq!(rest, before);
}

#[test]
fn a_fault_in_the_kernel() {
    for masked in [false, true] {
        let mut bench = kernel();
        bench.mask_events(masked);
        let before = bench.regs;
        bench.trap(vector::INVALID_OPCODE, 0);
        check_entry(&bench, before, Bench::HANDLER + 6);
        assert_eq!(bench.regs.rsp, (before.rsp & !15) - 7 * 8);
        let shown_if = if masked { 0 } else { rflags::IF };
        let frame = [
            0xcc,
            0x11,
            Bench::KERNEL + 0x55,
            // The kernel sees itself in ring 0, and whether it had masked events.
            0xe030 | u64::from(masked) << 32,
            before.rflags & !rflags::IF | shown_if,
            before.rsp,
            DS,
        ];
        assert_eq!(stack(&bench, 7), frame);
        assert_eq!(bench.upcall().1, masked.into(), "the mask stays");
    }
}

#[test]
fn a_fault_in_the_kernel_with_an_error_code() {
    let mut bench = kernel();
    bench.guest.m.fault_address = 0xdead_0000;
    bench.regs.rsp = bench.page(91);
    let before = bench.regs;
    // To the CPU it was a write of ring 3 to nothing.
    bench.trap(vector::PAGE_FAULT, 6);
    check_entry(&bench, before, Bench::HANDLER + 14);
    let frame = [
        0xcc,
        0x11,
        2,
        Bench::KERNEL + 0x55,
        0xe030,
        before.rflags,
        before.rsp,
        DS,
    ];
    assert_eq!(stack(&bench, 8), frame);
    assert_eq!(bench.regs.rsp, before.rsp - 8 * 8);
    let info = bench.guest.vcpus[0].info;
    let cr2 = info.offset + xen_abi::shared_info::vcpu_info::CR2;
    let told = crate::mem::Frames::load64(&bench.guest.m, info.frame, cr2);
    assert_eq!(told, 0xdead_0000);
}

#[test]
fn a_fault_in_a_process() {
    let mut bench = process();
    let (user, kernel) = {
        let spaces = bench.guest.vcpus[0].spaces.as_ref().expect("tables");
        (spaces.user(), spaces.kernel())
    };
    assert_eq!(Some(bench.guest.m.root), user);
    bench.guest.m.gs_base = 0x7777;
    bench.guest.vcpus[0].other_gs_base = 0xffff_8800_0000_1000;
    bench.guest.m.fault_address = 0x1000;
    bench.regs.rsp = 0x7fff_1234_5671;
    let before = bench.regs;
    bench.trap(vector::PAGE_FAULT, 4);
    check_entry(&bench, before, Bench::HANDLER + 14);
    // On the kernel's stack, with the kernel's tables and base of GS.
    let top = bench.guest.vcpus[0].kernel_sp;
    assert_eq!(bench.regs.rsp, top - 8 * 8);
    assert_eq!(bench.guest.m.root, kernel);
    assert_eq!(bench.guest.m.gs_base, 0xffff_8800_0000_1000);
    assert_eq!(bench.guest.vcpus[0].other_gs_base, 0x7777);
    let frame = [
        0xcc,
        0x11,
        4,
        Bench::USER,
        CS64,
        before.rflags,
        before.rsp,
        DS,
    ];
    assert_eq!(stack(&bench, 8), frame);
}

#[test]
fn a_fault_in_a_32_bit_process_shows_its_selector() {
    let mut bench = process();
    bench.regs.cs = CS32;
    bench.regs.ss = 0x2b;
    let before = bench.regs;
    bench.trap(vector::INVALID_OPCODE, 0);
    check_entry(&bench, before, Bench::HANDLER + 6);
    assert_eq!(stack(&bench, 7)[3], CS32);
    assert_eq!(stack(&bench, 7)[6], 0x2b);
}

#[test]
fn a_trap_that_masks_events() {
    let mut bench = kernel();
    bench.guest.vcpus[0].traps[6].flags |= 4;
    bench.trap(vector::INVALID_OPCODE, 0);
    assert_eq!(bench.upcall().1, 1);
    assert_eq!(stack(&bench, 4)[3], 0xe030, "the frame has what was before");
    assert_ne!(stack(&bench, 5)[4] & rflags::IF, 0);
}

#[test]
fn the_io_privilege_is_shown_only_if_wanted() {
    for assist in [Assist::empty(), Assist::ARCHITECTURAL_IOPL] {
        let mut bench = kernel();
        bench.guest.assist = assist;
        bench.guest.vcpus[0].iopl = 2;
        bench.regs.rflags |= 3 << 12;
        bench.trap(vector::INVALID_OPCODE, 0);
        let expected = if assist.is_empty() { 0 } else { 2 << 12 };
        assert_eq!(stack(&bench, 5)[4] & rflags::IOPL, expected);
        assert_eq!(bench.regs.rflags & rflags::IOPL, 0);
    }
}

#[test]
fn an_event_comes_after_the_fault_that_it_met() {
    let mut bench = kernel();
    bench.guest.vcpus[0].event.address = Bench::KERNEL + 0x100;
    let port = bench.bind_virq(xen_abi::evtchn::virq::DEBUG);
    bench.regs.rip = Bench::KERNEL + 0x55;
    let guest = &bench.guest;
    guest.channels.raise(&guest.m, &guest.vcpus, port);
    let before = bench.regs;
    bench.trap(vector::INVALID_OPCODE, 0);
    // The event interrupts the first instruction of the fault's handler.
    assert_eq!(bench.regs.rip, Bench::KERNEL + 0x100);
    let event = stack(&bench, 7);
    assert_eq!((event[2], event[3]), (Bench::HANDLER + 6, 0xe030));
    assert_eq!(event[5], (before.rsp & !15) - 7 * 8);
    assert_eq!(bench.upcall(), (1, 1));
    // One upcall for each return: masked now, another event waits.
    bench.trap(crate::cpu::UPCALL_VECTOR, 0);
    assert_eq!(bench.regs.rip, Bench::KERNEL + 0x100);
    assert_eq!(stack(&bench, 7), event);
}

#[test]
fn a_frame_across_two_pages() {
    let mut bench = kernel();
    bench.regs.rsp = bench.page(91) + 16;
    bench.trap(vector::INVALID_OPCODE, 0);
    assert_eq!(bench.regs.rsp, bench.page(91) - 40);
    assert_eq!(stack(&bench, 7)[0], 0xcc);
    assert_eq!(stack(&bench, 7)[6], DS);
}

#[test]
fn a_stack_that_can_not_take_it_ends_the_domain() {
    let bad = [
        0,
        0x20,
        0x1000,
        0x8000_0000_0000,
        0xffff_8000_0000_0000,
        0xffff_8800_0000_0000,
        u64::MAX,
    ];
    for rsp in bad {
        let mut bench = kernel();
        bench.regs.rsp = rsp;
        let ended = bench.ends(|bench| bench.trap(vector::INVALID_OPCODE, 0));
        assert_eq!(ended, ShutdownReason::CRASH, "{rsp:#x}");
    }
    // A read-only page, from user mode.
    let mut bench = process();
    let page = bench.page(118);
    bench.guest.m.root = bench.guest.vcpus[0]
        .spaces
        .as_ref()
        .expect("tables")
        .kernel();
    let frame = bench.frame(page);
    bench.guest.vcpus[0].in_kernel = true;
    bench
        .remap(page, Pte::new(frame, Pte::PRESENT))
        .expect("its own");
    let ended = bench.ends(|bench| {
        bench.regs.rsp = page + 2048;
        bench.put(Bench::KERNEL, &UD2);
        bench.regs.rip = Bench::KERNEL;
        bench.trap(vector::INVALID_OPCODE, 0);
    });
    assert_eq!(ended, ShutdownReason::CRASH);
}

#[test]
fn a_fault_without_a_handler_ends_the_domain() {
    let mut bench = kernel();
    bench.guest.vcpus[0].traps[6].address = 0;
    let ended = bench.ends(|bench| bench.trap(vector::INVALID_OPCODE, 0));
    assert_eq!(ended, ShutdownReason::CRASH);
}

#[test]
fn an_event_without_a_callback_ends_the_domain() {
    let mut bench = kernel();
    let port = bench.bind_virq(xen_abi::evtchn::virq::DEBUG);
    let guest = &bench.guest;
    guest.channels.raise(&guest.m, &guest.vcpus, port);
    let ended = bench.ends(|bench| bench.trap(crate::cpu::UPCALL_VECTOR, 0));
    assert_eq!(ended, ShutdownReason::CRASH);
}

#[test]
fn the_failsafe_callback_has_the_selectors_too() {
    for masks_events in [false, true] {
        let mut bench = kernel();
        bench.guest.vcpus[0].failsafe = Callback {
            address: Bench::KERNEL + 0x300,
            masks_events,
        };
        bench.regs.cs = 0xffff;
        let before = bench.regs;
        bench.enter_as(Regs::FAILED_IRET, 0);
        assert_eq!(bench.regs.rip, Bench::KERNEL + 0x300);
        let frame = [
            0xcc,
            0x11,
            0,
            0,
            0,
            0,
            before.rip,
            0xfffc,
            before.rflags,
            before.rsp,
            DS,
        ];
        assert_eq!(stack(&bench, 11), frame);
        assert_eq!(bench.regs.rsp, (before.rsp & !15) - 11 * 8);
        assert_eq!(bench.upcall().1, masks_events.into());
    }
    let mut bench = kernel();
    let ended = bench.ends(|bench| bench.enter_as(Regs::FAILED_IRET, 0));
    assert_eq!(ended, ShutdownReason::CRASH);
}
