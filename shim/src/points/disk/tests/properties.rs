//! Whatever guest, backend and host do, in whatever order: each request is answered exactly once,
//! with the right data, and nothing leaks.

use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};
use xen_abi::blkif::{op, status};

use super::guest::Guest;
use crate::points::Progress;
use crate::points::device::model::Peer;
use crate::points::disk::budget::Budget;
use crate::points::disk::model::{Backend, World, hostile_guest};

/// One thing that happens; numbers are reduced to what is possible.
#[derive(Clone, Debug)]
enum Event {
    Ask {
        operation: u8,
        sector: u16,
        segments: u8,
    },
    BackendTakes,
    BackendFinishes(u8),
    /// Answers, but keeps the pages mapped for a while.
    BackendLingers(u8),
    BackendLetsGo,
    BackendFails(u8),
    GuestReaps,
    Retry,
    /// A move that drains first.
    Move(Host),
    /// A move of what could not be drained; the old backend did some of it.
    ForcedMove(Host, u8),
    CancelledMove,
}

#[derive(Clone, Debug)]
struct Host {
    order: u32,
    indirect: Option<u16>,
    barrier: bool,
    flush: bool,
    discard: bool,
}

impl Host {
    fn backend(&self) -> Backend {
        let mut backend = Backend::new(self.order, &[]);
        let flag = |is: bool| u32::from(is).to_string();
        backend.features.extend([
            ("feature-barrier", flag(self.barrier)),
            ("feature-flush-cache", flag(self.flush)),
            ("feature-discard", flag(self.discard)),
        ]);
        if let Some(segments) = self.indirect {
            let segments = segments.to_string();
            backend
                .features
                .push(("feature-max-indirect-segments", segments));
        }
        backend
    }
}

fn host() -> impl Strategy<Value = Host> {
    (
        0u32..5,
        prop::option::of(0u16..300),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(order, indirect, barrier, flush, discard)| Host {
            order,
            indirect,
            barrier,
            flush,
            discard,
        })
}

fn event() -> impl Strategy<Value = Event> {
    use prop::strategy::Just;
    prop::strategy::Union::new_weighted(vec![
        (
            8,
            (
                prop::sample::select(vec![0u8, 0, 1, 1, 1, 2, 3, 5]),
                0u16..2048,
                0u8..60,
            )
                .prop_map(|(operation, sector, segments)| Event::Ask {
                    operation,
                    sector,
                    segments,
                })
                .boxed(),
        ),
        (4, Just(Event::BackendTakes).boxed()),
        (6, any::<u8>().prop_map(Event::BackendFinishes).boxed()),
        (2, any::<u8>().prop_map(Event::BackendLingers).boxed()),
        (1, Just(Event::BackendLetsGo).boxed()),
        (1, any::<u8>().prop_map(Event::BackendFails).boxed()),
        (4, Just(Event::GuestReaps).boxed()),
        (2, Just(Event::Retry).boxed()),
        (1, host().prop_map(Event::Move).boxed()),
        (
            1,
            (host(), any::<u8>())
                .prop_map(|(host, done)| Event::ForcedMove(host, done))
                .boxed(),
        ),
        (1, Just(Event::CancelledMove).boxed()),
    ])
}

/// The machine, with notifications that are delivered only if they were sent.
struct Machine {
    world: World,
    guest: Guest,
    asked: usize,
    backend_awake: bool,
    /// Bytes and requests that may be in flight.
    bound: (u64, usize),
}

impl Machine {
    fn new(first: &Host, guest_order: u32, (bytes, requests): (u64, usize)) -> Self {
        let mut world = World::new(first.backend());
        world.device.protocol.budget = Budget::exactly(bytes, requests);
        world.handshake();
        let guest = Guest::connect(&mut world, guest_order);
        Self {
            world,
            guest,
            asked: 0,
            backend_awake: false,
            bound: (bytes, requests),
        }
    }

    fn happen(&mut self, event: &Event) {
        let (world, guest) = (&mut self.world, &mut self.guest);
        match event {
            Event::Ask {
                operation,
                sector,
                segments,
            } => {
                let count = match *operation {
                    op::DISCARD => 0,
                    op::READ | op::WRITE => usize::from(*segments).max(1),
                    _ => usize::from(*segments) % 12,
                };
                self.asked +=
                    usize::from(guest.ask(world, *operation, usize::from(*sector), count));
                if guest.push(world) {
                    world.guest_kick();
                }
            }
            Event::BackendTakes => self.backend_takes(),
            Event::BackendFinishes(pick) => {
                self.backend_answers(*pick, true, status::OKAY, false);
            }
            Event::BackendLingers(pick) => self.backend_answers(*pick, true, status::OKAY, true),
            Event::BackendLetsGo => world.backend.let_go(&world.mem),
            Event::BackendFails(pick) => {
                self.backend_answers(*pick, pick.is_multiple_of(2), status::ERROR, false);
            }
            Event::GuestReaps => guest.reap(world),
            Event::Retry => world.retry(),
            Event::Move(host) => {
                self.drain();
                self.move_to(host);
            }
            Event::ForcedMove(host, done) => {
                let _ = world.quiesce();
                for pick in 0..world.backend.taken.len().min(usize::from(*done)) {
                    world.backend.perform(&world.mem, pick);
                }
                self.move_to(host);
            }
            Event::CancelledMove => {
                self.drain();
                self.world.resume();
            }
        }
        self.backend_awake |= core::mem::take(&mut self.world.xen.notified);
    }

    fn backend_takes(&mut self) {
        // Asleep unless it was woken: a lost notification would show.
        self.backend_awake |= core::mem::take(&mut self.world.xen.notified);
        if core::mem::take(&mut self.backend_awake) {
            self.world.backend.take(&self.world.mem);
        }
        let (requests, bytes) = self.world.backend.most;
        // The largest request may be alone.
        assert!(bytes <= self.bound.0.max(60 * 4096), "{bytes} bytes");
        assert!(requests <= self.bound.1, "{requests} requests");
    }

    fn backend_answers(&mut self, pick: u8, perform: bool, status: i16, linger: bool) {
        let count = self.world.backend.taken.len();
        let world = &mut self.world;
        if count == 0 {
            return;
        }
        let pick = usize::from(pick) % count;
        if perform {
            world.backend.perform(&world.mem, pick);
        }
        if world.backend.answer(&world.mem, pick, status, linger) {
            world.host_kick();
        }
    }

    /// A suspend: the backend answers one request after the other, and no more of them than there
    /// were at first.
    fn drain(&mut self) {
        let mut left = None;
        for _ in 0..2000 {
            if self.world.quiesce() == Progress::Done {
                return;
            }
            self.backend_takes();
            let left = left.get_or_insert(self.world.backend.taken.len());
            if !self.world.backend.taken.is_empty() {
                *left = left.checked_sub(1).expect("more was asked meanwhile");
                self.backend_answers(0, true, status::OKAY, false);
            }
            self.world.backend.let_go(&self.world.mem);
            self.world.retry();
        }
        panic!("not drained: {:?}", self.world.device);
    }

    fn move_to(&mut self, host: &Host) {
        self.backend_awake = false;
        let before = self.world.guest_view();
        self.world.migrate(host.backend());
        assert_eq!(self.world.attached(), Ok(Progress::Done));
        assert_eq!(self.world.guest_view(), before);
        self.world.resume();
    }

    /// Lets everything come to an end.
    fn settle(&mut self) {
        for _ in 0..5000 {
            self.backend_takes();
            while !self.world.backend.taken.is_empty() {
                self.backend_answers(0, true, status::OKAY, false);
            }
            self.world.backend.let_go(&self.world.mem);
            self.world.retry();
            self.guest.reap(&self.world);
            if self.guest.waiting() == 0 {
                return;
            }
        }
        panic!(
            "{} without an answer: {:?}",
            self.guest.waiting(),
            self.world.device
        );
    }

    fn tear_down(mut self) {
        self.world.guest_state(5);
        self.world.guest_state(6);
        self.world.unplug();
        self.world.handshake();
        self.world.retry();
        self.world.assert_nothing_left();
    }
}

proptest! {
    #[test]
    fn every_request_is_answered_once_with_the_right_data(
        first in host(),
        guest_order in 0u32..4,
        bound in (8u64 << 10..512 << 10, 1usize..64),
        events in prop::collection::vec(event(), 1..150),
    ) {
        let mut machine = Machine::new(&first, guest_order, bound);
        for event in &events {
            machine.happen(event);
        }
        machine.settle();
        prop_assert_eq!(machine.guest.answers.len(), machine.asked);
        machine.guest.check_disk(&machine.world);
        machine.tear_down();
    }

    /// A guest that writes noise into ring, indexes and grants harms nobody.
    #[test]
    fn a_hostile_guest_harms_nobody(noise in prop::collection::vec(any::<u8>(), 9..2700)) {
        hostile_guest(&noise);
    }
}
