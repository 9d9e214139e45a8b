//! What a move does to the guest's clocks and timers.

use xen_abi::evtchn::virq;
use xen_abi::hypercall::{SET_TIMER_OP, XEN_VERSION};
use xen_abi::shared_info::{time_info, vcpu_info};

use super::{AWAY, MINUTE, STOPPED, suspend, to_new};
use crate::host::{Arrival, Xen};
use crate::mem::Frames;
use crate::options::{Blackout, Options};
use crate::points::time::SECOND;
use crate::testing::{Bench, Journey};

#[test]
fn the_clocks_go_on_and_count_the_time_away() {
    for (uptime, away) in [
        (17 * SECOND, AWAY),
        (Bench::UPTIME * 9, AWAY),
        (1, 0),
        (17 * SECOND, 90 * MINUTE),
    ] {
        let mut bench = Bench::new();
        bench.guest.m.clock.pass(7 * MINUTE);
        let (clock, wall) = (bench.guest_clock(), bench.guest_wall());
        assert_eq!(clock, 7 * MINUTE);
        assert_eq!(wall, bench.guest.host.wall());
        let journey = to_new(&bench, uptime, away);
        suspend(&mut bench, journey);
        assert_eq!(bench.guest_clock(), clock + away);
        assert_eq!(bench.guest_wall(), wall + away);
        assert_eq!(bench.guest_wall(), bench.guest.host.wall());
        assert_eq!(bench.guest.now(), bench.guest_clock());
    }
}

#[test]
fn a_hidden_blackout_shows_only_on_the_wall_clock() {
    let mut bench = Bench::with(Options {
        blackout: Blackout::Hidden,
        ..Options::default()
    });
    bench.guest.m.clock.pass(MINUTE);
    let clock = bench.guest_clock();
    let journey = to_new(&bench, 5, AWAY);
    suspend(&mut bench, journey);
    assert_eq!(bench.guest_clock(), clock);
    assert_eq!(bench.guest_wall(), bench.guest.host.wall());
}

#[test]
fn a_host_whose_clock_is_behind_does_not_turn_time_back() {
    let mut bench = Bench::new();
    bench.guest.m.clock.pass(MINUTE);
    let clock = bench.guest_clock();
    let behind = Journey::Moved {
        arrival: Arrival::NewDomain,
        uptime: SECOND,
        wall: bench.guest.host.wall() - 20 * SECOND,
    };
    suspend(&mut bench, behind);
    assert_eq!(bench.guest_clock(), clock, "it stands still meanwhile");
    assert_eq!(bench.guest_wall(), bench.guest.host.wall());
}

#[test]
fn the_guest_learns_that_it_was_stopped_until_it_has_looked() {
    let mut bench = Bench::new();
    assert_eq!(bench.time_flags() & STOPPED, 0);
    let journey = to_new(&bench, SECOND, AWAY);
    suspend(&mut bench, journey);
    assert_ne!(bench.time_flags() & STOPPED, 0, "it can see it now");
    // The guest clears it when it has seen it, and it is not set again.
    let at = vcpu_info::TIME + time_info::FLAGS;
    let seen = bench.time_flags() & !STOPPED;
    bench.guest.m.store8(Bench::SHARED_INFO, at, seen);
    bench.guest.publish_time_now(0);
    assert_eq!(bench.time_flags() & STOPPED, 0);
    suspend(&mut bench, Journey::Cancelled);
    assert_eq!(
        bench.time_flags() & STOPPED,
        0,
        "it was not stopped for long"
    );
}

/// Lets a second pass, after which the shim tells the host what the guest's devices take of it.
fn tell_figures(bench: &mut Bench) {
    bench.guest.m.clock.pass(SECOND);
    bench.guest.host.announce();
    bench.trap(crate::cpu::UPCALL_VECTOR, 0);
}

#[test]
fn a_deadline_that_passed_on_the_way_fires_once() {
    let mut bench = Bench::new();
    let timer = bench.bind_virq(virq::TIMER);
    let deadline = bench.guest.now() + 2 * SECOND;
    assert_eq!(bench.call(SET_TIMER_OP, &[deadline]), Ok(0));
    let journey = to_new(&bench, MINUTE, AWAY);
    suspend(&mut bench, journey);
    assert!(bench.take_events().contains(&timer.0));
    tell_figures(&mut bench);
    assert_eq!(bench.guest.host.armed, None);
    assert_eq!(bench.call(XEN_VERSION, &[7, 0]), Ok(4096));
    assert_eq!(bench.take_events(), [0u32; 0]);
}

#[test]
fn a_deadline_to_come_is_asked_of_the_new_host_in_its_time() {
    let mut bench = Bench::new();
    let timer = bench.bind_virq(virq::TIMER);
    let deadline = bench.guest.now() + MINUTE;
    assert_eq!(bench.call(SET_TIMER_OP, &[deadline]), Ok(0));
    let journey = to_new(&bench, 3 * SECOND, AWAY);
    suspend(&mut bench, journey);
    assert!(!bench.take_events().contains(&timer.0));
    tell_figures(&mut bench);
    let expected = 3 * SECOND + MINUTE - AWAY;
    assert_eq!(bench.guest.host.armed, Some(expected));
    bench.guest.m.clock.pass(MINUTE - AWAY - SECOND);
    bench.guest.host.announce();
    bench.trap(crate::cpu::UPCALL_VECTOR, 0);
    assert_eq!(bench.take_events(), [timer.0]);
    assert_eq!(bench.guest.now(), deadline);
}

#[test]
fn a_new_host_is_asked_even_for_what_the_old_one_was() {
    let mut bench = Bench::new();
    let deadline = bench.guest.now() + MINUTE;
    assert_eq!(bench.call(SET_TIMER_OP, &[deadline]), Ok(0));
    let armed = bench.guest.host.armed;
    // By chance the new host's clock is just where the old one's would be.
    let uptime = bench.guest.host.now_ns() + AWAY;
    let journey = to_new(&bench, uptime, AWAY);
    suspend(&mut bench, journey);
    tell_figures(&mut bench);
    assert_eq!(bench.guest.host.armed, armed);
}
