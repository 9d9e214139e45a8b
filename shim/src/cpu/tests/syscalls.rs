//! How system calls of processes reach the guest's kernel.

use xen_abi::trap::rflags;

use super::frames::{CLEARED, CS32, CS64, DS, process};
use super::stack;
use crate::cpu::{Callback, Regs};
use crate::testing::Bench;

#[test]
fn a_system_call_has_no_error_code_and_no_direction_flag() {
    for masks_events in [false, true] {
        let mut bench = process();
        bench.guest.vcpus[0].syscall = Callback {
            address: Bench::KERNEL + 0x200,
            masks_events,
        };
        bench.regs.rflags |= rflags::DF;
        let before = bench.regs;
        bench.syscall(60, &[1, 2, 3]);
        assert_eq!(bench.regs.rip, Bench::KERNEL + 0x200);
        assert_eq!(bench.regs.rflags & (rflags::DF | CLEARED), 0);
        assert_eq!((bench.regs.rax, bench.regs.rdi), (60, 1));
        let frame = [
            Bench::USER + 2,
            before.rflags,
            Bench::USER + 2,
            CS64,
            before.rflags,
            before.rsp,
            DS,
        ];
        assert_eq!(stack(&bench, 7), frame);
        assert_eq!(bench.upcall().1, masks_events.into());
    }
}

#[test]
fn a_system_call_nobody_wants_is_an_invalid_opcode() {
    let mut bench = process();
    bench.syscall(60, &[]);
    assert_eq!(bench.regs.rip, Bench::HANDLER + 6);
    assert_eq!(
        stack(&bench, 3)[2],
        Bench::USER,
        "at the instruction itself"
    );
    let mut bench = process();
    bench.regs.cs = CS32;
    bench.regs.rip = 0xffff_ffff_0040_0002;
    bench.enter_as(Regs::SYSCALL32, 0);
    assert_eq!(bench.regs.rip, Bench::HANDLER + 6);
    let mut bench = process();
    bench.enter_as(Regs::SYSENTER, 0);
    assert_eq!(bench.regs.rip, Bench::HANDLER + 13);
    assert_eq!(stack(&bench, 3)[2], 0, "the error code");
}

#[test]
fn the_rarer_system_calls_go_to_their_callbacks() {
    let mut bench = process();
    bench.guest.vcpus[0].syscall32.address = Bench::KERNEL + 0x210;
    bench.guest.vcpus[0].sysenter = Callback {
        address: Bench::KERNEL + 0x220,
        masks_events: true,
    };
    bench.regs.cs = CS32;
    bench.regs.rip = 0xffff_ffff_0040_0002;
    bench.enter_as(Regs::SYSCALL32, 0);
    assert_eq!(bench.regs.rip, Bench::KERNEL + 0x210);
    assert_eq!(stack(&bench, 4)[2..], [0x40_0002, CS32]);
    assert_eq!(bench.upcall().1, 0);
    bench.enter_user();
    // As the entry stub knows it: SYSENTER keeps neither rip nor rsp.
    (bench.regs.rip, bench.regs.rsp, bench.regs.cs) = (0, 0, 3);
    bench.enter_as(Regs::SYSENTER, 0);
    assert_eq!(bench.regs.rip, Bench::KERNEL + 0x220);
    let frame = stack(&bench, 7);
    assert_eq!((frame[2], frame[3], frame[5]), (0, 3, 0));
    assert_eq!(bench.upcall().1, 1);
}
