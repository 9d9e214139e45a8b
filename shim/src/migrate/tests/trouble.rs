//! Moves in which something does not come, does not answer or is made to go wrong.

use std::panic::{AssertUnwindSafe, catch_unwind};

use xen_abi::blkif::op;

use super::{AWAY, MINUTE, ask, last, suspend, to_new, told, with_fault};
use crate::host::{Arrival, Xen};
use crate::migrate::REMINDER_NS;
use crate::options::{Fault, Options, Phase, Way};
use crate::points::suspend::STALE_NS;
use crate::points::time::SECOND;
use crate::testing::{Bench, DiskDriver, Journey, NetDriver};

/// A guest with a disk whose backend holds so many requests.
fn with_requests(options: Options, count: u64) -> (Bench, DiskDriver) {
    let mut bench = Bench::with(options);
    let nr = bench.plug_disk(0);
    let mut driver = DiskDriver::connect(&mut bench, 0);
    bench.guest.host.dom0.backends[nr].hold(true);
    (0..count).for_each(|at| driver.ask(&mut bench, op::WRITE, at));
    driver.push(&mut bench, true);
    assert_eq!(bench.guest.points.in_flight() as u64, count);
    (bench, driver)
}

#[test]
fn requests_in_flight_are_waited_for() {
    let (mut bench, mut driver) = with_requests(Options::default(), 2);
    let now = bench.guest.host.now_ns();
    for after in [SECOND, 4 * SECOND] {
        let dom0 = &mut bench.guest.host.dom0;
        dom0.plan(now + after, |dom0| dom0.answer(0, 1));
    }
    let wall = bench.guest.host.wall() + 4 * SECOND + AWAY;
    suspend(
        &mut bench,
        Journey::Moved {
            arrival: Arrival::NewDomain,
            uptime: 7,
            wall,
        },
    );
    driver.reap(&mut bench);
    assert_eq!((driver.waiting(), driver.answers), (0, 2));
    assert_eq!(bench.guest.now(), 4 * SECOND + AWAY);
    assert_eq!(last(&bench, "blackout/drain"), "4000000");
    assert_eq!(
        last(&bench, "blackout-us"),
        (4_000_000 + AWAY / 1000).to_string()
    );
}

#[test]
fn storage_that_does_not_answer_refuses_the_suspend() {
    let (mut bench, mut driver) = with_requests(Options::default(), 3);
    let now = bench.guest.host.now_ns();
    let dom0 = &mut bench.guest.host.dom0;
    dom0.plan(now + SECOND, |dom0| dom0.answer(0, 1));
    bench.guest.host.waits = 0;
    let clock = bench.guest_clock();
    ask(&mut bench);
    assert_eq!(bench.guest_clock(), clock + 10 * SECOND, "and no longer");
    let moves = bench.guest.moves;
    assert_eq!((moves.done, moves.cancelled, moves.refused), (0, 0, 1));
    let why = "drain: 2 requests are still in flight after 10 s";
    assert_eq!(last(&bench, "refusal"), why);
    assert_eq!(last(&bench, "in-flight"), "2");
    assert_eq!(last(&bench, "state"), "running");
    assert!(bench.guest.host.waits < 10, "it waits, it does not spin");
    // The disk goes on: what is asked for now is passed on at once.
    driver.ask(&mut bench, op::READ, 40);
    driver.push(&mut bench, true);
    assert_eq!(bench.guest.host.dom0.backends[0].in_flight(), 3);
    // The host may ask again, and this time it works.
    bench.guest.host.in_dom0(|dom0| dom0.answer(0, 3));
    let journey = to_new(&bench, 1, AWAY);
    suspend(&mut bench, journey);
    assert_eq!(bench.guest.moves.done, 1);
}

/// As of a domain that is paused while it is asked: the toolstack has given up, and nobody would let the guest go on.
#[test]
fn a_request_that_nobody_waits_for_any_more_is_refused() {
    let mut bench = Bench::new();
    for (age, is_stale) in [(STALE_NS, false), (STALE_NS + SECOND, true)] {
        let before = bench.guest.moves;
        let acknowledged = bench.guest.host.now_ns();
        bench.guest.host.clock.pass(age);
        if !is_stale {
            bench.guest.host.journeys.push_back(Journey::Cancelled);
        }
        bench.guest.carry_out_suspend(0, acknowledged);
        let since = bench.guest.moves;
        let [refused, cancelled] = [is_stale, !is_stale].map(u64::from);
        assert_eq!(since.refused - before.refused, refused);
        assert_eq!(since.cancelled - before.cancelled, cancelled);
    }
    assert!(last(&bench, "refusal").contains("the host does not wait any more"));
}

#[test]
fn each_of_several_faults_strikes_a_move_of_its_own() {
    let (park, resume) = ((Phase::Park, Way::Fail), (Phase::Resume, Way::Stall));
    let mut bench = Bench::with(Options {
        faults: [park, resume, park]
            .map(|(phase, way)| Fault { phase, way })
            .into(),
        ..Options::default()
    });
    // Park, a move whose resume stalls and in which nothing else happens, park, and then none.
    for (done, refused) in [(0, 1), (1, 1), (1, 2), (2, 2)] {
        let clock = bench.guest_clock();
        if refused == bench.guest.moves.refused {
            let journey = to_new(&bench, 1, AWAY);
            suspend(&mut bench, journey);
        } else {
            ask(&mut bench);
        }
        assert_eq!(
            (bench.guest.moves.done, bench.guest.moves.refused),
            (done, refused)
        );
        let stalled = bench.guest_clock() - clock >= Options::default().drain_ns;
        assert_eq!(stalled, (done, refused) == (1, 1));
    }
}

#[test]
fn the_limit_of_a_drain_is_the_option_s() {
    let options = Options {
        drain_ns: 0,
        ..Options::default()
    };
    let (mut bench, _) = with_requests(options, 1);
    let clock = bench.guest_clock();
    ask(&mut bench);
    assert_eq!(bench.guest_clock(), clock);
    assert_eq!(bench.guest.moves.refused, 1);
}

#[test]
fn a_device_that_does_not_come_keeps_the_guest_parked_and_is_named() {
    let (mut bench, _) = with_requests(Options::default(), 0);
    let host = &mut bench.guest.host;
    let uptime = 100 * SECOND;
    host.dom0.backends[0].miss(true);
    host.dom0.plan(uptime + MINUTE, |dom0| {
        dom0.backends[0].miss(false);
        dom0.announce(0);
        dom0.serve();
    });
    let journey = to_new(&bench, uptime, AWAY);
    let waits = bench.guest.host.waits;
    suspend(&mut bench, journey);
    assert_eq!(bench.guest.host.now_ns(), uptime + MINUTE);
    assert_eq!(bench.guest.now(), AWAY + MINUTE, "that is time as well");
    let told = told(&bench, "waits-for");
    assert!(told[0].starts_with("vbd/51712: "), "{told:?}");
    assert_eq!(told.last(), Some(&""), "nothing is waited for any more");
    // Told again every few seconds, and not more often; asleep in between.
    let reminders = MINUTE / REMINDER_NS;
    assert!(
        (told.len() as u64).abs_diff(reminders) <= 3,
        "{}",
        told.len()
    );
    let waited = (bench.guest.host.waits - waits) as u64;
    assert!(waited <= reminders + 5, "woken {waited} times in a minute");
    assert_eq!(
        last(&bench, "blackout/connect"),
        (MINUTE / 1000).to_string()
    );
    assert_eq!(bench.guest.moves.done, 1);
}

#[test]
fn a_backend_that_is_still_connecting_is_waited_for() {
    let (mut bench, _) = with_requests(Options::default(), 0);
    let at = 9 * SECOND + 500;
    let dom0 = &mut bench.guest.host.dom0;
    dom0.backends[0].be_slow(true);
    dom0.plan(at, |dom0| dom0.ready(0));
    let journey = to_new(&bench, 9 * SECOND, AWAY);
    suspend(&mut bench, journey);
    let told = told(&bench, "waits-for");
    assert_eq!(told, ["vbd/51712: the backend is not ready yet", ""]);
    assert_eq!(bench.guest.host.now_ns(), at);
}

/// A packet that its backend never answers is given up after a while, of which no event tells.
#[test]
fn points_with_deadlines_are_served_while_the_guest_is_parked() {
    let mut bench = Bench::new();
    let nr = bench.plug_net(0);
    let mut driver = NetDriver::connect(&mut bench, 0);
    bench.guest.host.dom0.backends[nr].hold(true);
    driver.send(&mut bench);
    driver.push(&mut bench, true);
    assert_eq!(bench.guest.points.in_flight(), 1);
    let clock = bench.guest_clock();
    let journey = to_new(&bench, SECOND, 0);
    suspend(&mut bench, journey);
    assert_eq!(bench.guest.moves.done, 1);
    let waited: u64 = last(&bench, "blackout/drain").parse().expect("a number");
    assert!((1..10_000_000).contains(&waited), "{waited} us");
    assert!(bench.guest_clock() > clock);
    driver.reap(&mut bench);
    assert_eq!((driver.waiting(), driver.answers), (0, 1));
}

#[test]
fn a_host_that_refuses_its_events_is_asked_again() {
    let mut bench = Bench::new();
    bench.guest.host.refusals = 5;
    let journey = to_new(&bench, 1, AWAY);
    suspend(&mut bench, journey);
    assert_eq!(bench.guest.host.yields, 5);
    assert_eq!(bench.guest.moves.done, 1);
}

#[test]
fn faults_before_the_suspend_refuse_it_and_strike_once() {
    for (phase, way, takes) in [
        (Phase::Park, Way::Stall, 10),
        (Phase::Drain, Way::Fail, 0),
        (Phase::Drain, Way::Stall, 10),
        (Phase::Suspend, Way::Fail, 0),
    ] {
        let mut bench = with_fault(phase, way);
        let clock = bench.guest_clock();
        ask(&mut bench);
        let spent = bench.guest_clock() - clock;
        assert_eq!(spent, takes * SECOND, "{phase:?} {way:?}");
        assert_eq!(bench.guest.moves.refused, 1);
        let refusal = last(&bench, "refusal");
        assert!(refusal.starts_with(phase.name()), "{refusal}");
        let journey = to_new(&bench, 1, AWAY);
        suspend(&mut bench, journey);
        assert_eq!(bench.guest.moves.done, 1);
        assert_eq!(bench.guest.moves.refused, 1, "once");
    }
}

#[test]
fn faults_after_it_only_take_time() {
    for (phase, way) in [
        (Phase::Suspend, Way::Stall),
        (Phase::Reattach, Way::Stall),
        (Phase::Connect, Way::Stall),
        (Phase::Resume, Way::Stall),
    ] {
        let mut bench = with_fault(phase, way);
        let stalled = 10 * SECOND;
        let before = bench.guest.host.wall();
        let late = if phase == Phase::Suspend { stalled } else { 0 };
        let journey = to_new(&bench, 1, AWAY + late);
        suspend(&mut bench, journey);
        assert_eq!(bench.guest.moves.done, 1, "{phase:?}");
        assert_eq!(bench.guest.now(), AWAY + stalled, "{phase:?}");
        assert_eq!(bench.guest_wall() - before, AWAY + stalled);
    }
}

#[test]
fn a_connection_that_fails_parks_the_guest_for_good() {
    let mut bench = with_fault(Phase::Connect, Way::Fail);
    let journey = to_new(&bench, SECOND, AWAY);
    bench.guest.host.journeys.push_back(journey);
    let rip = bench.regs.rip;
    // The host gives up after a while, which is what ends the test.
    bench.guest.host.waits = 999_000;
    let forever = catch_unwind(AssertUnwindSafe(|| ask(&mut bench)));
    assert!(forever.is_err());
    let parked = bench.guest.host.now_ns();
    assert!(parked > 60 * MINUTE, "a thousand waits took {parked} ns");
    assert_eq!(bench.regs.rip, rip);
    assert_eq!(bench.guest.moves.done, 0);
    assert_eq!(last(&bench, "waits-for"), "a fault was asked for");
    assert_eq!(last(&bench, "state"), "connecting", "it never resumed");
}
