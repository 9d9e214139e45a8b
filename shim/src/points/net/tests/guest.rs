//! A model of the guest's driver, which knows what it sent and checks what it gets.

use std::collections::{BTreeMap, VecDeque};

use xen_abi::Mfn;
use xen_abi::netif::{
    EXTRA_MORE, Extra, RX_SLOT, RxRequest, RxResponse, TX_SLOT, TxRequest, TxResponse, extra_type,
    rx_flags, status, tx_flags,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::mem::Frames;
use crate::points::device::model::{GUEST_FRAMES, grant, put_entry, reference};
use crate::points::net::model::backend::Packet;
use crate::points::net::model::{PORTS, RX_RING, TX_RING, World};
use crate::points::ring::FrontRing;

const TX_FRAMES: std::ops::Range<u64> = 2..60;
const RX_FRAMES: std::ops::Range<u64> = 60..GUEST_FRAMES;

/// What a driver asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
    pub split: bool,
    pub sg: bool,
    pub gso: [bool; 2],
}

pub(crate) struct Guest {
    pub tx: FrontRing<TX_SLOT>,
    pub rx: FrontRing<RX_SLOT>,
    /// Parts that wait for an answer: their frames, and what the answer must be, if that is known.
    waiting: BTreeMap<u16, (Mfn, Option<i16>)>,
    extras: usize,
    free_tx: Vec<Mfn>,
    /// Buffers in the ring, in order.
    posted: VecDeque<(u16, Mfn)>,
    free_rx: Vec<Mfn>,
    next_id: u16,
    serial: u32,
    /// The packet that is being received.
    partial: Option<Packet>,
    wants: (bool, bool),
    pub sent: Vec<Packet>,
    pub received: Vec<Packet>,
    /// Parts that failed.
    pub errors: [usize; 2],
}

impl Guest {
    /// Connects a driver.
    pub fn connect(world: &mut World, wishes: Wishes) -> Self {
        assert_eq!(world.back("state"), Some("2"));
        for frame in [TX_RING, RX_RING] {
            grant(world, frame, false);
        }
        let tx = FrontRing::new(&world.mem, vec![TX_RING]);
        let rx = FrontRing::new(&world.mem, vec![RX_RING]);
        let yes = |is: bool| if is { "1" } else { "0" };
        world.front("tx-ring-ref", &reference(TX_RING).to_string());
        world.front("rx-ring-ref", &reference(RX_RING).to_string());
        world.front("request-rx-copy", "1");
        world.front("feature-rx-notify", "1");
        world.front("feature-sg", yes(wishes.sg));
        world.front("feature-gso-tcpv4", yes(wishes.gso[0]));
        world.front("feature-gso-tcpv6", yes(wishes.gso[1]));
        let [tx_port, rx_port] = PORTS.map(|port| port.to_string());
        if wishes.split {
            world.front("event-channel-tx", &tx_port);
            world.front("event-channel-rx", &rx_port);
        } else {
            world.front("event-channel", &tx_port);
        }
        world.guest_state(4);
        Self {
            tx,
            rx,
            waiting: BTreeMap::new(),
            extras: 0,
            free_tx: TX_FRAMES.map(Mfn).collect(),
            posted: VecDeque::new(),
            free_rx: RX_FRAMES.map(Mfn).collect(),
            next_id: 0xfff0,
            serial: 0,
            partial: None,
            wants: (false, false),
            sent: Vec::new(),
            received: Vec::new(),
            errors: [0; 2],
        }
    }

    /// Parts and extras without an answer.
    pub fn unanswered(&self) -> usize {
        self.waiting.len() + self.extras
    }

    fn id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Sends a packet with parts of these sizes; `false` if there is no room.  With `spoil`, the
    /// last part is not granted.
    pub fn send(
        &mut self,
        world: &World,
        sizes: &[usize],
        gso: Option<(u16, u8)>,
        is_blank: bool,
        spoil: bool,
    ) -> bool {
        let slots = sizes.len() + usize::from(gso.is_some());
        if (self.tx.free() as usize) < slots || self.free_tx.len() < sizes.len() {
            return false;
        }
        self.serial += 1;
        let all: usize = sizes.iter().sum();
        let mut packet = Packet {
            bytes: vec![self.serial as u8; all],
            gso,
            is_blank,
        };
        packet.bytes[..4].copy_from_slice(&self.serial.to_le_bytes());
        let mut at = 0;
        for (index, &size) in sizes.iter().enumerate() {
            let is_last = index + 1 == sizes.len();
            let frame = self.free_tx.pop().expect("counted before");
            let offset = (self.serial as usize * 24 + index) % 1000;
            world.mem.write(frame, offset, &packet.bytes[at..at + size]);
            at += size;
            match spoil && is_last {
                true => put_entry(world, reference(frame), 0),
                false => grant(world, frame, true),
            }
            let mut flags = 0;
            if !is_last {
                flags |= tx_flags::MORE_DATA;
            }
            if index == 0 && gso.is_some() {
                flags |= tx_flags::EXTRA_INFO;
            }
            if index == 0 && is_blank {
                flags |= tx_flags::CSUM_BLANK | tx_flags::DATA_VALIDATED;
            }
            let request = TxRequest {
                gref: reference(frame),
                offset: offset as u16,
                flags,
                id: self.id(),
                size: if index == 0 { all } else { size } as u16,
            };
            let expected = spoil.then_some(status::ERROR);
            self.waiting.insert(request.id, (frame, expected));
            self.tx.put(&world.mem, request.as_bytes());
            if let (0, Some((size, kind))) = (index, gso) {
                self.extras += 1;
                let extra = Extra::segments(size, kind);
                self.tx.put(&world.mem, extra.as_bytes());
            }
        }
        if !spoil {
            self.sent.push(packet);
        }
        true
    }

    /// Asks for a multicast address.
    pub fn join(&mut self, world: &World) -> bool {
        if self.tx.free() < 2 {
            return false;
        }
        let request = TxRequest {
            flags: tx_flags::EXTRA_INFO,
            id: self.id(),
            ..TxRequest::default()
        };
        let extra = Extra {
            kind: extra_type::MCAST_ADD,
            flags: 0,
            data: [1, 0, 0x5e, 0, 0, 1],
        };
        self.extras += 1;
        // Its frame is none, so any free number will do.
        self.waiting
            .insert(request.id, (Mfn(GUEST_FRAMES), Some(status::OKAY)));
        self.tx.put(&world.mem, request.as_bytes());
        self.tx.put(&world.mem, extra.as_bytes());
        true
    }

    /// Posts buffers; with `spoil`, the first of them is not granted.
    pub fn post(&mut self, world: &World, count: usize, spoil: bool) {
        for index in 0..count {
            if self.rx.free() == 0 {
                return;
            }
            let Some(frame) = self.free_rx.pop() else {
                return;
            };
            match spoil && index == 0 {
                true => put_entry(world, reference(frame), 0),
                false => grant(world, frame, false),
            }
            let request = RxRequest {
                id: self.id(),
                pad: 0,
                gref: reference(frame),
            };
            self.posted.push_back((request.id, frame));
            self.rx.put(&world.mem, request.as_bytes());
        }
    }

    /// Publishes what was written; says whether the backend wants to be notified.
    pub fn publish(&mut self, world: &World) -> bool {
        let (tx, rx) = (self.tx.push(&world.mem), self.rx.push(&world.mem));
        tx || rx
    }

    /// Publishes what was written; the ports are used only if the backend wants it.
    pub fn push(&mut self, world: &mut World) {
        if self.publish(world) {
            world.guest_kick();
        }
    }

    /// Takes what there is in both rings, and checks it.
    pub fn reap(&mut self, world: &World) {
        while self.tx.final_check(&world.mem).expect("an honest ring") {
            let slot = self.tx.copy_response(&world.mem, 0);
            self.tx.consume(1);
            let response = TxResponse::read_from_bytes(&slot[..4]).expect("4 bytes");
            self.sent_answered(world, response);
        }
        while self.rx.final_check(&world.mem).expect("an honest ring") {
            let slot = self.rx.copy_response(&world.mem, 0);
            self.rx.consume(1);
            self.part_received(world, slot);
        }
    }

    fn sent_answered(&mut self, world: &World, response: TxResponse) {
        if response.status == status::NULL {
            self.extras = self.extras.checked_sub(1).expect("an extra that waits");
            return;
        }
        let (frame, expected) = self
            .waiting
            .remove(&response.id)
            .expect("an answer to a part that waits for one");
        if let Some(expected) = expected {
            assert_eq!(response.status, expected);
        }
        if response.status != status::OKAY {
            self.errors[0] += 1;
        }
        assert!(
            !world.ledger.holds.contains_key(&(frame, false)),
            "the frame is the guest's again"
        );
        if frame != Mfn(GUEST_FRAMES) {
            put_entry(world, reference(frame), 0);
            self.free_tx.push(frame);
        }
    }

    fn part_received(&mut self, world: &World, slot: [u8; RX_SLOT]) {
        let (id, frame) = self.posted.pop_front().expect("a buffer that was posted");
        assert!(
            !world.ledger.holds.contains_key(&(frame, true)),
            "the frame is the guest's again"
        );
        put_entry(world, reference(frame), 0);
        self.free_rx.push(frame);
        if core::mem::take(&mut self.wants.0) {
            let extra = Extra::read_from_bytes(&slot).expect("a slot");
            assert_eq!(extra.kind, extra_type::GSO);
            self.wants.0 = extra.flags & EXTRA_MORE != 0;
            let packet = self.partial.as_mut().expect("a packet with an extra");
            packet.gso = Some((extra.gso_size(), extra.gso_type()));
        } else {
            let response = RxResponse::read_from_bytes(&slot).expect("a slot");
            assert_eq!(response.id, id, "the answer lies in its request's slot");
            if response.status < 0 {
                assert!(self.partial.is_none(), "packets fail as a whole");
                self.errors[1] += 1;
                return;
            }
            let packet = self.partial.get_or_insert(Packet {
                bytes: Vec::new(),
                gso: None,
                is_blank: response.flags & rx_flags::CSUM_BLANK != 0,
            });
            let mut bytes = vec![0; response.status as usize];
            world
                .mem
                .read(frame, usize::from(response.offset), &mut bytes);
            packet.bytes.extend(bytes);
            self.wants = (
                response.flags & rx_flags::EXTRA_INFO != 0,
                response.flags & rx_flags::MORE_DATA != 0,
            );
        }
        if self.wants == (false, false) {
            self.received.extend(self.partial.take());
        }
    }

    /// Whether a packet was begun and not ended.
    pub fn is_within_packet(&self) -> bool {
        self.partial.is_some()
    }
}
