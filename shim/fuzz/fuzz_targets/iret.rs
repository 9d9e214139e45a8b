//! Any frame that a kernel returns with, from any mode, between any traps: ring 3 is entered only as
//! ring 3, with interrupts on and without I/O privilege; SYSRET only where it does what IRET would;
//! tables and GS bases follow the mode; and a frame made for a handler tells the truth.

#![no_main]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use libfuzzer_sys::fuzz_target;
use unmoved_shim::cpu::{Assist, Regs};
use unmoved_shim::testing::{Bench, Ended};
use xen_abi::hypercall as nr;
use xen_abi::trap::{FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_DS, IretContext, rflags};

const KERNEL_GS: u64 = 0xffff_8880_0000_1000;
const USER_GS: u64 = 0x7fff_0000_1000;

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn raw(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    fn selector(&mut self) -> Option<u64> {
        let known = [
            FLAT_RING3_CS64,
            FLAT_RING3_CS32,
            FLAT_RING3_DS,
            0,
            0x2b,
            0x33,
        ];
        let byte = self.byte()?;
        let selector = match known.get(usize::from(byte % 8)) {
            Some(&selector) => selector.into(),
            None => self.raw()?,
        };
        Some(if byte & 0x80 == 0 {
            selector & !3
        } else {
            selector
        })
    }

    fn address(&mut self) -> Option<u64> {
        Some(match self.byte()? % 8 {
            0 => Bench::KERNEL,
            1 => Bench::USER,
            2 => 0x7fff_ffff_ffff,
            3 => 0x8000_0000_0000,
            4 => 0xffff_8300_0000_0000,
            5 => u64::MAX,
            _ => self.raw()?,
        })
    }

    fn frame(&mut self) -> Option<IretContext> {
        Some(IretContext {
            rax: self.byte()?.into(),
            r11: self.address()?,
            rcx: self.address()?,
            flags: u64::from(self.byte()?) << 1,
            rip: self.address()?,
            cs: self.selector()?,
            rflags: self.raw()?,
            rsp: self.address()?,
            ss: self.selector()?,
        })
    }
}

/// What ring 3 may be entered with.
fn check(bench: &Bench, is_sysret: bool) {
    let regs = &bench.regs;
    assert_eq!((regs.cs & 3, regs.ss & 3), (3, 3), "{regs:x?}");
    assert_eq!((regs.cs >> 16, regs.ss >> 16), (0, 0), "{regs:x?}");
    let fixed = rflags::IF | rflags::RESERVED | rflags::IOPL | rflags::VM;
    assert_eq!(regs.rflags & fixed, rflags::IF | rflags::RESERVED);
    assert_eq!(regs.rflags & !(rflags::GUEST | fixed), 0);
    if is_sysret {
        let is_flat = regs.cs == u64::from(FLAT_RING3_CS64) && regs.ss == u64::from(FLAT_RING3_DS);
        let is_kept = regs.rcx == regs.rip && regs.r11 == regs.rflags;
        let top = regs.rip >> 47;
        assert!(
            is_flat && is_kept && (top == 0 || top == 0x1_ffff),
            "{regs:x?}"
        );
        assert_eq!(regs.rflags & (rflags::TF | rflags::RF), 0, "{regs:x?}");
    }
    let other = bench.guest.vcpus[0].other_gs_base;
    let bases = if bench.guest.vcpus[0].in_kernel {
        (KERNEL_GS, USER_GS)
    } else {
        (USER_GS, KERNEL_GS)
    };
    assert_eq!((bench.guest.m.gs_base, other), bases);
}

/// Checks the frame that a handler was given against what it interrupted.
fn check_frame(bench: &Bench, before: &Regs, was_kernel: bool, skipped: u64) {
    let at = |index: u64| bench.get::<u64>(bench.regs.rsp + (index + skipped) * 8);
    assert_eq!(
        (bench.get::<u64>(bench.regs.rsp), at(2)),
        (before.rcx, before.rip)
    );
    let cs = if was_kernel {
        before.cs & 0xfffc
    } else {
        before.cs & 0xffff
    };
    let (_, masked) = bench.upcall();
    assert_eq!(at(3), cs | u64::from(masked) << 32);
    assert_eq!(at(4) & rflags::IF == 0, masked != 0);
    let same = rflags::GUEST;
    assert_eq!(at(4) & same, before.rflags & same);
    assert_eq!((at(5), at(6)), (before.rsp, before.ss & 0xffff));
}

fn step(bench: &mut Bench, input: &mut Bytes<'_>) -> Option<()> {
    let in_kernel = bench.guest.vcpus[0].in_kernel;
    let kind = input.byte()?;
    if kind & 0x80 != 0 && in_kernel {
        bench.regs.rsp = bench.page(80) + u64::from(input.byte()?);
    }
    let before = bench.regs;
    match kind % 4 {
        0 | 1 if in_kernel => {
            let frame = input.frame()?;
            let va = bench.page(1);
            bench.put(va, &frame);
            bench.regs.rsp = va;
            let is_sysret = bench.syscall(nr::IRET, &[]);
            check(bench, is_sysret);
            assert_eq!(bench.guest.vcpus[0].in_kernel, frame.cs & 3 != 3);
            assert_eq!((bench.regs.rip, bench.regs.rsp), (frame.rip, frame.rsp));
            let masked = frame.rflags & rflags::IF == 0;
            assert_eq!(bench.upcall().1, u8::from(masked));
        }
        0 | 1 => {
            let is_sysret = bench.syscall(input.byte()?.into(), &[]);
            check(bench, is_sysret);
            assert_eq!(bench.regs.rip, Bench::HANDLER);
        }
        2 => {
            let vector = [1u8, 3, 7][usize::from(input.byte()? % 3)];
            let is_sysret = bench.enter_as(vector.into(), 0);
            check(bench, is_sysret);
            check_frame(bench, &before, in_kernel, 0);
        }
        _ => {
            // The CPU refused what the guest wanted to return to.
            let is_sysret = bench.enter_as(Regs::FAILED_IRET, 0);
            check(bench, is_sysret);
            check_frame(bench, &before, in_kernel, 4);
        }
    }
    Some(())
}

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let Some(first) = input.byte() else {
        return;
    };
    let mut bench = Bench::new();
    bench.handlers_for_user();
    bench.make_user();
    bench.guest.m.gs_base = KERNEL_GS;
    let vcpu = &mut bench.guest.vcpus[0];
    vcpu.other_gs_base = USER_GS;
    vcpu.syscall.address = Bench::HANDLER;
    if first & 1 != 0 {
        vcpu.failsafe.address = Bench::HANDLER + 1;
    }
    if first & 2 != 0 {
        bench.guest.assist = Assist::ARCHITECTURAL_IOPL;
    }
    loop {
        match catch_unwind(AssertUnwindSafe(|| step(&mut bench, &mut input))) {
            Ok(Some(())) => {}
            Ok(None) => return bench.check(),
            // A stack that is not there, or no failsafe callback.
            Err(thrown) if thrown.is::<Ended>() => return,
            Err(panic) => resume_unwind(panic),
        }
    }
});
