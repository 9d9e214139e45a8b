//! What a guest reads before it has written anything, and what it leaves behind.

use xen_abi::hypercall::{GET_DEBUGREG, SCHED_OP, SET_DEBUGREG};
use xen_abi::sched::{ShutdownReason, op};
use xen_abi::trap::{rflags, vector};

use crate::cpu::{Regs, first};
use crate::testing::Bench;

/// Has the kernel execute one privileged instruction on rax, and returns what is there then.
fn execute(bench: &mut Bench, code: [u8; 3], rax: u64) -> u64 {
    bench.put(Bench::KERNEL, &code);
    bench.regs.rip = Bench::KERNEL;
    bench.regs.rax = rax;
    bench.trap(vector::GENERAL_PROTECTION, 0);
    assert_eq!(bench.regs.rip, Bench::KERNEL + 3, "{code:x?}");
    bench.regs.rax
}

const READ_CR0: [u8; 3] = [0x0f, 0x20, 0xc0];
const READ_CR4: [u8; 3] = [0x0f, 0x20, 0xe0];
const WRITE_CR4: [u8; 3] = [0x0f, 0x22, 0xe0];

/// `pv_fixup_guest_cr4` of Xen: the guest's own bits, none of which is set by the builder, and four
/// of the machine's, which it always sees.
#[test]
fn cr4_reads_as_it_was_written_from_the_first_time() {
    let mut bench = Bench::new();
    let read = execute(&mut bench, READ_CR4, 0);
    assert_eq!(read, 0x660, "PAE, MCE, OSFXSR, OSXMMEXCPT");
    execute(&mut bench, WRITE_CR4, read);
    assert_eq!(execute(&mut bench, READ_CR4, 0), read);
    // A bit that is set and cleared again leaves no trace.
    execute(&mut bench, WRITE_CR4, read | 1 << 16);
    assert_eq!(execute(&mut bench, READ_CR4, 0), read | 1 << 16);
    execute(&mut bench, WRITE_CR4, read);
    assert_eq!(execute(&mut bench, READ_CR4, 0), read);
}

#[test]
fn every_register_starts_as_under_xen() {
    let mut bench = Bench::new();
    let expected = Regs {
        rip: bench.regs.rip,
        rsp: bench.regs.rsp,
        rsi: bench.regs.rsi,
        cs: 0xe033,
        ss: 0xe02b,
        rflags: rflags::IF | rflags::RESERVED,
        ..Regs::default()
    };
    assert_eq!(bench.regs, expected);
    assert_eq!(execute(&mut bench, READ_CR0, 0), 0x8005_0033);
    let m = &bench.guest.m;
    assert_eq!(
        (m.cr4, m.xcr0, m.fs_base, m.gs_base, m.task_switched),
        (first::CR4, 3, 0, 0, false)
    );
    // The machine's debug registers are what the guest is told they are.
    let told = [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400];
    assert_eq!((m.debug, bench.guest.vcpus[0].debug), (told, told));
    for index in [0, 1, 2, 3, 6, 7] {
        let read = bench.call(GET_DEBUGREG, &[index]);
        assert_eq!(read, Ok(told[index as usize]), "DR{index}");
    }
    let vcpu = &bench.guest.vcpus[0];
    assert_eq!((vcpu.other_gs_base, vcpu.iopl, vcpu.tsc_aux), (0, 0, 0));
}

#[test]
fn a_guest_that_ends_leaves_no_breakpoint_behind() {
    for reason in [0u32, 1, 3] {
        let mut bench = Bench::new();
        let own = bench.page(3);
        assert_eq!(bench.call(SET_DEBUGREG, &[0, own]), Ok(0));
        assert_eq!(bench.call(SET_DEBUGREG, &[7, 0xf_0401]), Ok(0));
        assert_eq!(bench.guest.m.debug[7], 0xf_0401);
        let arg = bench.arg(&reason);
        let ended = bench.ends(|bench| bench.call(SCHED_OP, &[op::SHUTDOWN, arg]));
        assert_eq!(ended, ShutdownReason(reason));
        assert_eq!(bench.guest.m.debug, first::DEBUG);
    }
    // Nor does one that is ended.
    let mut bench = Bench::new();
    assert_eq!(bench.call(SET_DEBUGREG, &[7, 0xf_0401]), Ok(0));
    bench.ends(|bench| bench.trap(vector::DIVIDE, 0));
    assert_eq!(bench.guest.m.debug, first::DEBUG);
}
