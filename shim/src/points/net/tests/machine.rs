//! A guest, its interface and a host, to which anything may happen.

use xen_abi::netif::status;

use super::guest::{Guest, Wishes};
use super::properties::{Event, Host};
use crate::points::device::model::Peer;
use crate::points::net::model::World;
use crate::points::net::model::backend::Packet;
use crate::points::{Device, Progress};

/// Sizes of parts, of which the first has room for a header.
pub(super) fn sizes(parts: u8, size: u16) -> Vec<usize> {
    (0..parts.into())
        .map(|part| 40 + (usize::from(size) >> part) % 1400)
        .collect()
}

pub(super) struct Machine {
    pub(super) world: World,
    pub(super) guest: Guest,
    pub(super) first: Host,
    pub(super) wishes: Wishes,
    pub(super) backend_awake: bool,
    pub(super) guest_awake: bool,
    /// Packets may have been lost on the way out, and on the way in.
    pub(super) is_lossy: [bool; 2],
    pub(super) serial: u32,
    pub(super) moves: usize,
}

impl Machine {
    pub(super) fn new(first: &Host, wishes: Wishes) -> Self {
        let mut world = World::new(first.backend());
        world.handshake();
        let guest = Guest::connect(&mut world, wishes);
        world.handshake();
        assert_eq!(world.back("state"), Some("4"));
        Self {
            world,
            guest,
            first: first.clone(),
            wishes,
            backend_awake: true,
            guest_awake: true,
            is_lossy: [false; 2],
            serial: 0,
            moves: 0,
        }
    }

    pub(super) fn happen(&mut self, event: &Event) {
        let world = &mut self.world;
        match event {
            Event::Send {
                parts,
                size,
                gso,
                is_blank,
                spoil,
            } => {
                let parts = if self.first.sg { *parts } else { 1 };
                let gso = match gso {
                    kind @ 1..=2 if self.first.gso[usize::from(*kind) - 1] => Some((1000, *kind)),
                    _ => None,
                };
                let sizes = sizes(parts, *size);
                self.guest.send(world, &sizes, gso, *is_blank, *spoil);
                self.guest.push(world);
            }
            Event::Join if self.first.multicast => {
                self.guest.join(world);
                self.guest.push(world);
            }
            Event::Join => {}
            Event::Post { count, spoil } => {
                self.guest.post(world, usize::from(*count), *spoil);
                self.guest.push(world);
                self.is_lossy[1] |= spoil;
            }
            Event::BackendTakes => self.backend_takes(),
            Event::BackendAnswers {
                pick,
                is_error,
                linger,
            } => {
                let status = if *is_error {
                    status::ERROR
                } else {
                    status::OKAY
                };
                self.backend_answers(usize::from(*pick), status, *linger);
            }
            Event::BackendLetsGo => world.backend.let_go(&world.mem),
            Event::Deliver {
                parts,
                size,
                gso,
                linger,
            } => self.deliver(*parts, *size, *gso, usize::MAX, *linger),
            Event::DeliverHalf(host) => {
                self.deliver(3, 99, 0, 1, false);
                self.is_lossy = [true; 2];
                self.move_to(host);
            }
            Event::GuestReaps => self.guest_reaps(),
            Event::Retry => world.retry(),
            Event::Restart(split) => self.restart(*split),
            Event::Move(host) => {
                self.drain();
                self.is_lossy[1] = true;
                self.move_to(host);
            }
            Event::ForcedMove(host) => {
                let _ = self.world.quiesce();
                self.is_lossy = [true; 2];
                self.move_to(host);
            }
            Event::CancelledMove => {
                self.drain();
                self.world.resume();
            }
        }
        self.hear();
    }

    /// Who was woken: one that was not sleeps, so that a lost notification shows.
    pub(super) fn hear(&mut self) {
        if core::mem::take(&mut self.world.xen.notified) {
            self.backend_awake = true;
            self.world.backend.wake();
        }
        self.guest_awake |= core::mem::take(&mut self.world.ports.raised);
    }

    /// Packets still come through, whatever has happened.
    pub(super) fn prove_alive(&mut self) {
        let before = self.guest.received.len();
        // Buffers that were spoiled may stand in front.
        for _ in 0..500 {
            self.guest.post(&self.world, 1, false);
            self.guest.push(&mut self.world);
            self.hear();
            self.deliver(1, 100, 0, usize::MAX, false);
            self.guest_reaps();
            if self.guest.received.len() > before {
                return;
            }
        }
        panic!("nothing is received any more: {:?}", self.world.device);
    }

    pub(super) fn backend_takes(&mut self) {
        self.hear();
        if core::mem::take(&mut self.backend_awake) {
            self.world.backend.take(&self.world.mem);
        }
    }

    pub(super) fn backend_answers(&mut self, pick: usize, status: i16, linger: bool) {
        let world = &mut self.world;
        if world.backend.waiting() > 0 && world.backend.answer(&world.mem, pick, status, linger) {
            world.host_kick();
        }
    }

    pub(super) fn guest_reaps(&mut self) {
        self.hear();
        if core::mem::take(&mut self.guest_awake) {
            self.guest.reap(&self.world);
        }
    }

    pub(super) fn deliver(&mut self, parts: u8, size: u16, gso: u8, only: usize, linger: bool) {
        let parts = if self.wishes.sg && self.first.sg {
            parts
        } else {
            1
        };
        let sizes = sizes(parts, size);
        self.serial += 1;
        let all: usize = sizes.iter().sum();
        let mut packet = Packet {
            bytes: vec![self.serial as u8 ^ 0xa5; all],
            gso: (1..=2).contains(&gso).then_some((900, gso)),
            is_blank: size.is_multiple_of(2),
        };
        packet.bytes[..4].copy_from_slice(&self.serial.to_le_bytes());
        let world = &mut self.world;
        if world
            .backend
            .deliver(&world.mem, &packet, &sizes, only, linger)
        {
            world.host_kick();
        }
    }

    pub(super) fn drain(&mut self) {
        for _ in 0..2000 {
            if self.world.quiesce() == Progress::Done {
                return;
            }
            self.backend_takes();
            while self.world.backend.waiting() > 0 {
                self.backend_answers(0, status::OKAY, false);
            }
            self.world.backend.let_go(&self.world.mem);
            self.world.retry();
        }
        panic!("not drained: {:?}", self.world.device);
    }

    pub(super) fn move_to(&mut self, host: &Host) {
        self.moves += 1;
        self.backend_awake = false;
        let before = self.world.guest_view();
        self.world.migrate(host.backend());
        if !host.is_enough(&self.first) {
            let why = self
                .world
                .device
                .attached()
                .expect_err("it offers too little");
            assert!(why.contains("lacks"), "{why}");
            self.is_lossy = [true; 2];
            self.world.migrate(host.full().backend());
        }
        assert_eq!(self.world.device.attached(), Ok(Progress::Done));
        assert_eq!(self.world.guest_view(), before);
        self.world.resume();
    }

    /// The guest's driver leaves and comes back.
    pub(super) fn restart(&mut self, split: bool) {
        self.is_lossy = [true; 2];
        let world = &mut self.world;
        world.guest_state(5);
        world.guest_state(6);
        for _ in 0..5 {
            world.handshake();
            world.backend.let_go(&world.mem);
            world.retry();
        }
        assert_eq!(world.back("state"), Some("6"));
        assert!(world.ledger.holds.is_empty(), "{:?}", world.ledger.holds);
        world.forget_driver();
        world.guest_state(1);
        let (sent, received) = (
            core::mem::take(&mut self.guest.sent),
            core::mem::take(&mut self.guest.received),
        );
        self.wishes.split = split;
        self.guest = Guest::connect(world, self.wishes);
        (self.guest.sent, self.guest.received) = (sent, received);
        world.handshake();
        assert_eq!(world.back("state"), Some("4"));
        self.backend_awake = true;
        self.guest_awake = true;
    }

    /// Lets everything come to an end.
    pub(super) fn settle(&mut self) {
        for _ in 0..5000 {
            self.backend_takes();
            while self.world.backend.waiting() > 0 {
                self.backend_answers(0, status::OKAY, false);
            }
            self.world.backend.let_go(&self.world.mem);
            self.world.retry();
            self.guest_reaps();
            if self.guest.unanswered() == 0 && !self.world.device.wants_retry() {
                return;
            }
        }
        panic!(
            "{} slots without an answer: {:?}",
            self.guest.unanswered(),
            self.world.device
        );
    }

    pub(super) fn check(&self) {
        in_order(&self.world.backend.sent, &self.guest.sent, self.is_lossy[0]);
        let delivered: Vec<Packet> = self.world.backend.delivered.iter().cloned().collect();
        in_order(&self.guest.received, &delivered, self.is_lossy[1]);
        assert!(!self.guest.is_within_packet());
    }
}

/// Every packet that came is one that went, unchanged and in the same order; none is missing unless
/// that was possible.
pub(super) fn in_order(came: &[Packet], went: &[Packet], is_lossy: bool) {
    if !is_lossy {
        assert_eq!(came.len(), went.len(), "packets");
    }
    let mut left = went.iter();
    for packet in came {
        assert!(
            left.any(|other| other == packet),
            "a packet that was not sent, or not in this order: {:?}",
            &packet.bytes[..4]
        );
    }
}
