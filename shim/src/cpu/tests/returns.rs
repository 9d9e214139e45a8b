//! A fault and the return from it, for whatever was interrupted.

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use xen_abi::trap::{rflags, vector};

use super::frames::{CS32, CS64, DS, kernel, process};
use super::stack;
use crate::testing::Bench;

/// Any word, and those that mean something as an address, flags or a selector.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..1 << 22,
        Just(Bench::KERNEL),
        Just(CS64),
        Just(CS32),
        Just(DS)
    ]
}

proptest! {
    /// A frame that the handler returns with, as it is, restores what was interrupted.
    #[test]
    fn a_handler_that_returns_leaves_no_trace(
        rip in word(),
        flags in word(),
        rsp in word(),
        cs in word(),
        ss in word(),
        is_kernel: bool,
        masked: bool,
        has_error: bool,
    ) {
        let mut bench = if is_kernel { kernel() } else { process() };
        bench.mask_events(masked);
        bench.guest.m.fault_address = 0x5000;
        let regs = &mut bench.regs;
        regs.rip = rip;
        regs.cs = cs & 0xffff | 3;
        regs.ss = ss & 0xffff | 3;
        regs.rflags = flags & rflags::GUEST | rflags::IF | rflags::RESERVED;
        if !is_kernel {
            regs.rsp = rsp;
        }
        let before = bench.regs;
        let (number, length) = if has_error {
            (vector::PAGE_FAULT, 1)
        } else {
            (vector::DEBUG, 0)
        };
        let events = bench.upcall();
        bench.trap(number, 4);
        // What a kernel does: rcx and r11 are popped, the error code goes, iret.
        let frame = stack(&bench, 7 + length);
        let at = |index: usize| frame[index + length as usize];
        let context = xen_abi::trap::IretContext {
            rax: bench.regs.rax,
            rcx: frame[0],
            r11: frame[1],
            flags: 0,
            rip: at(2),
            cs: at(3),
            rflags: at(4),
            rsp: at(5),
            ss: at(6),
        };
        bench.iret(&context);
        assert_eq!(bench.upcall(), events);
        assert_eq!(bench.guest.vcpus[0].in_kernel, is_kernel);
        let mut after = bench.regs;
        (after.vector, after.error) = (before.vector, before.error);
        assert_eq!(after, before);
    }
}
