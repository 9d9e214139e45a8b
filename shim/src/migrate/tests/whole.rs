//! Whole moves: a guest whose disks and network interfaces are at work, every fault, every way that a
//! suspend can end, and backends that answer in time or do not.  Whatever happens, each request has one answer, the
//! guest's store is what it was, and nothing is lost of what the devices take of the host.

use xen_abi::blkif::op;
use xen_abi::sched::ShutdownReason;

use super::{AWAY, MINUTE};
use crate::cpu::UPCALL_VECTOR;
use crate::host::{Arrival, Xen};
use crate::options::{Fault, Options, Phase, Way};
use crate::points::time::SECOND;
use crate::testing::{Bench, DiskDriver, Dom0, Journey, NetDriver};

/// Requests of each driver that the host has when it asks for a suspend.
const IN_FLIGHT: usize = 4;
/// Requests that are in the ring by then, of which nobody was told.
const UNTOLD: usize = 1;
/// Buffers for packets.
const BUFFERS: usize = 4;
/// What devices wait for without an event, several times over.
const WHILE_NS: u64 = 5_000_000;

/// When the backends answer what was in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    /// Before the limit of the drain.
    InTime,
    /// So, too, but somebody pauses the domain, for longer than the host waits for it.
    AfterAPause,
    /// When the move is over, whichever way.
    Late,
}

/// How the suspend ends if it comes to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    To(Arrival),
    Cancelled,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    disks: u32,
    nets: u32,
    fault: Option<Fault>,
    end: End,
    answers: Answers,
}

/// What must come of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Refused,
    Cancelled,
    Moved,
    /// It waits for ever.
    Parked,
}

impl Case {
    /// What the table atop `migrate` says.
    fn expected(&self) -> Outcome {
        let is_struck = |phase, ways: &[Way]| {
            let is_it = |fault: Fault| fault.phase == phase && ways.contains(&fault.way);
            self.fault.is_some_and(is_it)
        };
        let both = [Way::Fail, Way::Stall];
        if is_struck(Phase::Park, &both)
            || is_struck(Phase::Drain, &both)
            // Packets may be lost, and are not waited for as long.
            || self.disks > 0 && self.answers != Answers::InTime
            || self.answers == Answers::AfterAPause && is_struck(Phase::Suspend, &[Way::Stall])
            || is_struck(Phase::Suspend, &[Way::Fail])
        {
            Outcome::Refused
        } else if self.end == End::Cancelled {
            Outcome::Cancelled
        } else if is_struck(Phase::Connect, &[Way::Fail]) {
            Outcome::Parked
        } else {
            Outcome::Moved
        }
    }
}

fn cases() -> Vec<Case> {
    let ways = [Way::Fail, Way::Stall];
    let faults = Phase::ALL.map(|phase| ways.map(|way| Some(Fault { phase, way })));
    let faults: Vec<_> = faults.into_iter().flatten().chain([None]).collect();
    let ends = [
        End::To(Arrival::NewDomain),
        End::To(Arrival::SameDomain),
        End::Cancelled,
    ];
    let mut cases = Vec::new();
    for (disks, nets) in [(1, 0), (0, 1), (2, 2)] {
        for &fault in &faults {
            for end in ends {
                for answers in [Answers::InTime, Answers::AfterAPause, Answers::Late] {
                    cases.push(Case {
                        disks,
                        nets,
                        fault,
                        end,
                        answers,
                    });
                }
            }
        }
    }
    cases
}

/// A guest with drivers at work.
struct AtWork {
    bench: Bench,
    disks: Vec<DiskDriver>,
    nets: Vec<NetDriver>,
    /// Requests that were made.
    asked: usize,
    /// Where on its disk the next one goes.
    at: u64,
}

impl AtWork {
    fn new(case: &Case) -> Self {
        let mut bench = Bench::with(Options {
            faults: case.fault.into_iter().collect(),
            ..Options::default()
        });
        for nr in 0..case.disks {
            bench.plug_disk(nr);
        }
        for nr in 0..case.nets {
            bench.plug_net(nr);
        }
        let disks = (0..case.disks).map(|nr| DiskDriver::connect(&mut bench, nr));
        let disks = disks.collect();
        let nets = (0..case.nets).map(|nr| NetDriver::connect(&mut bench, nr));
        let nets = nets.collect();
        let mut guest = Self {
            bench,
            disks,
            nets,
            asked: 0,
            at: 0,
        };
        guest.wait_a_while();
        guest
    }

    /// Makes so many requests of each driver.
    fn ask(&mut self, count: usize, kicks: bool) {
        for nr in 0..count {
            for disk in &mut self.disks {
                let operation = [op::WRITE, op::WRITE, op::READ, op::FLUSH_DISKCACHE][nr % 4];
                disk.ask(&mut self.bench, operation, self.at);
                self.at += 1;
                self.asked += 1;
            }
            for net in &mut self.nets {
                net.send(&mut self.bench);
                self.asked += 1;
            }
        }
        for disk in &mut self.disks {
            disk.push(&mut self.bench, kicks);
        }
        for net in &mut self.nets {
            net.push(&mut self.bench, kicks);
        }
    }

    /// Posts buffers for packets.
    fn post(&mut self, count: usize) {
        for net in &mut self.nets {
            (0..count).for_each(|_| net.post(&mut self.bench));
            net.push(&mut self.bench, true);
        }
    }

    fn reap(&mut self) {
        for disk in &mut self.disks {
            disk.reap(&mut self.bench);
        }
        for net in &mut self.nets {
            net.reap(&mut self.bench);
        }
    }

    /// Requests that wait for their answers, and answers that came.
    fn waiting(&self) -> (usize, usize) {
        let disks = self.disks.iter().map(|disk| (disk.waiting(), disk.answers));
        let nets = self.nets.iter().map(|net| (net.waiting(), net.answers));
        disks.chain(nets).fold((0, 0), |(waiting, answers), one| {
            (waiting + one.0, answers + one.1)
        })
    }

    /// The guest runs for a while, and takes what there is.
    fn wait_a_while(&mut self) {
        for _ in 0..3 {
            self.bench.guest.m.clock.pass(WHILE_NS);
            self.bench.guest.host.announce();
            self.bench.trap(UPCALL_VECTOR, 0);
            self.bench.settle();
        }
        self.reap();
    }

    /// The host asks, and the suspend is to end so.
    fn prepare(&mut self, end: End) {
        let host = &mut self.bench.guest.host;
        host.journeys.clear();
        host.journeys.push_back(match end {
            End::Cancelled => Journey::Cancelled,
            End::To(arrival) => Journey::Moved {
                arrival,
                uptime: host.now_ns() + MINUTE,
                wall: host.wall() + AWAY,
            },
        });
        host.in_dom0(|dom0| dom0.ask_for_suspend());
    }

    /// The host asks, and gets what it asks for.
    fn move_to(&mut self, end: End) {
        self.prepare(end);
        self.bench.trap(UPCALL_VECTOR, 0);
    }

    /// Every buffer that was posted gets one packet.
    fn receive(&mut self) {
        for (nr, net) in (self.disks.len()..).zip(&mut self.nets) {
            let (posted, before) = (net.posted(), net.received.len());
            let packets = (nr * 16 + 1..).take(posted).map(|byte| byte as u8);
            for byte in packets.clone() {
                self.bench.guest.host.in_dom0(|dom0| {
                    let is_room = dom0.backend(nr, |backend, _, mem| backend.deliver(mem, byte));
                    assert!(is_room, "for packet {byte}, of {posted}");
                    dom0.kick(nr);
                });
                self.bench.settle();
            }
            net.reap(&mut self.bench);
            assert_eq!(net.received[before..], packets.collect::<Vec<u8>>());
            assert_eq!(net.posted(), 0);
        }
    }

    /// Grants that the host has, and frames that the shim has left.
    fn usage(&self) -> (u64, u64) {
        let [(_, grants), (_, frames)] = self.bench.guest.points.usage();
        (grants, frames)
    }
}

/// Has the backends answer what they held, and everything from now on.
fn release(dom0: &mut Dom0) {
    for nr in 0..dom0.backends.len() {
        dom0.backends[nr].hold(false);
        dom0.backend(nr, |backend, _, mem| backend.kicked(mem));
        dom0.kick(nr);
    }
}

fn run(case: &Case) -> Outcome {
    let mut guest = AtWork::new(case);
    let idle = guest.usage();
    let store = guest.bench.whole_store();
    let devices = guest.bench.guest.host.dom0.backends.len();
    for backend in &mut guest.bench.guest.host.dom0.backends {
        backend.hold(true);
    }
    guest.post(BUFFERS);
    guest.ask(IN_FLIGHT, true);
    guest.ask(UNTOLD, false);
    let taken = guest.bench.guest.points.in_flight();
    assert!(taken >= devices, "{taken} requests are in flight");
    let host = &mut guest.bench.guest.host;
    let soon = host.now_ns() + SECOND;
    let clock = host.clock.clone();
    match case.answers {
        Answers::InTime => host.dom0.plan(soon, release),
        Answers::AfterAPause => host.dom0.plan(soon, move |dom0| {
            clock.pass(MINUTE);
            release(dom0);
        }),
        Answers::Late => {}
    }

    let expected = case.expected();
    if expected == Outcome::Parked {
        host.ends_idle = true;
        host.waits = 0;
        // Whoever manages the host gives up after a while, which is what ends the test.
        guest.prepare(case.end);
        let ended = guest.bench.ends(|bench| bench.trap(UPCALL_VECTOR, 0));
        assert_eq!(ended, ShutdownReason::POWEROFF);
        assert_eq!(guest.bench.guest.moves.done, 0);
        assert_eq!(guest.bench.whole_store(), store);
        // What was in flight was answered before; of the rest nothing was taken.
        guest.reap();
        let untold = UNTOLD * devices;
        assert_eq!(guest.waiting(), (untold, guest.asked - untold));
        return expected;
    }
    guest.move_to(case.end);
    let moves = guest.bench.guest.moves;
    let outcome = match (moves.refused, moves.cancelled, moves.done) {
        (1, 0, 0) => Outcome::Refused,
        (0, 1, 0) => Outcome::Cancelled,
        (0, 0, 1) => Outcome::Moved,
        other => panic!("{other:?}"),
    };
    guest.bench.check();

    // What comes of it is the same: everything is answered, once, and nothing has changed.
    guest.bench.guest.host.in_dom0(release);
    guest.wait_a_while();
    assert_eq!(guest.waiting(), (0, guest.asked), "answered once");
    guest.receive();
    assert_eq!(guest.bench.whole_store(), store);
    // The devices work, and the next move does.
    (guest.bench.guest.fault, guest.bench.guest.faults) = (None, [].into());
    for round in 1..=2 {
        guest.ask(IN_FLIGHT, true);
        guest.post(BUFFERS);
        guest.wait_a_while();
        assert_eq!(guest.waiting(), (0, guest.asked), "round {round}");
        guest.receive();
        if round == 1 {
            guest.move_to(End::To(Arrival::NewDomain));
            assert_eq!(guest.bench.guest.moves.done, moves.done + 1);
            assert_eq!(guest.bench.whole_store(), store);
        }
    }
    guest.wait_a_while();
    // An interface keeps the page that its announcements are made of, from its first move on.
    let kept = u64::from(case.nets);
    assert_eq!(guest.usage(), (idle.0, idle.1 - kept), "nothing is lost");
    guest.bench.check();
    outcome
}

#[test]
fn every_fault_of_a_whole_move_leaves_each_request_one_answer() {
    let cases = cases();
    // Device sets, faults and none, ends, answers.
    assert_eq!(cases.len(), 3 * (6 * 2 + 1) * 3 * 3);
    let mut counts = [0; 4];
    for case in &cases {
        let outcome = std::panic::catch_unwind(|| run(case));
        let outcome = outcome.unwrap_or_else(|panic| {
            eprintln!("in {case:?}");
            std::panic::resume_unwind(panic)
        });
        assert_eq!(outcome, case.expected(), "{case:?}");
        counts[outcome as usize] += 1;
    }
    let [refused, cancelled, moved, parked] = counts;
    println!(
        "{} moves: {refused} refused, {cancelled} cancelled, {moved} done, {parked} parked",
        cases.len()
    );
    assert!(counts.iter().all(|count| *count > 0));
}
