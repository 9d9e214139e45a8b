//! Timers of every kind, and what the runstate makes of the time that passes.

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use xen_abi::evtchn::virq;
use xen_abi::hypercall::{SET_TIMER_OP, VCPU_OP, VM_ASSIST, XEN_VERSION};
use xen_abi::vcpu::{RunstateInfo, SetSingleshotTimer, op, runstate};
use xen_abi::{Errno, Port};

use super::{HOLE, UNMAPPED};
use crate::host::Xen;
use crate::points::time::{SECOND, Time};
use crate::testing::Bench;

/// A guest that has bound its timer interrupt.
fn timed() -> (Bench, Port) {
    let mut bench = Bench::new();
    let port = bench.bind_virq(virq::TIMER);
    (bench, port)
}

/// Lets time pass in ring 3; the host interrupts it when it was asked to.
fn run(bench: &mut Bench, nanoseconds: u64) -> Vec<u32> {
    bench.guest.m.clock.pass(nanoseconds);
    bench.guest.host.announce();
    if !bench.guest.host.events.is_empty() {
        bench.trap(crate::cpu::UPCALL_VECTOR, 0);
    }
    bench.take_events()
}

fn singleshot(bench: &mut Bench, timeout_abs_ns: u64, flags: u32) -> Result<u64, Errno> {
    let arg = bench.arg(&SetSingleshotTimer {
        timeout_abs_ns,
        flags,
        pad: 0,
    });
    bench.call(VCPU_OP, &[op::SET_SINGLESHOT_TIMER, 0, arg])
}

#[test]
fn a_deadline_fires_once_and_at_its_time() {
    for is_vcpu_op in [false, true] {
        let (mut bench, port) = timed();
        let deadline = bench.guest.now() + SECOND;
        let set = if is_vcpu_op {
            singleshot(&mut bench, deadline, 0)
        } else {
            bench.call(SET_TIMER_OP, &[deadline])
        };
        assert_eq!(set, Ok(0));
        let armed = bench.guest.host.now_ns() + SECOND;
        assert_eq!(bench.guest.host.armed, Some(armed), "in the host's time");
        assert_eq!(run(&mut bench, SECOND - 1), [0u32; 0]);
        assert_eq!(run(&mut bench, 1), [port.0]);
        assert_eq!(bench.guest.host.armed, None);
        assert_eq!(run(&mut bench, 100 * SECOND), [0u32; 0]);
    }
}

#[test]
fn a_deadline_can_be_moved_and_taken_back() {
    let (mut bench, port) = timed();
    let now = bench.guest.now();
    assert_eq!(bench.call(SET_TIMER_OP, &[now + 9 * SECOND]), Ok(0));
    assert_eq!(bench.call(SET_TIMER_OP, &[now + SECOND]), Ok(0));
    assert_eq!(run(&mut bench, SECOND), [port.0]);
    assert_eq!(bench.call(SET_TIMER_OP, &[now + 2 * SECOND]), Ok(0));
    assert_eq!(bench.call(SET_TIMER_OP, &[0]), Ok(0));
    assert_eq!(run(&mut bench, 10 * SECOND), [0u32; 0]);
    assert_eq!(bench.guest.host.armed, None);
    assert_eq!(singleshot(&mut bench, now + 20 * SECOND, 0), Ok(0));
    let stop = [op::STOP_SINGLESHOT_TIMER, 0, 0];
    assert_eq!(bench.call(VCPU_OP, &stop), Ok(0));
    assert_eq!(run(&mut bench, 20 * SECOND), [0u32; 0]);
    assert_eq!(bench.guest.host.armed, None);
}

#[test]
fn the_host_is_not_told_of_a_deadline_that_is_put_off() {
    let (mut bench, port) = timed();
    let now = bench.guest.now();
    assert_eq!(bench.call(SET_TIMER_OP, &[now + SECOND]), Ok(0));
    let arms = bench.guest.host.arms;
    for later in [3, 2, 4] {
        assert_eq!(bench.call(SET_TIMER_OP, &[now + later * SECOND]), Ok(0));
    }
    assert_eq!(bench.guest.host.arms, arms);
    assert_eq!(run(&mut bench, 4 * SECOND - 1), [0u32; 0]);
    assert_eq!(run(&mut bench, 1), [port.0]);
    assert_eq!(
        bench.guest.host.arms,
        arms + 1,
        "once it was woken for nothing"
    );
}

#[test]
fn a_deadline_in_the_past_fires_at_once() {
    let (mut bench, port) = timed();
    bench.guest.m.clock.pass(5 * SECOND);
    let now = bench.guest.now();
    assert_eq!(singleshot(&mut bench, now - 1, 0), Ok(0));
    assert_eq!(bench.take_events(), [port.0]);
    assert_eq!(bench.call(SET_TIMER_OP, &[1]), Ok(0));
    assert_eq!(bench.take_events(), [port.0]);
    // Unless the guest wants to be told instead.
    assert_eq!(singleshot(&mut bench, now - 1, 1), Err(Errno::ETIME));
    assert_eq!(bench.take_events(), [0u32; 0]);
    assert_eq!(singleshot(&mut bench, now + 1, 1), Ok(0));
}

#[test]
fn an_absurd_deadline_fires_soon() {
    let (mut bench, port) = timed();
    for deadline in [1 << 51, i64::MAX as u64, 1 << 63, u64::MAX] {
        assert_eq!(bench.call(SET_TIMER_OP, &[deadline]), Ok(0));
        assert_eq!(run(&mut bench, SECOND / 10 - 1), [0u32; 0]);
        assert_eq!(run(&mut bench, 1), [port.0], "{deadline:#x}");
    }
}

#[test]
fn a_far_singleshot_neither_fires_nor_keeps_the_host_busy() {
    let (mut bench, _) = timed();
    for deadline in [i64::MAX as u64, 1 << 63, u64::MAX] {
        assert_eq!(singleshot(&mut bench, deadline, 0), Ok(0));
        let armed = bench.guest.host.armed.expect("it is a deadline");
        assert!(armed > 1 << 62, "{deadline:#x} became {armed:#x}");
        assert_eq!(run(&mut bench, SECOND), [0u32; 0]);
    }
}

#[test]
fn a_periodic_timer_ticks_until_it_is_stopped() {
    let (mut bench, port) = timed();
    let arg = bench.arg(&2_000_000u64);
    assert_eq!(
        bench.call(VCPU_OP, &[op::SET_PERIODIC_TIMER, 0, arg]),
        Ok(0)
    );
    for _ in 0..5 {
        assert_eq!(run(&mut bench, 1_999_999), [0u32; 0]);
        assert_eq!(run(&mut bench, 1), [port.0]);
    }
    assert_eq!(run(&mut bench, 9 * 2_000_000), [port.0], "one for all");
    assert_eq!(bench.call(VCPU_OP, &[op::STOP_PERIODIC_TIMER, 0, 0]), Ok(0));
    assert_eq!(run(&mut bench, SECOND), [0u32; 0]);
}

#[test]
fn periods_have_limits() {
    let (mut bench, _) = timed();
    let limits = [
        (0, Err(Errno::EINVAL)),
        (999_999, Err(Errno::EINVAL)),
        (1_000_000, Ok(0)),
        (u64::MAX >> 2, Ok(0)),
        ((u64::MAX >> 2) + 1, Err(Errno::EINVAL)),
        (u64::MAX, Err(Errno::EINVAL)),
    ];
    for (period, expected) in limits {
        let arg = bench.arg(&period);
        let answer = bench.call(VCPU_OP, &[op::SET_PERIODIC_TIMER, 0, arg]);
        assert_eq!(answer, expected, "{period}");
    }
    for command in [op::SET_PERIODIC_TIMER, op::SET_SINGLESHOT_TIMER] {
        for va in [UNMAPPED, HOLE] {
            let answer = bench.call(VCPU_OP, &[command, 0, va]);
            assert_eq!(answer, Err(Errno::EFAULT));
        }
    }
}

#[test]
fn the_host_is_asked_only_for_what_is_new() {
    let (mut bench, _) = timed();
    let deadline = bench.guest.now() + SECOND;
    assert_eq!(bench.call(SET_TIMER_OP, &[deadline]), Ok(0));
    let arms = bench.guest.host.arms;
    for _ in 0..10 {
        assert_eq!(bench.call(XEN_VERSION, &[0]), Ok(0x4_0011));
    }
    assert_eq!(bench.guest.host.arms, arms);
}

#[test]
fn the_runstate_adds_up() {
    let (mut bench, _) = timed();
    let area = bench.page(4);
    let arg = bench.arg(&area);
    let register = [op::REGISTER_RUNSTATE_MEMORY_AREA, 0, arg];
    assert_eq!(bench.call(VCPU_OP, &register), Ok(0));
    bench.guest.m.clock.pass(3 * SECOND);
    let deadline = bench.guest.now() + 4 * SECOND;
    assert_eq!(bench.call(SET_TIMER_OP, &[deadline]), Ok(0));
    bench.listen(Bench::KERNEL);
    let block = [xen_abi::sched::op::BLOCK, 0];
    assert_eq!(bench.call(xen_abi::hypercall::SCHED_OP, &block), Ok(0));
    bench.guest.m.clock.pass(SECOND);
    let told: RunstateInfo = bench.get(area);
    assert_eq!(told.state, runstate::RUNNING);
    assert_eq!(told.time[runstate::BLOCKED as usize], 4 * SECOND);
    let copy = bench.page(5);
    let get = [op::GET_RUNSTATE_INFO, 0, copy];
    assert_eq!(bench.call(VCPU_OP, &get), Ok(0));
    let asked: RunstateInfo = bench.get(copy);
    assert_eq!(asked.time.iter().sum::<u64>(), bench.guest.now());
    assert_eq!(asked.state_entry_time, bench.guest.now());
    let answer = bench.call(VCPU_OP, &[op::GET_RUNSTATE_INFO, 0, UNMAPPED]);
    assert_eq!(answer, Err(Errno::EFAULT));
}

#[test]
fn a_runstate_update_is_marked_while_it_lasts_if_wanted() {
    let (mut bench, _) = timed();
    let area = bench.page(4);
    let arg = bench.arg(&area);
    let register = [op::REGISTER_RUNSTATE_MEMORY_AREA, 0, arg];
    assert_eq!(bench.call(VCPU_OP, &register), Ok(0));
    assert_eq!(bench.call(VM_ASSIST, &[0, 5]), Ok(0));
    bench.guest.m.clock.pass(SECOND);
    assert_eq!(bench.call(VCPU_OP, &register), Ok(0));
    let told: RunstateInfo = bench.get(area);
    assert_eq!(told.state_entry_time & runstate::UPDATE, 0);
    assert_eq!(told.state_entry_time, bench.guest.now());
}

/// Times of a host or a guest: all sizes, and the borders.
fn instant() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..100 * SECOND,
        Just(0),
        Just(i64::MAX as u64),
        Just(1 << 63),
        Just(u64::MAX)
    ]
}

proptest! {
    /// Asking the host for a guest deadline wakes the guest when the deadline has come, neither
    /// before, which would be a storm of wakeups, nor after.
    #[test]
    fn deadlines_mean_the_same_in_both_times(
        host_now in 0u64..1 << 62,
        guest_now in 0u64..1 << 62,
        deadline in instant(),
    ) {
        let mut time = Time::default();
        time.rebase(host_now, guest_now);
        let asked = time.to_host(deadline);
        assert!(i64::try_from(asked).is_ok());
        assert_eq!(asked <= host_now, deadline <= guest_now);
        if deadline < 1 << 62 && asked > 0 {
            assert_eq!(time.to_guest(asked), deadline);
        }
    }
}
