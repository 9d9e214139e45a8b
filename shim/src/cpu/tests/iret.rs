//! The `iret` hypercall: what a frame may hold, and what becomes of what it may not.

use proptest::prelude::{any, proptest};
use xen_abi::hypercall::IRET;
use xen_abi::sched::ShutdownReason;
use xen_abi::trap::{FLAT_RING3_CS64, FLAT_RING3_DS, IretContext, rflags};

use super::distinct;
use crate::cpu::{Assist, Regs};
use crate::testing::Bench;

const CS64: u64 = FLAT_RING3_CS64 as u64;
const DS: u64 = FLAT_RING3_DS as u64;

/// A frame with every word different, for a return within the kernel.
fn frame() -> IretContext {
    IretContext {
        rax: 0xa1,
        r11: 0xb1,
        rcx: 0xc1,
        flags: 0,
        rip: Bench::KERNEL + 0x400,
        cs: CS64 & !3,
        rflags: rflags::IF | rflags::RESERVED | 0x44,
        rsp: 0xd1d1,
        ss: DS,
    }
}

fn bench() -> Bench {
    let mut bench = Bench::new();
    distinct(&mut bench.regs);
    bench
}

#[test]
fn a_return_within_the_kernel_loads_everything() {
    let mut bench = bench();
    let (root, loads) = (bench.guest.m.root, bench.guest.m.loads);
    let before = bench.regs;
    bench.iret(&frame());
    let expected = Regs {
        rax: 0xa1,
        r11: 0xb1,
        rcx: 0xc1,
        rip: Bench::KERNEL + 0x400,
        cs: CS64,
        rflags: rflags::IF | rflags::RESERVED | 0x44,
        rsp: 0xd1d1,
        ss: DS,
        vector: 0,
        error: 0,
        ..before
    };
    assert_eq!(bench.regs, expected);
    assert!(bench.guest.vcpus[0].in_kernel);
    assert_eq!((bench.guest.m.root, bench.guest.m.loads), (root, loads));
    assert_eq!(bench.upcall().1, 0, "IF unmasks events");
}

#[test]
fn a_return_to_a_process_changes_tables_and_base() {
    let mut bench = bench();
    bench.make_user();
    bench.guest.m.gs_base = 0xffff_8800_0000_1000;
    bench.guest.vcpus[0].other_gs_base = 0x7777;
    let user = bench.guest.vcpus[0].spaces.as_ref().expect("tables").user();
    bench.iret(&IretContext {
        cs: CS64,
        ..frame()
    });
    assert!(!bench.guest.vcpus[0].in_kernel);
    assert_eq!(Some(bench.guest.m.root), user);
    assert_eq!(bench.guest.m.gs_base, 0x7777);
    assert_eq!(bench.guest.vcpus[0].other_gs_base, 0xffff_8800_0000_1000);
    bench.check();
}

#[test]
fn every_way_out_of_a_system_call_is_exact() {
    // In a system call: rcx and r11 are what SYSRET leaves, and SYSRET it is where it can be.
    let in_syscall = IretContext {
        flags: IretContext::FLAG_IN_SYSCALL,
        cs: CS64,
        rip: Bench::USER,
        ..frame()
    };
    let case = |context: &IretContext| {
        let mut bench = bench();
        bench.make_user();
        let va = bench.page(1);
        bench.put(va, context);
        bench.regs.rsp = va;
        let is_sysret = bench.syscall(IRET, &[]);
        (is_sysret, bench.regs)
    };
    let (is_sysret, regs) = case(&in_syscall);
    assert!(is_sysret);
    assert_eq!((regs.rcx, regs.r11), (Bench::USER, regs.rflags));
    // Not where SYSRET would do something else.
    for context in [
        IretContext {
            rip: 0x8000_0000_0000,
            ..in_syscall
        },
        IretContext {
            rip: 0x7fff_ffff_ffff + 1,
            ..in_syscall
        },
        IretContext {
            cs: 0xe023,
            ..in_syscall
        },
        IretContext {
            ss: 0x2b,
            ..in_syscall
        },
        IretContext {
            rflags: in_syscall.rflags | rflags::TF,
            ..in_syscall
        },
        IretContext {
            rflags: in_syscall.rflags | rflags::RF,
            ..in_syscall
        },
        IretContext {
            flags: 0,
            ..in_syscall
        },
    ] {
        let (is_sysret, regs) = case(&context);
        assert!(!is_sysret, "{context:x?}");
        assert_eq!(regs.rip, context.rip);
    }
}

#[test]
fn events_that_waited_come_on_the_way() {
    let mut bench = bench();
    bench.guest.vcpus[0].event.address = Bench::KERNEL + 0x100;
    let port = bench.bind_virq(xen_abi::evtchn::virq::DEBUG);
    let guest = &bench.guest;
    guest.channels.raise(&guest.m, &guest.vcpus, port);
    let stack = bench.page(80);
    let masked = IretContext {
        rflags: rflags::RESERVED,
        rsp: stack,
        ..frame()
    };
    bench.iret(&masked);
    assert_eq!(bench.regs.rip, frame().rip);
    assert_eq!(bench.upcall(), (1, 1));
    bench.iret(&IretContext {
        rsp: stack,
        ..frame()
    });
    assert_eq!(bench.regs.rip, Bench::KERNEL + 0x100);
    assert_eq!(bench.get::<u64>(bench.regs.rsp + 16), frame().rip);
    assert_eq!(bench.regs.rax, 0xa1);
}

#[test]
fn the_virtual_io_privilege_is_taken_only_if_architectural() {
    for assist in [Assist::empty(), Assist::ARCHITECTURAL_IOPL] {
        let mut bench = bench();
        bench.guest.assist = assist;
        bench.guest.vcpus[0].iopl = 1;
        bench.iret(&IretContext {
            rflags: frame().rflags | 3 << 12,
            ..frame()
        });
        let expected = if assist.is_empty() { 1 } else { 3 };
        assert_eq!(bench.guest.vcpus[0].iopl, expected);
        assert_eq!(bench.regs.rflags & rflags::IOPL, 0, "the real one is 0");
    }
}

#[test]
fn what_can_not_be_a_return_ends_the_domain() {
    let mut no_table = bench();
    let ended = no_table.ends(|bench| {
        bench.iret(&IretContext {
            cs: CS64,
            ..frame()
        });
    });
    assert_eq!(ended, ShutdownReason::CRASH);
    for rsp in [0, 0x8000_0000_0000, 0xffff_8300_0000_0000, u64::MAX - 8] {
        let mut bench = bench();
        bench.regs.rsp = rsp;
        let ended = bench.ends(|bench| bench.syscall(IRET, &[]));
        assert_eq!(ended, ShutdownReason::CRASH, "{rsp:#x}");
    }
}

proptest! {
    /// Whatever a kernel wants to return to: it stays in ring 3 with interrupts on, without I/O
    /// privilege, and nothing but the frame's own words is loaded.
    #[test]
    fn no_frame_gains_anything(words in any::<[u64; 9]>(), has_user: bool) {
        let mut bench = bench();
        if has_user {
            bench.make_user();
        }
        let context: IretContext = zerocopy::transmute!(words);
        let to_user = context.cs & 3 == 3;
        if to_user && !has_user {
            let ended = bench.ends(|bench| bench.iret(&context));
            assert_eq!(ended, ShutdownReason::CRASH);
            return Ok(());
        }
        bench.iret(&context);
        let regs = bench.regs;
        assert_eq!((regs.cs & 3, regs.ss & 3), (3, 3));
        assert_eq!((regs.cs >> 16, regs.ss >> 16), (0, 0));
        let fixed = rflags::IF | rflags::RESERVED | rflags::IOPL | rflags::VM;
        assert_eq!(regs.rflags & fixed, rflags::IF | rflags::RESERVED);
        assert_eq!(regs.rflags & !(rflags::GUEST | fixed), 0);
        assert_eq!((regs.rip, regs.rsp, regs.rax), (context.rip, context.rsp, context.rax));
        assert_eq!(bench.guest.vcpus[0].in_kernel, !to_user);
        assert_eq!(bench.upcall().1, u8::from(context.rflags & rflags::IF == 0));
    }
}
