//! `multicall`: every entry has its own result, and a batch is never longer than others can wait.

use xen_abi::hypercall::{
    FPU_TASKSWITCH, IRET, MMU_UPDATE, MULTICALL, SCHED_OP, STACK_SWITCH, VM_ASSIST, XEN_VERSION,
};
use xen_abi::mmu::MmuUpdate;
use xen_abi::trap::IretContext;
use xen_abi::{Errno, Port};

use super::{HOLE, SELF, UNMAPPED};
use crate::host::HostEvent;
use crate::testing::Bench;

/// Where the tests have their batches: across a page border.
const BATCH: u64 = 70;

fn entry_at(bench: &Bench, index: u64) -> u64 {
    bench.page(BATCH) - 64 * 3 + index * 64
}

/// Writes a batch with junk in the result fields and returns its address.
fn batch(bench: &Bench, calls: &[(u64, &[u64])]) -> u64 {
    for (index, (op, args)) in calls.iter().enumerate() {
        let mut words = [0u64; 8];
        (words[0], words[1]) = (*op, 0x5555);
        words[2..2 + args.len()].copy_from_slice(args);
        bench.put(entry_at(bench, index as u64), &words);
    }
    entry_at(bench, 0)
}

fn results(bench: &Bench, count: u64) -> Vec<Result<u64, Errno>> {
    let result = |index| Errno::from_rax(bench.get(entry_at(bench, index) + 8));
    (0..count).map(result).collect()
}

#[test]
fn every_entry_has_its_own_result_and_none_stops_the_batch() {
    let mut bench = Bench::new();
    let at = batch(
        &bench,
        &[
            (XEN_VERSION, &[0]),
            (XEN_VERSION, &[1, HOLE]),
            (FPU_TASKSWITCH, &[1]),
            (MULTICALL, &[at_once(), 1]),
            (999, &[]),
            (STACK_SWITCH, &[0, 0x1234]),
            (XEN_VERSION, &[7]),
            (VM_ASSIST, &[0, 99]),
            (VM_ASSIST, &[0, 4]),
            (SCHED_OP, &[0]),
        ],
    );
    assert_eq!(bench.call(MULTICALL, &[at, 10]), Ok(0));
    let expected = [
        Ok(0x4_0011),
        Err(Errno::EFAULT),
        Ok(0),
        Err(Errno::EINVAL),
        Err(Errno::ENOSYS),
        Ok(0),
        Ok(4096),
        Err(Errno::EINVAL),
        Ok(0),
        Ok(0),
    ];
    assert_eq!(results(&bench, 10), expected);
    assert_eq!(bench.guest.vcpus[0].kernel_sp, 0x1234);
    assert!(bench.guest.m.task_switched);
    assert_eq!(bench.guest.host.yields, 1);
}

/// An address that a nested batch would have.
const fn at_once() -> u64 {
    Bench::KERNEL
}

#[test]
fn an_empty_batch_is_done_and_a_bad_one_faults() {
    let mut bench = Bench::new();
    assert_eq!(bench.call(MULTICALL, &[UNMAPPED, 0]), Ok(0));
    for (at, count) in [(UNMAPPED, 1), (HOLE, 1), (u64::MAX - 63, 2), (0, u64::MAX)] {
        let answer = bench.call(MULTICALL, &[at, count]);
        assert_eq!(answer, Err(Errno::EFAULT), "{count} at {at:#x}");
    }
}

#[test]
fn a_batch_whose_results_can_not_be_written_stops() {
    let mut bench = Bench::new();
    let calls: [(u64, &[u64]); 2] = [(XEN_VERSION, &[0]), (FPU_TASKSWITCH, &[1])];
    let at = batch(&bench, &calls);
    let page = at & !0xfff;
    let frame = bench.frame(page);
    let read_only = xen_abi::mmu::Pte::new(frame, xen_abi::mmu::Pte::PRESENT);
    assert_eq!(bench.remap(page, read_only), Ok(0));
    assert_eq!(bench.call(MULTICALL, &[at, 2]), Err(Errno::EFAULT));
    assert!(!bench.guest.m.task_switched, "the second was not begun");
}

#[test]
fn an_iret_ends_the_batch() {
    let mut bench = Bench::new();
    let calls: [(u64, &[u64]); 3] = [(FPU_TASKSWITCH, &[1]), (IRET, &[]), (FPU_TASKSWITCH, &[0])];
    let at = batch(&bench, &calls);
    let frame = bench.page(1);
    bench.put(
        frame,
        &IretContext {
            rax: 77,
            rip: Bench::KERNEL + 0x30,
            cs: 0xe030,
            rflags: 0x202,
            rsp: frame + 256,
            ss: 0xe02b,
            ..IretContext::default()
        },
    );
    bench.regs.rsp = frame;
    bench.syscall(MULTICALL, &[at, 3]);
    assert_eq!(bench.regs.rip, Bench::KERNEL + 0x30);
    assert_eq!((bench.regs.rax, bench.regs.rsp), (77, frame + 256));
    assert!(bench.guest.m.task_switched, "what follows it is not done");
}

#[test]
fn a_batch_makes_way_for_the_host() {
    let mut bench = Bench::new();
    let version: (u64, &[u64]) = (XEN_VERSION, &[7]);
    let at = batch(&bench, &[version; 10]);
    let rip = bench.regs.rip;
    bench.guest.host.in_dom0(|dom0| dom0.types(b"ls"));
    bench.syscall(MULTICALL, &[at, 10]);
    assert_eq!((bench.regs.rip, bench.regs.rax), (rip, MULTICALL));
    assert_eq!((bench.regs.rdi, bench.regs.rsi), (at + 64, 9));
    assert_eq!(bench.typed(), b"ls");
    bench.settle();
    assert_eq!(results(&bench, 2), [Ok(4096), Ok(0x5555)]);
    bench.syscall_again();
    assert_eq!((bench.regs.rip, bench.regs.rax), (rip + 2, 0));
    assert_eq!(results(&bench, 10), [Ok(4096); 10]);
}

#[test]
fn a_long_list_in_a_batch_makes_way_too_and_counts_on() {
    let mut bench = Bench::new();
    let data = bench.page(62);
    let ptr = bench.frame(data).addr();
    let list = bench.page(2);
    for index in 0..5 {
        let ptr = ptr + index * 8;
        bench.put(
            list + index * 16,
            &MmuUpdate {
                ptr,
                val: index + 1,
            },
        );
    }
    let done = bench.arg(&0u32);
    let update: &[u64] = &[list, 5, done, SELF];
    let at = batch(&bench, &[(MMU_UPDATE, update), (FPU_TASKSWITCH, &[1])]);
    let rip = bench.regs.rip;
    bench.guest.host.events.push_back(HostEvent::Console);
    bench.syscall(MULTICALL, &[at, 2]);
    assert_eq!((bench.regs.rip, bench.regs.rax), (rip, MULTICALL));
    assert_eq!((bench.regs.rdi, bench.regs.rsi), (at, 2), "the same entry");
    let left: [u64; 6] = bench.get(at);
    assert_eq!(left[2..], [list + 16, 4 | 1 << 31, done, SELF]);
    bench.syscall_again();
    assert_eq!((bench.regs.rip, bench.regs.rax), (rip + 2, 0));
    assert_eq!(results(&bench, 2), [Ok(0), Ok(0)]);
    assert_eq!(bench.get::<u32>(done), 5);
    assert_eq!(bench.get::<[u64; 6]>(data), [1, 2, 3, 4, 5, 0]);
}

#[test]
fn an_event_comes_between_the_parts_of_a_batch() {
    let mut bench = Bench::new();
    let handler = Bench::KERNEL + 0x100;
    bench.listen(handler);
    let Port(port) = bench.bind_virq(xen_abi::evtchn::virq::TIMER);
    let version: (u64, &[u64]) = (XEN_VERSION, &[7]);
    let at = batch(&bench, &[version; 4]);
    bench.guest.vcpus[0].timer.singleshot = Some(bench.guest.now());
    bench.guest.host.events.push_back(HostEvent::Timer);
    let rip = bench.regs.rip;
    bench.syscall(MULTICALL, &[at, 4]);
    assert_eq!(bench.regs.rip, handler);
    assert_eq!(bench.take_events(), [port]);
    // The interrupted context is the SYSCALL itself, with what is left in its registers.
    assert_eq!(bench.get::<u64>(bench.regs.rsp + 16), rip);
    assert_eq!((bench.regs.rax, bench.regs.rsi), (MULTICALL, 3));
}
