//! `sched_op`: waiting for events and for time, and the end of the domain.

use xen_abi::Errno;
use xen_abi::hypercall::SCHED_OP;
use xen_abi::sched::{Poll, ShutdownReason, op};
use xen_abi::vcpu::runstate;

use super::{HOLE, UNMAPPED};
use crate::points::time::SECOND;
use crate::testing::Bench;

const HANDLER: u64 = Bench::KERNEL + 0x100;

fn poll(bench: &mut Bench, ports: &[u32], timeout: u64) -> Result<u64, Errno> {
    let list = bench.page(3);
    ports
        .iter()
        .enumerate()
        .for_each(|(index, port)| bench.put(list + index as u64 * 4, port));
    let arg = bench.arg(&Poll {
        ports: list,
        nr_ports: ports.len() as u32,
        pad: 0,
        timeout,
    });
    bench.call(SCHED_OP, &[op::POLL, arg])
}

#[test]
fn yield_gives_the_slice_away() {
    let mut bench = Bench::new();
    assert_eq!(bench.call(SCHED_OP, &[op::YIELD, 0]), Ok(0));
    assert_eq!(bench.guest.host.yields, 1);
    assert_eq!(bench.guest.host.waits, 0);
}

#[test]
fn block_unmasks_and_waits_for_an_event() {
    let mut bench = Bench::new();
    bench.listen(HANDLER);
    let port = bench.bind_virq(xen_abi::evtchn::virq::TIMER);
    bench.mask_events(true);
    let deadline = bench.guest.now() + 3 * SECOND;
    bench.guest.vcpus[0].timer.singleshot = Some(deadline);
    // What the host has to say meanwhile does not end the wait.
    let meanwhile = bench
        .guest
        .host
        .time_at(deadline - SECOND, &bench.guest.time);
    let dom0 = &mut bench.guest.host.dom0;
    dom0.plan(meanwhile, |dom0| dom0.write("data/note", "hello"));
    let rip = bench.regs.rip;
    assert_eq!(bench.call(SCHED_OP, &[op::BLOCK, 0]), Ok(0));
    assert_eq!(bench.guest.now(), deadline);
    let note = bench.store("/local/domain/1/data/note");
    assert_eq!(note.as_deref(), Some("hello"));
    // The event is delivered on the way out, with the hypercall's answer in place.
    assert_eq!(bench.regs.rip, HANDLER);
    assert_eq!(bench.upcall(), (1, 1));
    assert_eq!(bench.take_events(), [port.0]);
    assert_eq!(bench.get::<u64>(bench.regs.rsp + 16), rip + 2);
    let vcpu = &bench.guest.vcpus[0];
    assert!(!vcpu.is_blocked);
    assert_eq!(vcpu.runstate.state, runstate::RUNNING);
    assert_eq!(
        vcpu.runstate.time[runstate::BLOCKED as usize],
        3 * SECOND,
        "all of the wait is accounted as blocked"
    );
}

#[test]
fn block_with_an_event_pending_does_not_wait() {
    let mut bench = Bench::new();
    bench.listen(HANDLER);
    let port = bench.bind_virq(xen_abi::evtchn::virq::DEBUG);
    bench.mask_events(true);
    let guest = &bench.guest;
    guest.channels.raise(&guest.m, &guest.vcpus, port);
    assert_eq!(bench.call(SCHED_OP, &[op::BLOCK, 0]), Ok(0));
    assert_eq!(bench.guest.host.waits, 0);
    assert_eq!(bench.regs.rip, HANDLER);
}

#[test]
fn poll_ends_with_a_pending_port_even_a_masked_one() {
    let mut bench = Bench::new();
    let port = bench.bind_virq(xen_abi::evtchn::virq::TIMER);
    let mask = xen_abi::shared_info::EVTCHN_MASK;
    crate::mem::Frames::store64(&bench.guest.m, Bench::SHARED_INFO, mask, !0);
    let deadline = bench.guest.now() + SECOND;
    bench.guest.vcpus[0].timer.singleshot = Some(deadline);
    assert_eq!(poll(&mut bench, &[77, port.0], 0), Ok(0));
    assert_eq!(bench.guest.now(), deadline);
    assert_eq!(bench.guest.host.waits, 1);
    assert_eq!(bench.upcall(), (0, 1), "a masked event is not announced");
    // It is still pending, so a second poll does not wait at all.
    assert_eq!(poll(&mut bench, &[port.0], 0), Ok(0));
    assert_eq!(bench.guest.host.waits, 1);
}

#[test]
fn poll_ends_at_its_timeout_without_an_event() {
    let mut bench = Bench::new();
    bench.bind_virq(xen_abi::evtchn::virq::TIMER);
    let timeout = bench.guest.now() + 5 * SECOND;
    assert_eq!(poll(&mut bench, &[77], timeout), Ok(0));
    assert_eq!(bench.guest.now(), timeout);
    assert_eq!(bench.take_events(), [0u32; 0]);
    assert!(bench.guest.vcpus[0].polling.is_empty());
    assert_eq!(bench.guest.vcpus[0].timer.poll, None);
    let told = &bench.guest.vcpus[0].runstate;
    assert_eq!(told.state, runstate::RUNNING);
    assert_eq!(told.time[runstate::BLOCKED as usize], 5 * SECOND);
    // One that is over already does not wait.
    assert_eq!(poll(&mut bench, &[77], timeout - 1), Ok(0));
    assert_eq!(bench.guest.now(), timeout);
    let told = &bench.guest.vcpus[0].runstate;
    assert_eq!(told.state, runstate::RUNNING);
}

#[test]
fn poll_ends_early_for_an_unmasked_event() {
    let mut bench = Bench::new();
    bench.listen(HANDLER);
    let timer = bench.bind_virq(xen_abi::evtchn::virq::TIMER);
    let deadline = bench.guest.now() + SECOND;
    bench.guest.vcpus[0].timer.singleshot = Some(deadline);
    assert_eq!(poll(&mut bench, &[77], deadline + SECOND), Ok(0));
    assert_eq!(bench.guest.now(), deadline);
    assert_eq!(bench.regs.rip, HANDLER);
    assert_eq!(bench.take_events(), [timer.0]);
    assert_eq!(bench.guest.vcpus[0].timer.poll, None, "it is over");
}

#[test]
fn poll_checks_its_ports() {
    let mut bench = Bench::new();
    let ports = [1u32; 129];
    assert_eq!(poll(&mut bench, &ports[..129], 1), Err(Errno::EINVAL));
    assert_eq!(poll(&mut bench, &[4096], 1), Err(Errno::EINVAL));
    assert_eq!(poll(&mut bench, &[u32::MAX], 1), Err(Errno::EINVAL));
    assert_eq!(poll(&mut bench, &ports[..128], 1), Ok(0));
    for ports in [UNMAPPED, HOLE] {
        let arg = bench.arg(&Poll {
            ports,
            nr_ports: 1,
            pad: 0,
            timeout: 1,
        });
        let answer = bench.call(SCHED_OP, &[op::POLL, arg]);
        assert_eq!(answer, Err(Errno::EFAULT));
    }
    let answer = bench.call(SCHED_OP, &[op::POLL, UNMAPPED]);
    assert_eq!(answer, Err(Errno::EFAULT));
    assert!(!bench.guest.vcpus[0].is_blocked);
}

#[test]
fn shutdown_ends_the_domain_with_its_reason() {
    for reason in [0, 1, 3, 4, 5].map(ShutdownReason) {
        let mut bench = Bench::new();
        let arg = bench.arg(&reason.0);
        bench.say(b"goodbye");
        let ended = bench.ends(|bench| bench.call(SCHED_OP, &[op::SHUTDOWN, arg]));
        assert_eq!(ended, reason);
        assert_eq!(bench.guest.host.dom0.said, b"goodbye", "its last words");
    }
}

#[test]
fn a_suspend_of_the_guests_own_is_cancelled_at_once() {
    let mut bench = Bench::new();
    let arg = bench.arg(&ShutdownReason::SUSPEND.0);
    assert_eq!(bench.call(SCHED_OP, &[op::SHUTDOWN, arg]), Ok(1));
    let moves = bench.guest.moves;
    assert_eq!((moves.done, moves.cancelled, moves.refused), (0, 0, 0));
    assert_eq!(bench.guest.host.dom0.reports, [], "it is no move");
}

#[test]
fn other_commands_are_refused() {
    let mut bench = Bench::new();
    let arg = bench.arg(&6u32);
    let shutdown = bench.call(SCHED_OP, &[op::SHUTDOWN, arg]);
    assert_eq!(shutdown, Err(Errno::EINVAL));
    let shutdown = bench.call(SCHED_OP, &[op::SHUTDOWN, UNMAPPED]);
    assert_eq!(shutdown, Err(Errno::EFAULT));
    for command in [op::REMOTE_SHUTDOWN, op::WATCHDOG, op::PIN_OVERRIDE, 8, !0] {
        let answer = bench.call(SCHED_OP, &[command, arg]);
        assert_eq!(answer, Err(Errno::ENOSYS), "command {command}");
    }
}
