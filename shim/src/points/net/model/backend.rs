//! A model of a host's backend: sends and receives packets as Linux's does, late and in odd orders,
//! but only with what was granted to it, and fails the test where Linux's would close the interface.

use std::collections::VecDeque;

use xen_abi::Mfn;
use xen_abi::netif::{
    EXTRA_MORE, Extra, RX_SLOT, RxRequest, RxResponse, TX_SLOT, TxRequest, TxResponse, extra_type,
    rx_flags, status, tx_flags,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::mem::Frames;
use crate::points::device::model::Peer;
use crate::points::net::Net;
use crate::points::ring::BackRing;
use crate::testing::FakeFrames;
use crate::testing::surroundings::{is_granted, map, unmap};

pub(crate) const MAC: &str = "02:00:00:00:01:01";
/// The type of the packets that announce a move.
const RARP: [u8; 2] = [0x80, 0x35];

/// A packet, wherever it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub bytes: Vec<u8>,
    /// Size and rules of what it is to be cut into.
    pub gso: Option<(u16, u8)>,
    pub is_blank: bool,
}

/// A part that was taken and not answered.
#[derive(Clone, Copy, Debug)]
struct Taken {
    id: u16,
    gref: u32,
    /// Extras that came with it.
    extras: u32,
}

#[derive(Default)]
pub(crate) struct Backend {
    pub features: Vec<(&'static str, bool)>,
    tx: Option<BackRing<TX_SLOT>>,
    rx: Option<BackRing<RX_SLOT>>,
    rings: Vec<u32>,
    taken: Vec<Taken>,
    /// Mapped beyond the answer.
    lingering: Vec<u32>,
    /// What came from the guest.
    pub sent: Vec<Packet>,
    /// What was delivered to the guest.
    pub delivered: VecDeque<Packet>,
    /// Announcements seen.
    pub announced: usize,
    gso: [bool; 2],
    /// Stopped within a packet.
    is_cut: bool,
    /// Waits to be told of buffers.
    is_starved: bool,
}

impl Peer for Backend {
    type Protocol = Net;
    const INDEX: u32 = 0;
    const FRONT: &'static [(&'static str, &'static str)] = &[("handle", "0"), ("mac", MAC)];
    const POOL: u64 = 20;
    const LETS_GO_EARLY: bool = true;

    fn terms(&self) -> Vec<(&'static str, String)> {
        let features = self.features.iter();
        features
            .map(|(key, is)| (*key, u32::from(*is).to_string()))
            .collect()
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn is_attached(&self) -> bool {
        self.tx.is_some()
    }

    fn attach(&mut self, mem: &FakeFrames, front: &dyn Fn(&str) -> Option<String>) -> bool {
        let number = |key: &str| front(key).unwrap().parse::<u32>().unwrap();
        assert_eq!(front("request-rx-copy").as_deref(), Some("1"));
        self.gso = ["feature-gso-tcpv4", "feature-gso-tcpv6"]
            .map(|key| front(key).as_deref() == Some("1"));
        let rings = vec![number("tx-ring-ref"), number("rx-ring-ref")];
        if !rings.iter().all(|ring| is_granted(mem, *ring)) {
            return false;
        }
        self.rings = rings;
        let [tx, rx] = [0, 1].map(|ring| map(mem, self.rings[ring], true));
        self.tx = Some(BackRing::attach(mem, vec![tx]).unwrap());
        self.rx = Some(BackRing::attach(mem, vec![rx]).unwrap());
        true
    }

    fn detach(&mut self, mem: &FakeFrames) {
        (self.tx, self.rx) = (None, None);
        (self.is_cut, self.is_starved) = (false, false);
        let taken: Vec<u32> = self.taken.drain(..).map(|taken| taken.gref).collect();
        unmap(mem, &taken);
        unmap(mem, &core::mem::take(&mut self.rings));
        self.let_go(mem);
    }

    fn take(&mut self, mem: &FakeFrames) {
        Self::take(self, mem);
    }

    fn in_flight(&self) -> usize {
        self.waiting()
    }

    fn answer_one(&mut self, mem: &FakeFrames) {
        self.answer(mem, 0, status::OKAY, false);
    }

    fn deliver_one(&mut self, mem: &FakeFrames, byte: u8) -> bool {
        let packet = Packet {
            bytes: vec![byte; 100],
            gso: None,
            is_blank: false,
        };
        let before = self.delivered.len();
        self.deliver(mem, &packet, &[100], usize::MAX, false);
        self.delivered.len() > before
    }

    fn let_go(&mut self, mem: &FakeFrames) {
        unmap(mem, &core::mem::take(&mut self.lingering));
    }

    /// Remembers what went by.
    fn succeed(&mut self, old: Self) {
        self.sent = old.sent;
        self.delivered = old.delivered;
        self.announced = old.announced;
    }
}

impl Backend {
    pub fn new(features: &[(&'static str, bool)]) -> Self {
        Self {
            features: features.to_vec(),
            ..Self::default()
        }
    }

    /// Takes the packets that wait, maps them and sends them.
    pub fn take(&mut self, mem: &FakeFrames) {
        while self.tx.is_some() && self.take_packet(mem) {}
    }

    fn take_slot(&mut self, mem: &FakeFrames) -> Option<[u8; TX_SLOT]> {
        let ring = self.tx.as_mut()?;
        ring.final_check(mem).unwrap().then(|| {
            let slot = ring.copy_request(mem, 0);
            ring.consume(1);
            slot
        })
    }

    fn take_packet(&mut self, mem: &FakeFrames) -> bool {
        let Some(slot) = self.take_slot(mem) else {
            return false;
        };
        let first = TxRequest::read_from_bytes(&slot).unwrap();
        let mut packet = Packet {
            bytes: Vec::new(),
            gso: None,
            is_blank: first.flags & tx_flags::CSUM_BLANK != 0,
        };
        let mut extras = 0;
        let mut more = first.flags & tx_flags::EXTRA_INFO != 0;
        while more {
            let slot = self.take_slot(mem).expect("an extra that was announced");
            let extra = Extra::read_from_prefix(&slot).unwrap().0;
            assert_eq!(extra.kind, extra_type::GSO);
            assert!(self.has(
                ["feature-gso-tcpv4", "feature-gso-tcpv6"][usize::from(extra.gso_type()) - 1]
            ));
            packet.gso = Some((extra.gso_size(), extra.gso_type()));
            more = extra.flags & EXTRA_MORE != 0;
            extras += 1;
        }
        let mut rest = Vec::new();
        let mut flags = first.flags;
        while flags & tx_flags::MORE_DATA != 0 {
            assert!(self.has("feature-sg"));
            let slot = self.take_slot(mem).expect("a part that was announced");
            let part = TxRequest::read_from_bytes(&slot).unwrap();
            flags = part.flags;
            rest.push(part);
        }
        assert!(rest.len() < 18, "more parts than every backend takes");
        let others: u16 = rest.iter().map(|part| part.size).sum();
        let own = TxRequest {
            size: first.size.checked_sub(others).expect("parts fit in"),
            ..first
        };
        assert!(own.size >= 14, "the header is in the first part");
        for (index, part) in core::iter::once(&own).chain(&rest).enumerate() {
            let frame = map(mem, part.gref, false);
            let mut bytes = vec![0; usize::from(part.size)];
            mem.read(frame, usize::from(part.offset), &mut bytes);
            packet.bytes.extend(bytes);
            self.taken.push(Taken {
                id: part.id,
                gref: part.gref,
                extras: if index == 0 { extras } else { 0 },
            });
        }
        if packet.bytes.get(12..14) == Some(&RARP) {
            assert_eq!(packet.bytes[6..12], [2, 0, 0, 0, 1, 1], "{MAC}");
            self.announced += 1;
        } else {
            self.sent.push(packet);
        }
        true
    }

    fn has(&self, key: &str) -> bool {
        self.features.iter().any(|(other, is)| *other == key && *is)
    }

    /// How many parts wait for an answer.
    pub fn waiting(&self) -> usize {
        self.taken.len()
    }

    /// Answers part number `pick`; `true` when the frontend wants to be notified.
    pub fn answer(&mut self, mem: &FakeFrames, pick: usize, status: i16, linger: bool) -> bool {
        let taken = self.taken.swap_remove(pick % self.taken.len());
        match linger {
            true => self.lingering.push(taken.gref),
            false => unmap(mem, &[taken.gref]),
        }
        let ring = self.tx.as_mut().unwrap();
        let id = taken.id;
        ring.respond(mem, TxResponse { id, status }.as_bytes());
        let status = status::NULL;
        for _ in 0..taken.extras {
            ring.respond(mem, TxResponse { id: 0, status }.as_bytes());
        }
        ring.push(mem)
    }

    /// The frontend has notified it.
    pub fn wake(&mut self) {
        self.is_starved = false;
    }

    /// Delivers a packet in `parts`, if there are buffers for it; `true` when the frontend wants to
    /// be notified.  A part of it may stay away, as if the machine was moved in between.
    pub fn deliver(
        &mut self,
        mem: &FakeFrames,
        packet: &Packet,
        parts: &[usize],
        only: usize,
        linger: bool,
    ) -> bool {
        let gso = packet
            .gso
            .filter(|(_, kind)| self.gso[usize::from(*kind) - 1]);
        let needed = parts.len() as u32 + u32::from(gso.is_some());
        let Some(ring) = &mut self.rx else {
            return false;
        };
        let pending = ring.pending(mem).unwrap();
        if pending < needed && !self.is_starved {
            // The next buffer is to be told of; one that came just now is seen at the next try.
            ring.ignore_next(mem, pending);
            self.is_starved = ring.pending(mem).unwrap() == pending;
        }
        if self.is_cut || self.is_starved || pending < needed {
            return false;
        }
        let mut at = 0;
        for (index, &size) in parts.iter().enumerate().take(only) {
            let request = RxRequest::read_from_bytes(&ring.copy_request(mem, 0)).unwrap();
            ring.consume(1);
            let frame = map(mem, request.gref, true);
            let offset = at * 2 % 64;
            mem.write(frame, offset, &packet.bytes[at..at + size]);
            at += size;
            match linger {
                true => self.lingering.push(request.gref),
                false => unmap(mem, &[request.gref]),
            }
            let mut flags = 0;
            if index + 1 < parts.len() {
                flags |= rx_flags::MORE_DATA;
            }
            if index == 0 && gso.is_some() {
                flags |= rx_flags::EXTRA_INFO;
            }
            if index == 0 && packet.is_blank {
                flags |= rx_flags::CSUM_BLANK | rx_flags::DATA_VALIDATED;
            }
            let response = RxResponse {
                id: request.id,
                offset: offset as u16,
                flags,
                status: size as i16,
            };
            ring.respond(mem, response.as_bytes());
            if let (0, Some((size, kind))) = (index, gso) {
                // The extra lies in the slot of a buffer, which stays unused.
                ring.consume(1);
                ring.respond(mem, Extra::segments(size, kind).as_bytes());
            }
        }
        self.is_cut = only < parts.len();
        if !self.is_cut {
            let packet = Packet {
                gso,
                ..packet.clone()
            };
            self.delivered.push_back(packet);
        }
        ring.push(mem)
    }

    /// The frames of both rings, for those who write nonsense into them.
    pub fn ring_frames(&self) -> Vec<Mfn> {
        let tx = self.tx.iter().flat_map(|ring| ring.frames().to_vec());
        let rx = self.rx.iter().flat_map(|ring| ring.frames().to_vec());
        tx.chain(rx).collect()
    }
}
