//! Moves of a whole guest between hosts that differ in every clock: what it sees of them, what the
//! host is told, and what happens when something goes wrong.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::{Just, Strategy};
use proptest::prelude::{any, prop_oneof, proptest};
use xen_abi::Port;
use xen_abi::evtchn::virq;
use xen_abi::hypercall::{SCHED_OP, SET_TIMER_OP, XEN_VERSION};
use xen_abi::shared_info::{time_info, vcpu_info};

use super::REMINDER_NS;
use crate::host::{Arrival, HostEvent, HostPort, Xen};
use crate::mem::Frames;
use crate::options::{Blackout, Fault, Options, Phase, Way};
use crate::points::time::SECOND;
use crate::points::{Progress, Request};
use crate::testing::{Bench, Call, Journey, OnStore};

const STOPPED: u8 = time_info::FLAG_GUEST_STOPPED;
const MINUTE: u64 = 60 * SECOND;
const AWAY: u64 = 3 * SECOND + 1234;

/// A journey to a new domain on a host that has been up for `uptime` and whose wall clock is
/// `away` later than the old host's now.
fn to_new(bench: &Bench, uptime: u64, away: u64) -> Journey {
    Journey::Moved {
        arrival: Arrival::NewDomain,
        uptime,
        wall: bench.guest.host.wall() + away,
    }
}

/// A move as the host asks for it, while the guest spins in ring 3.
fn suspend(bench: &mut Bench, journey: Journey) {
    bench.guest.host.journeys.push_back(journey);
    ask(bench);
    assert!(bench.guest.host.journeys.is_empty(), "it was suspended");
}

fn ask(bench: &mut Bench) {
    bench.guest.points.on_store.push_front(OnStore::Suspend);
    bench.guest.host.events.push_back(HostEvent::Store);
    bench.trap(crate::cpu::UPCALL_VECTOR, 0);
}

fn with_fault(phase: Phase, way: Way) -> Bench {
    Bench::with(Options {
        fault: Some(Fault { phase, way }),
        ..Options::default()
    })
}

fn last<'a>(bench: &'a Bench, key: &str) -> &'a str {
    bench.guest.points.reports(key).last().expect("it was told")
}

#[test]
fn a_guest_that_spins_is_moved_without_being_asked() {
    let mut bench = Bench::new();
    bench.mask_events(true);
    bench.regs.rax = 0x1234;
    let before = bench.regs;
    let journey = to_new(&bench, 17 * SECOND, AWAY);
    suspend(&mut bench, journey);
    let expected = crate::cpu::Regs {
        vector: crate::cpu::UPCALL_VECTOR.into(),
        ..before
    };
    assert_eq!(bench.regs, expected, "not a register is different");
    assert_eq!(
        bench.guest.points.acts(),
        [
            &Call::Event(HostEvent::Store),
            &Call::Quiesce(Progress::Done),
            &Call::Reattach(Arrival::NewDomain),
            &Call::Resume(true),
        ]
    );
    let moves = bench.guest.moves;
    assert_eq!((moves.done, moves.cancelled, moves.refused), (1, 0, 0));
    assert_eq!(last(&bench, "moves"), "1");
    let states = bench.guest.points.reports("state");
    assert_eq!(states, ["connecting", "running"]);
    bench.check();
}

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

#[test]
fn a_deadline_that_passed_on_the_way_fires_once() {
    let mut bench = Bench::new();
    let timer = bench.bind_virq(virq::TIMER);
    let deadline = bench.guest.now() + 2 * SECOND;
    assert_eq!(bench.call(SET_TIMER_OP, &[deadline]), Ok(0));
    let journey = to_new(&bench, MINUTE, AWAY);
    suspend(&mut bench, journey);
    assert!(bench.take_events().contains(&timer.0));
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
    let expected = 3 * SECOND + MINUTE - AWAY;
    assert_eq!(bench.guest.host.armed, Some(expected));
    bench.guest.m.clock.pass(MINUTE - AWAY);
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
    assert_eq!(bench.guest.host.armed, armed);
}

#[test]
fn a_guest_that_sleeps_is_moved_and_woken_in_time() {
    let mut bench = Bench::new();
    let handler = Bench::KERNEL + 0x100;
    bench.listen(handler);
    let timer = bench.bind_virq(virq::TIMER);
    let deadline = bench.guest.now() + MINUTE;
    assert_eq!(bench.call(SET_TIMER_OP, &[deadline]), Ok(0));
    let host = &mut bench.guest.host;
    let at = host.now_ns() + 5 * SECOND;
    host.schedule.insert(at, HostEvent::Store);
    let wall = host.wall() + 5 * SECOND + AWAY;
    host.journeys.push_back(Journey::Moved {
        arrival: Arrival::NewDomain,
        uptime: 9,
        wall,
    });
    bench.guest.points.on_store.push_back(OnStore::Suspend);
    // No port but the timer's is of interest, so that nothing else wakes it.
    let mask = xen_abi::shared_info::EVTCHN_MASK;
    bench
        .guest
        .m
        .store64(Bench::SHARED_INFO, mask, !(1 << timer.0));
    assert_eq!(bench.call(SCHED_OP, &[xen_abi::sched::op::BLOCK, 0]), Ok(0));
    assert_eq!(bench.guest.moves.done, 1);
    assert_eq!(bench.guest.now(), deadline);
    assert_eq!(bench.regs.rip, handler);
}

#[test]
fn every_port_to_a_device_is_raised_once_and_no_other() {
    let mut bench = Bench::new();
    bench.bind_virq(virq::TIMER);
    bench.bind_virq(virq::DEBUG);
    let journey = to_new(&bench, SECOND, AWAY);
    suspend(&mut bench, journey);
    assert_eq!(bench.take_events(), [1, 2], "store and console");
    suspend(&mut bench, Journey::Cancelled);
    assert_eq!(bench.take_events(), [0u32; 0]);
}

#[test]
fn a_cancelled_suspend_leaves_everything_as_it_was() {
    let mut bench = Bench::new();
    let timer = bench.bind_virq(virq::TIMER);
    let deadline = bench.guest.now() + MINUTE;
    assert_eq!(bench.call(SET_TIMER_OP, &[deadline]), Ok(0));
    bench.guest.m.clock.pass(SECOND);
    let (clock, wall, armed) = (
        bench.guest_clock(),
        bench.guest_wall(),
        bench.guest.host.armed,
    );
    suspend(&mut bench, Journey::Cancelled);
    assert_eq!((bench.guest_clock(), bench.guest_wall()), (clock, wall));
    assert_eq!(bench.guest.host.armed, armed);
    assert_eq!(bench.take_events(), [0u32; 0]);
    let acts = bench.guest.points.acts();
    assert_eq!(acts.last(), Some(&&Call::Resume(false)));
    assert!(!acts.iter().any(|act| matches!(act, Call::Reattach(_))));
    let moves = bench.guest.moves;
    assert_eq!((moves.done, moves.cancelled, moves.refused), (0, 1, 0));
    bench.guest.m.clock.pass(MINUTE);
    bench.guest.host.announce();
    bench.trap(crate::cpu::UPCALL_VECTOR, 0);
    assert_eq!(bench.take_events(), [timer.0]);
}

#[test]
fn a_resume_in_the_same_domain_reattaches_as_well() {
    let mut bench = Bench::new();
    bench.guest.m.clock.pass(MINUTE);
    let clock = bench.guest_clock();
    let journey = Journey::Moved {
        arrival: Arrival::SameDomain,
        uptime: bench.guest.host.now_ns() + AWAY,
        wall: bench.guest.host.wall() + AWAY,
    };
    suspend(&mut bench, journey);
    assert_eq!(bench.guest_clock(), clock + AWAY);
    let acts = bench.guest.points.acts();
    assert!(acts.contains(&&Call::Reattach(Arrival::SameDomain)));
    assert_eq!(acts.last(), Some(&&Call::Resume(true)));
}

#[test]
fn requests_in_flight_are_waited_for() {
    let mut bench = Bench::new();
    bench.guest.points.in_flight = 2;
    let now = bench.guest.host.now_ns();
    for (index, after) in [SECOND, 4 * SECOND].into_iter().enumerate() {
        let answer = HostEvent::Port(HostPort(Port(7 + index as u32)));
        bench.guest.host.schedule.insert(now + after, answer);
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
    assert_eq!(bench.guest.points.in_flight, 0);
    assert_eq!(bench.guest.now(), 4 * SECOND + AWAY);
    assert_eq!(last(&bench, "blackout/drain"), "4000000");
    assert_eq!(
        last(&bench, "blackout-us"),
        (4_000_000 + AWAY / 1000).to_string()
    );
}

#[test]
fn storage_that_does_not_answer_refuses_the_suspend() {
    let mut bench = Bench::new();
    bench.guest.points.in_flight = 3;
    let now = bench.guest.host.now_ns();
    let late = HostEvent::Port(HostPort(Port(9)));
    bench.guest.host.schedule.insert(now + SECOND, late);
    let clock = bench.guest_clock();
    ask(&mut bench);
    assert_eq!(bench.guest_clock(), clock + 10 * SECOND, "and no longer");
    let moves = bench.guest.moves;
    assert_eq!((moves.done, moves.cancelled, moves.refused), (0, 0, 1));
    let why = "drain: 2 requests are still in flight after 10 s";
    assert_eq!(last(&bench, "refusal"), why);
    assert_eq!(last(&bench, "in-flight"), "2");
    assert_eq!(last(&bench, "state"), "running");
    let acts = bench.guest.points.acts();
    assert_eq!(acts.last(), Some(&&Call::Resume(false)));
    assert!(bench.guest.host.waits < 10, "it waits, it does not spin");
    // The host may ask again, and this time it works.
    bench.guest.points.in_flight = 0;
    let journey = to_new(&bench, 1, AWAY);
    suspend(&mut bench, journey);
    assert_eq!(bench.guest.moves.done, 1);
}

#[test]
fn the_limit_of_a_drain_is_the_option_s() {
    let mut bench = Bench::with(Options {
        drain_ns: 0,
        ..Options::default()
    });
    bench.guest.points.in_flight = 1;
    let clock = bench.guest_clock();
    ask(&mut bench);
    assert_eq!(bench.guest_clock(), clock);
    assert_eq!(bench.guest.moves.refused, 1);
}

#[test]
fn a_device_that_does_not_come_keeps_the_guest_parked_and_is_named() {
    let mut bench = Bench::new();
    bench.guest.points.missing = Some("vbd 51712: no backend".to_owned());
    let host = &mut bench.guest.host;
    let uptime = 100 * SECOND;
    host.schedule.insert(uptime + MINUTE, HostEvent::Store);
    let journey = to_new(&bench, uptime, AWAY);
    bench.guest.points.on_store.push_back(OnStore::Attached);
    let waits = bench.guest.host.waits;
    suspend(&mut bench, journey);
    assert_eq!(bench.guest.host.now_ns(), uptime + MINUTE);
    assert_eq!(bench.guest.now(), AWAY + MINUTE, "that is time as well");
    let told = bench.guest.points.reports("waits-for");
    assert_eq!(told.first(), Some(&"vbd 51712: no backend"));
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
    let mut bench = Bench::new();
    bench.guest.points.missing = Some(String::new());
    let at = 9 * SECOND + 500;
    bench.guest.host.schedule.insert(at, HostEvent::Store);
    bench.guest.points.on_store.push_back(OnStore::Attached);
    let journey = to_new(&bench, 9 * SECOND, AWAY);
    suspend(&mut bench, journey);
    let told = bench.guest.points.reports("waits-for");
    assert_eq!(told, ["backends that are connecting", ""]);
    assert_eq!(bench.guest.host.now_ns(), at);
}

#[test]
fn points_with_deadlines_are_served_while_the_guest_is_parked() {
    let mut bench = Bench::new();
    bench.guest.points.in_flight = 1;
    let now = bench.guest.host.now_ns();
    bench.guest.points.deadline = Some(now + SECOND);
    let answer = HostEvent::Port(HostPort(Port(9)));
    bench.guest.host.schedule.insert(now + 2 * SECOND, answer);
    suspend(&mut bench, Journey::Cancelled);
    let ticks = bench.guest.points.calls.iter();
    let answered = ticks.clone().position(|call| *call == Call::Event(answer));
    let ticked = ticks.clone().position(|call| *call == Call::Tick);
    assert!(ticked < answered, "the tick came before the answer");
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
        assert_eq!(bench.guest.points.reports("refusal").len(), 1);
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
    let acts = bench.guest.points.acts();
    assert!(!acts.iter().any(|act| matches!(act, Call::Resume(_))));
}

#[test]
fn what_the_guest_can_read_is_the_same_on_every_host() {
    let mut bench = Bench::new();
    bench.bind_virq(virq::TIMER);
    // All of memory but what counts time and events.
    let snapshot = |bench: &Bench| {
        let frames = (4..Bench::END.0 - 1).map(xen_abi::Mfn);
        let pages = frames.map(|frame| {
            let mut page = [0u8; 4096];
            bench.guest.m.read(frame, 0, &mut page);
            page
        });
        let m2p = (0..Bench::END.0).map(|mfn| bench.guest.m.m2p(xen_abi::Mfn(mfn)));
        (pages.collect::<Vec<_>>(), m2p.collect::<Vec<_>>())
    };
    let before = snapshot(&bench);
    for uptime in [1, Bench::UPTIME * 7, MINUTE] {
        let journey = to_new(&bench, uptime, AWAY);
        suspend(&mut bench, journey);
        assert!(snapshot(&bench) == before);
        bench.check();
    }
    assert_eq!(bench.guest.moves.done, 3);
}

#[test]
fn a_request_out_of_the_blue_is_served_on_the_next_way_back() {
    let mut bench = Bench::new();
    bench.guest.points.requests.push_back(Request::Suspend);
    bench.guest.host.journeys.push_back(Journey::Cancelled);
    assert_eq!(bench.call(XEN_VERSION, &[7, 0]), Ok(4096));
    assert_eq!(bench.guest.moves.cancelled, 1);
}

/// A leg of a long journey: uptime of the host, how far its wall clock is off, how long the guest
/// runs there, and whether the suspend is cancelled.
fn leg() -> impl Strategy<Value = (u64, i64, u64, bool)> {
    let uptime = prop_oneof![Just(1), 0..100 * SECOND, 0u64..1 << 50];
    let off = prop_oneof![
        Just(0),
        -100_000_000_000i64..100_000_000_000,
        -1i64 << 50..1 << 50
    ];
    (uptime, off, 0..10 * MINUTE, any::<bool>())
}

proptest! {
    /// Whatever hosts a guest meets on its way, its clock never steps back, its wall clock is that
    /// of the host that it is on, and a timer fires exactly once.
    #[test]
    fn time_goes_forward_on_any_journey(
        legs in proptest::collection::vec(leg(), 1..6),
        is_hidden: bool,
        deadline in 1u64..100 * MINUTE,
    ) {
        let blackout = if is_hidden { Blackout::Hidden } else { Blackout::Shown };
        let mut bench = Bench::with(Options { blackout, ..Options::default() });
        let timer = bench.bind_virq(virq::TIMER);
        let deadline = bench.guest.now() + deadline;
        assert_eq!(bench.call(SET_TIMER_OP, &[deadline]), Ok(0));
        let mut fired = 0;
        for (uptime, off, runs, cancelled) in legs {
            let clock = bench.guest_clock();
            let wall = bench.guest.host.wall();
            let journey = if cancelled {
                Journey::Cancelled
            } else {
                Journey::Moved {
                    arrival: Arrival::NewDomain,
                    uptime,
                    wall: wall.saturating_add_signed(off),
                }
            };
            suspend(&mut bench, journey);
            fired += bench.take_events().iter().filter(|&&port| port == timer.0).count();
            let here = bench.guest_clock();
            assert!(here >= clock);
            if is_hidden || cancelled {
                assert_eq!(here, clock);
            }
            assert_eq!(bench.guest_wall(), bench.guest.host.wall());
            bench.guest.m.clock.pass(runs);
            bench.guest.host.announce();
            bench.trap(crate::cpu::UPCALL_VECTOR, 0);
            fired += bench.take_events().iter().filter(|&&port| port == timer.0).count();
            assert_eq!(bench.guest_clock(), here + runs);
            assert_eq!(fired, usize::from(bench.guest.now() >= deadline));
        }
    }
}
