//! Moves of a whole guest between hosts that differ in every clock: what it sees of them, what the
//! host is told, and what happens when something goes wrong.

mod clocks;
mod trouble;
mod whole;

use proptest::prelude::{Just, Strategy};
use proptest::prelude::{any, prop_oneof, proptest};
use xen_abi::Mfn;
use xen_abi::evtchn::virq;
use xen_abi::hypercall::{SCHED_OP, SET_TIMER_OP, XEN_VERSION};
use xen_abi::shared_info::time_info;

use crate::guest::mm;
use crate::host::{Arrival, Xen};
use crate::mem::Frames;
use crate::options::{Blackout, Fault, Options, Phase, Way};
use crate::points::time::SECOND;
use crate::testing::{Bench, Journey};

/// What a new host is told: first what the old one was told last.
const STATES: [&str; 3] = ["running", "connecting", "running"];
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
    let host = &mut bench.guest.host;
    host.in_dom0(|dom0| dom0.ask_for_suspend());
    bench.trap(crate::cpu::UPCALL_VECTOR, 0);
}

fn with_fault(phase: Phase, way: Way) -> Bench {
    Bench::with(Options {
        faults: vec![Fault { phase, way }],
        ..Options::default()
    })
}

fn told<'a>(bench: &'a Bench, key: &str) -> Vec<&'a str> {
    bench.guest.host.dom0.told(key)
}

fn last<'a>(bench: &'a Bench, key: &str) -> &'a str {
    told(bench, key).last().expect("it was told")
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
    let moves = bench.guest.moves;
    assert_eq!((moves.done, moves.cancelled, moves.refused), (1, 0, 0));
    assert_eq!(last(&bench, "moves"), "1");
    assert_eq!(told(&bench, "state"), STATES);
    bench.check();
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
    host.dom0.plan(at, |dom0| dom0.ask_for_suspend());
    let wall = host.wall() + 5 * SECOND + AWAY;
    host.journeys.push_back(Journey::Moved {
        arrival: Arrival::NewDomain,
        uptime: 9,
        wall,
    });
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
fn what_the_guest_gave_up_while_it_was_sent_goes_back_to_the_new_host() {
    let mut bench = Bench::new();
    let frames: Vec<Mfn> = (0..50).map(|n| bench.mfn(Bench::UNMAPPED + n)).collect();
    for &frame in &frames {
        let released = mm!(bench.guest).release(frame, &bench.guest.m);
        let _ = released.expect("it is free");
    }
    // They are still in the fake host's memory: as after a move that sent them before they went.
    let journey = to_new(&bench, SECOND, AWAY);
    suspend(&mut bench, journey);
    for _ in 0..3 {
        bench.trap(crate::cpu::UPCALL_VECTOR, 0);
    }
    let memory = &bench.guest.m.frames;
    assert!(!frames.iter().any(|frame| memory.contains(*frame)));
    bench.check();
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
    let ports = bench.guest.host.ports.clone();
    let (clock, wall, armed) = (
        bench.guest_clock(),
        bench.guest_wall(),
        bench.guest.host.armed,
    );
    suspend(&mut bench, Journey::Cancelled);
    assert_eq!((bench.guest_clock(), bench.guest_wall()), (clock, wall));
    assert!(
        bench.guest.host.armed <= armed,
        "its timer is not forgotten"
    );
    assert_eq!(bench.take_events(), [0u32; 0]);
    assert_eq!(told(&bench, "state").last(), Some(&"running"));
    assert_eq!(bench.guest.host.ports, ports, "nothing was built anew");
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
    assert_eq!(bench.guest.moves.done, 1);
    assert_eq!(told(&bench, "state"), STATES);
    // It can be asked again.
    bench.guest.host.journeys.push_back(Journey::Cancelled);
    bench.guest.host.in_dom0(|dom0| dom0.ask_for_suspend());
    bench.trap(crate::cpu::UPCALL_VECTOR, 0);
    assert_eq!(bench.guest.moves.cancelled, 1);
}

#[test]
fn what_the_guest_can_read_is_the_same_on_every_host() {
    let mut bench = Bench::new();
    bench.bind_virq(virq::TIMER);
    // All of its memory but what counts time and events.
    let snapshot = |bench: &Bench| {
        let frames = (Bench::FIRST.0..Bench::END.0 - 1).map(Mfn);
        let pages = frames.map(|frame| {
            let mut page = [0u8; 4096];
            bench.guest.m.read(frame, 0, &mut page);
            page
        });
        let m2p = (0..Bench::END.0).map(|mfn| bench.guest.m.m2p(Mfn(mfn)));
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
    let host = &mut bench.guest.host;
    host.in_dom0(|dom0| dom0.ask_for_suspend());
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
