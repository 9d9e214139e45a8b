//! Drivers as a guest's kernel has them, for disks and network interfaces: they connect by the guest's own
//! store, grants and ports, ask for things, and take each answer once.

use std::collections::{BTreeMap, VecDeque};

use xen_abi::blkif::{self, SLOT_SIZE, Segment};
use xen_abi::evtchn::{self, AllocUnbound};
use xen_abi::grant::{self, SetupTable};
use xen_abi::netif::{RX_SLOT, RxRequest, RxResponse, TX_SLOT, TxRequest, TxResponse};
use xen_abi::xs_wire::MsgType;
use xen_abi::{DomId, Mfn, Port, hypercall as nr};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Bench;
use crate::mem::Frames;
use crate::points::GuestStore as _;
use crate::points::device::model::Peer;
use crate::points::ring::FrontRing;
use crate::points::{disk, net};
use crate::testing::backend::Placed;

/// Sectors of one request: a page.
const SECTORS: u64 = 8;
/// What is on the disk at first.
const BLANK: u8 = 0x5a;
/// Pages of the guest's ([`Bench::page`]): first one that the drivers have.
const PAGES: u64 = 20;
/// The first that those of interfaces have.
const NET_PAGES: u64 = 60;
/// Pages of data that a driver has in each direction.
const BUFFERS: u64 = 8;
/// Bytes of a packet.
const PACKET: u16 = 100;

impl Bench {
    /// Plugs disk number `nr`, which every host has; returns its number for the control domain.
    pub(crate) fn plug_disk(&mut self, nr: u32) -> usize {
        self.plug(Placed::new(disk_index(nr), || {
            disk::model::Backend::new(0, &[("feature-flush-cache", "1")])
        }))
    }

    /// Plugs network interface number `nr`, likewise.
    pub(crate) fn plug_net(&mut self, nr: u32) -> usize {
        self.plug(Placed::new(nr, || {
            net::model::Backend::new(&[("feature-rx-copy", true)])
        }))
    }

    fn plug<B: Peer + 'static>(&mut self, backend: Placed<B>) -> usize {
        self.guest.host.in_dom0(|dom0| dom0.plug(Box::new(backend)));
        self.settle();
        self.guest.host.dom0.backends.len() - 1
    }

    /// Lets the shim take whatever the host has announced.
    pub(crate) fn settle(&mut self) {
        while !self.guest.host.events.is_empty() {
            self.guest.host_events();
        }
    }

    /// Reads a node of the guest's store.
    pub(crate) fn store(&self, path: &str) -> Option<String> {
        String::from_utf8(self.guest.points.guest_store().read(path)?).ok()
    }

    /// All nodes of the guest's store.
    pub(crate) fn whole_store(&self) -> BTreeMap<String, String> {
        let store = self.guest.points.guest_store();
        let mut all = BTreeMap::new();
        let mut found = vec![String::from("/")];
        while let Some(path) = found.pop() {
            let below = |leaf: &String| format!("{}/{leaf}", path.trim_end_matches('/'));
            found.extend(store.list(&path).iter().map(below));
            all.extend(self.store(&path).map(|value| (path, value)));
        }
        all
    }

    fn write_store(&mut self, path: &str, value: &str) {
        self.ask_store(MsgType::WRITE, format!("{path}\0{value}").as_bytes());
        self.settle();
    }

    /// Grants a frame to the backends under a reference.
    fn grant(&mut self, reference: u32, frame: Mfn, readonly: bool) {
        let list = self.page(1);
        let setup = SetupTable {
            dom: DomId::SELF.0,
            nr_frames: 1,
            frame_list: list,
            ..SetupTable::default()
        };
        let arg = self.arg(&setup);
        let done = self.call(nr::GRANT_TABLE_OP, &[grant::op::SETUP_TABLE, arg, 1]);
        assert_eq!(done, Ok(0));
        let table = Mfn(self.get(list));
        let flags = if readonly { 5 } else { 1 };
        let raw = flags | frame.0 << 32;
        self.guest.m.store64(table, reference as usize * 8, raw);
    }

    fn alloc_unbound(&mut self) -> Port {
        let arg = self.arg(&AllocUnbound {
            dom: DomId::SELF.0,
            remote_dom: 0,
            port: 0,
        });
        let made = self.call(nr::EVENT_CHANNEL_OP, &[evtchn::op::ALLOC_UNBOUND, arg]);
        assert_eq!(made, Ok(0));
        Port(self.get(arg + 4))
    }

    fn send(&mut self, port: Port) {
        let arg = self.arg(&port.0);
        let sent = self.call(nr::EVENT_CHANNEL_OP, &[evtchn::op::SEND, arg]);
        assert_eq!(sent, Ok(0));
    }
}

/// The index of disk number `nr`: `xvda`, `xvdb` and so on.
fn disk_index(nr: u32) -> u32 {
    51712 + nr * 16
}

/// Frames that a driver has, which it grants under always the same references.
struct Buffers {
    first: u64,
    free: Vec<u64>,
}

impl Buffers {
    /// The driver has `count` pages, from `first` on.
    fn new(first: u64, count: u64) -> Self {
        Self {
            first,
            free: (0..count).rev().collect(),
        }
    }

    /// Takes one and grants it: its number, frame and reference.
    fn take(&mut self, bench: &mut Bench, readonly: bool) -> (u64, Mfn, u32) {
        let index = self.free.pop().expect("the driver has enough");
        let page = bench.page(self.first + index);
        let frame = bench.frame(page);
        let reference = 8 + (self.first + index) as u32;
        bench.grant(reference, frame, readonly);
        (index, frame, reference)
    }

    fn frame(&self, bench: &mut Bench, index: u64) -> Mfn {
        let page = bench.page(self.first + index);
        bench.frame(page)
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
struct Asked {
    operation: u8,
    at: u64,
    buffer: u64,
    byte: u8,
}

/// The driver of a disk.
pub(crate) struct DiskDriver {
    ring: FrontRing<SLOT_SIZE>,
    port: Port,
    buffers: Buffers,
    asked: BTreeMap<u64, Asked>,
    /// What must be on the disk, by place; elsewhere it is blank.
    image: BTreeMap<u64, u8>,
    next: u64,
    /// How many answers came.
    pub(crate) answers: usize,
}

impl DiskDriver {
    /// Connects that of disk number `nr`.
    pub(crate) fn connect(bench: &mut Bench, nr: u32) -> Self {
        let pages = PAGES + u64::from(nr) * (1 + BUFFERS);
        let index = disk_index(nr);
        let mut rings = Buffers::new(pages, 1);
        let (_, frame, reference) = rings.take(bench, false);
        let ring = FrontRing::new(&bench.guest.m, vec![frame]);
        let port = bench.alloc_unbound();
        for (key, value) in [
            ("ring-ref", reference.to_string()),
            ("event-channel", port.0.to_string()),
            ("protocol", "x86_64-abi".to_owned()),
            ("state", "3".to_owned()),
            ("state", "4".to_owned()),
        ] {
            bench.write_store(&format!("device/vbd/{index}/{key}"), &value);
        }
        let state = bench.store(&format!("/local/domain/0/backend/vbd/1/{index}/state"));
        assert_eq!(state.as_deref(), Some("4"));
        Self {
            ring,
            port,
            buffers: Buffers::new(pages + 1, BUFFERS),
            asked: BTreeMap::new(),
            image: BTreeMap::new(),
            next: 0x1000,
            answers: 0,
        }
    }

    /// How many requests wait for their answers.
    pub(crate) fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// Writes a request for the page at place `at`, which no other may be about.
    pub(crate) fn ask(&mut self, bench: &mut Bench, operation: u8, at: u64) {
        let is_write = operation == blkif::op::WRITE;
        let (buffer, frame, gref) = self.buffers.take(bench, is_write);
        let id = self.next;
        self.next += 1;
        let byte = id as u8;
        let is_flush = operation == blkif::op::FLUSH_DISKCACHE;
        let fill = if is_write { byte } else { 0xee };
        bench.guest.m.write(frame, 0, &[fill; 4096]);
        let mut request = blkif::Request {
            operation,
            nr_segments: u8::from(!is_flush),
            handle: 51712,
            id,
            sector_number: if is_flush { 0 } else { at * SECTORS },
            ..blkif::Request::new_zeroed()
        };
        request.seg[0] = Segment {
            gref,
            first_sect: 0,
            last_sect: SECTORS as u8 - 1,
            pad: 0,
        };
        let asked = Asked {
            operation,
            at,
            buffer,
            byte,
        };
        self.asked.insert(id, asked);
        self.ring.put(&bench.guest.m, request.as_bytes());
    }

    /// Publishes what was written; without `kicks`, nobody is told.
    pub(crate) fn push(&mut self, bench: &mut Bench, kicks: bool) {
        if self.ring.push(&bench.guest.m) && kicks {
            bench.send(self.port);
        }
    }

    /// Takes the answers that there are: each to a request that waits for it, good, and with the right data.
    pub(crate) fn reap(&mut self, bench: &mut Bench) {
        while let Some(slot) = self.ring.take(&bench.guest.m).expect("an honest ring") {
            let response = blkif::Response::read_from_prefix(&slot).expect("a slot").0;
            let asked = self.asked.remove(&response.id);
            let asked = asked.expect("one answer to a request");
            assert_eq!(response.status, blkif::status::OKAY, "{asked:?}");
            match asked.operation {
                blkif::op::WRITE => {
                    self.image.insert(asked.at, asked.byte);
                }
                blkif::op::READ => {
                    let frame = self.buffers.frame(bench, asked.buffer);
                    let expected = self.image.get(&asked.at).copied().unwrap_or(BLANK);
                    let mut page = [0; 4096];
                    bench.guest.m.read(frame, 0, &mut page);
                    assert!(page.iter().all(|byte| *byte == expected), "{asked:?}");
                }
                _ => {}
            }
            self.buffers.free.push(asked.buffer);
            self.answers += 1;
        }
    }
}

/// The driver of a network interface.
pub(crate) struct NetDriver {
    tx: FrontRing<TX_SLOT>,
    rx: FrontRing<RX_SLOT>,
    port: Port,
    sending: Buffers,
    receiving: Buffers,
    /// Packets without an answer: their identifiers and buffers.
    sent: BTreeMap<u16, u64>,
    /// Buffers in the ring, in their order.
    posted: VecDeque<(u16, u64)>,
    next: u16,
    /// How many answers came to what was sent.
    pub(crate) answers: usize,
    /// The packets that came in, by the byte that they are made of.
    pub(crate) received: Vec<u8>,
}

impl NetDriver {
    /// Connects that of interface number `nr`.
    pub(crate) fn connect(bench: &mut Bench, nr: u32) -> Self {
        let pages = NET_PAGES + u64::from(nr) * (2 + 2 * BUFFERS);
        let mut rings = Buffers::new(pages, 2);
        let [tx, rx] = [0, 1].map(|_| rings.take(bench, false));
        let port = bench.alloc_unbound();
        let m = &bench.guest.m;
        let (tx_ring, rx_ring) = (FrontRing::new(m, vec![tx.1]), FrontRing::new(m, vec![rx.1]));
        for (key, value) in [
            ("tx-ring-ref", tx.2),
            ("rx-ring-ref", rx.2),
            ("event-channel", port.0),
            ("request-rx-copy", 1),
            ("feature-rx-notify", 1),
            ("state", 4),
        ] {
            bench.write_store(&format!("device/vif/{nr}/{key}"), &value.to_string());
        }
        let state = bench.store(&format!("/local/domain/0/backend/vif/1/{nr}/state"));
        assert_eq!(state.as_deref(), Some("4"));
        Self {
            tx: tx_ring,
            rx: rx_ring,
            port,
            sending: Buffers::new(pages + 2, BUFFERS),
            receiving: Buffers::new(pages + 2 + BUFFERS, BUFFERS),
            sent: BTreeMap::new(),
            posted: VecDeque::new(),
            next: 0xfff0,
            answers: 0,
            received: Vec::new(),
        }
    }

    /// How many packets wait for their answers.
    pub(crate) fn waiting(&self) -> usize {
        self.sent.len()
    }

    /// How many buffers wait for packets.
    pub(crate) fn posted(&self) -> usize {
        self.posted.len()
    }

    fn id(&mut self) -> u16 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// Writes a packet.
    pub(crate) fn send(&mut self, bench: &mut Bench) {
        let (buffer, frame, gref) = self.sending.take(bench, true);
        let id = self.id();
        bench.guest.m.write(frame, 0, &[id as u8; PACKET as usize]);
        let request = TxRequest {
            gref,
            offset: 0,
            flags: 0,
            id,
            size: PACKET,
        };
        self.sent.insert(id, buffer);
        self.tx.put(&bench.guest.m, request.as_bytes());
    }

    /// Writes a buffer for a packet to come.
    pub(crate) fn post(&mut self, bench: &mut Bench) {
        let (buffer, _, gref) = self.receiving.take(bench, false);
        let request = RxRequest {
            id: self.id(),
            pad: 0,
            gref,
        };
        self.posted.push_back((request.id, buffer));
        self.rx.put(&bench.guest.m, request.as_bytes());
    }

    /// Publishes what was written; without `kicks`, nobody is told.
    pub(crate) fn push(&mut self, bench: &mut Bench, kicks: bool) {
        let wanted = [self.tx.push(&bench.guest.m), self.rx.push(&bench.guest.m)];
        if wanted.contains(&true) && kicks {
            bench.send(self.port);
        }
    }

    /// Takes the answers that there are: each to what waits for it, packets whole and in their order.
    pub(crate) fn reap(&mut self, bench: &mut Bench) {
        while let Some(slot) = self.tx.take(&bench.guest.m).expect("an honest ring") {
            let response = TxResponse::read_from_prefix(&slot).expect("a slot").0;
            let buffer = self.sent.remove(&response.id);
            let buffer = buffer.expect("one answer to a packet");
            self.sending.free.push(buffer);
            self.answers += 1;
        }
        while let Some(slot) = self.rx.take(&bench.guest.m).expect("an honest ring") {
            let response = RxResponse::read_from_bytes(&slot).expect("a slot");
            let (id, buffer) = self.posted.pop_front().expect("one packet to a buffer");
            assert_eq!(response.id, id, "the answer lies in its request's slot");
            assert_eq!(response.status, PACKET as i16);
            let frame = self.receiving.frame(bench, buffer);
            let mut packet = [0; PACKET as usize];
            bench
                .guest
                .m
                .read(frame, response.offset.into(), &mut packet);
            assert!(packet.iter().all(|byte| *byte == packet[0]));
            self.received.push(packet[0]);
            self.receiving.free.push(buffer);
        }
    }
}
