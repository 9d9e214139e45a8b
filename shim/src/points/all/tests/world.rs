//! All points of a guest, and a host whose xenstored is our own store once more.

use xen_abi::xs_wire::{Header, MsgType, ring};
use xen_abi::{DomId, GuestVa, Mfn, Port};
use zerocopy::IntoBytes;

use crate::host::HostEvent;
use crate::host::grants::TableFrames;
use crate::mem::{FakeFrames, Frames};
use crate::points::all::{AllPoints, Parts};
use crate::points::evtchn::Peer;
use crate::points::xenstore::perms::Perms;
use crate::points::xenstore::{Limits, VirtualStore};
use crate::points::{GuestStore, Outside, Points};
use crate::testing::heap::SmallHeap;
use crate::testing::{Bench, FakeHost, FakeMachine};

/// The real domain's id.
pub(super) const REAL: DomId = DomId(7);
pub(super) const GUEST_PAGES: u64 = 60_000;

/// A table of the host's with one frame.
pub(super) struct OneFrame;

impl TableFrames for OneFrame {
    fn map_next(&mut self, index: usize) -> Option<Mfn> {
        (index == 0).then_some(Mfn(7))
    }
}

pub(super) struct World {
    pub(super) bench: Bench,
    pub(super) points: AllPoints,
    /// The host's xenstored.
    pub(super) real: VirtualStore,
}

impl World {
    /// A guest whose host's store has what a toolstack writes.
    pub(super) fn new() -> Self {
        let bench = Bench::new();
        let parts = Parts {
            domid: DomId(1),
            backend: DomId(0),
            pool: Box::new(vec![Mfn(4), Mfn(5), Mfn(6)]),
            grant_frames: Box::new(OneFrame),
            store: (Port(1), Bench::STORE),
            console: (Port(2), Bench::CONSOLE),
            guest_pages: GUEST_PAGES,
        };
        let points = AllPoints::new(parts, &bench.guest.host).expect("the host has rings");
        let real = toolstack(&bench.guest.host.frames);
        Self {
            bench,
            points,
            real,
        }
    }

    /// The same, with a guest that may start.
    pub(super) fn started() -> Self {
        let mut world = Self::new();
        world
            .with(|points, outside| points.begin(outside))
            .expect("there is memory");
        world.pump();
        assert!(world.points.is_seeded());
        world
    }

    pub(super) fn with<R>(
        &mut self,
        act: impl FnOnce(&mut AllPoints, &mut Outside<'_, FakeMachine, FakeHost>) -> R,
    ) -> R {
        let points = &mut self.points;
        self.bench.guest.outside(|_, outside| act(points, outside))
    }

    /// Lets the host's daemon and the points speak until neither has anything to say.
    pub(super) fn pump(&mut self) {
        for _ in 0..2000 {
            let frames = self.bench.guest.host.frames.clone();
            let real = &mut self.real;
            if !SmallHeap::outside(|| real.service(&*frames).notify) {
                return;
            }
            self.event(HostEvent::Store);
        }
        panic!("they never end");
    }

    pub(super) fn event(&mut self, event: HostEvent) {
        self.with(|points, outside| points.host_event(outside, event));
    }

    /// What the guest reads of its store.
    pub(super) fn guest(&self, path: &str) -> Option<String> {
        let value = self
            .points
            .sides
            .store
            .read(&format!("/local/domain/1/{path}"))?;
        String::from_utf8(value).ok()
    }

    /// What the host reads of the domain's directory.
    pub(super) fn host(&self, path: &str) -> Option<String> {
        let value = self.real.read(&format!("/local/domain/7/{path}"))?;
        String::from_utf8(value).ok()
    }

    /// The toolstack writes a node.
    pub(super) fn host_writes(&mut self, path: &str, value: &str) {
        self.real
            .write_as_host(&format!("/local/domain/7/{path}"), value.as_bytes());
        self.pump();
    }

    /// The guest sends a request to its own store.
    pub(super) fn guest_asks(&mut self, kind: MsgType, payload: &[u8]) {
        let header = Header {
            kind: kind.0,
            req_id: 1,
            tx_id: 0,
            len: payload.len() as u32,
        };
        let message = [header.as_bytes(), payload].concat();
        let m = &self.bench.guest.m;
        let at = m.load32(Bench::STORE, ring::REQ_PROD);
        for (offset, byte) in message.iter().enumerate() {
            let index = (at as usize + offset) % ring::SIZE as usize;
            m.store8(Bench::STORE, ring::REQ + index, *byte);
        }
        let end = at + message.len() as u32;
        m.store32(Bench::STORE, ring::REQ_PROD, end);
        // The answers are of no interest.
        let answered = m.load32(Bench::STORE, ring::RSP_PROD);
        m.store32(Bench::STORE, ring::RSP_CONS, answered);
        self.with(|points, outside| points.guest_notify(outside, Peer::Store, Port(1)));
        self.pump();
    }

    pub(super) fn takes_suspend(&mut self) -> Option<u64> {
        Points::<FakeMachine, FakeHost>::take_suspend(&mut self.points)
    }

    pub(super) fn grant_table_op(
        &mut self,
        command: u64,
        args: u64,
        count: u64,
    ) -> Result<u64, xen_abi::Errno> {
        self.with(|points, outside| {
            let left = points.grant_table_op(outside, 0, command, GuestVa(args), count)?;
            assert_eq!(left, None, "nobody wants a turn");
            Ok(0)
        })
    }
}

/// A daemon with the nodes of a domain, that serves the ring.
pub(super) fn toolstack(frames: &FakeFrames) -> VirtualStore {
    frames.clear(FakeHost::STORE_RING);
    let mut real = VirtualStore::new(REAL, Limits::default());
    for (path, value, is_guests) in [
        ("", "", false),
        ("vm", "/vm/0a-1b", false),
        ("name", "g", false),
        ("memory/static-max", "262144", false),
        ("memory/target", "262144", false),
        ("cpu/0/availability", "online", false),
        ("control", "", false),
        ("control/shutdown", "", true),
        ("control/sysrq", "", true),
        ("control/feature-suspend", "", true),
        ("device/suspend/event-channel", "", true),
        ("data", "", true),
        ("attr", "", true),
        ("drivers", "", true),
        ("error", "", true),
        ("domid", "7", false),
    ] {
        let path = format!("/local/domain/7/{path}");
        let path = path.trim_end_matches('/');
        let perms = match is_guests {
            true => Perms::new(REAL, None),
            false => Perms::new(DomId(0), Some(REAL)),
        };
        real.put(path, value.as_bytes(), &perms);
    }
    real.connect(frames, FakeHost::STORE_RING);
    real
}
