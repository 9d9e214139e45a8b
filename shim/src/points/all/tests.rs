//! All points of a guest together, against a host whose xenstored is our own store once more: the
//! same protocol at both ends of the shim.

use xen_abi::grant::{
    CopyOp, MapGrantRef, QuerySize, SetupTable, UnmapGrantRef, map_flags, op, status,
};
use xen_abi::xs_wire::{Header, MsgType, ring};
use xen_abi::{DomId, GuestVa, Mfn, Port};
use zerocopy::IntoBytes;

use super::{AllPoints, Parts, StartError};
use crate::host::grants::TableFrames;
use crate::host::{Arrival, HostEvent, HostPort, Xen};
use crate::mem::{FakeFrames, Frames};
use crate::points::evtchn::Peer;
use crate::points::xenstore::perms::Perms;
use crate::points::xenstore::{Limits, VirtualStore};
use crate::points::{GuestStore, Outside, Points, Progress, Request};
use crate::testing::{Bench, FakeHost, FakeMachine};

/// The real domain's id.
const REAL: DomId = DomId(7);
const GUEST_PAGES: u64 = 60_000;

/// A table of the host's with one frame.
struct OneFrame;

impl TableFrames for OneFrame {
    fn map_next(&mut self, index: usize) -> Option<Mfn> {
        (index == 0).then_some(Mfn(7))
    }
}

struct World {
    bench: Bench,
    points: AllPoints,
    /// The host's xenstored.
    real: VirtualStore,
}

impl World {
    /// A guest whose host's store has what a toolstack writes.
    fn new() -> Self {
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
    fn started() -> Self {
        let mut world = Self::new();
        world
            .with(|points, outside| points.begin(outside))
            .expect("there is memory");
        world.pump();
        assert!(world.points.is_seeded());
        world
    }

    fn with<R>(
        &mut self,
        act: impl FnOnce(&mut AllPoints, &mut Outside<'_, FakeMachine, FakeHost>) -> R,
    ) -> R {
        let points = &mut self.points;
        self.bench.guest.outside(|_, outside| act(points, outside))
    }

    /// Lets the host's daemon and the points speak until neither has anything to say.
    fn pump(&mut self) {
        for _ in 0..200 {
            let frames = self.bench.guest.host.frames.clone();
            if !self.real.service(&*frames).notify {
                return;
            }
            self.event(HostEvent::Store);
        }
        panic!("they never end");
    }

    fn event(&mut self, event: HostEvent) {
        self.with(|points, outside| points.host_event(outside, event));
    }

    /// What the guest reads of its store.
    fn guest(&self, path: &str) -> Option<String> {
        let value = self
            .points
            .sides
            .store
            .read(&format!("/local/domain/1/{path}"))?;
        String::from_utf8(value).ok()
    }

    /// What the host reads of the domain's directory.
    fn host(&self, path: &str) -> Option<String> {
        let value = self.real.read(&format!("/local/domain/7/{path}"))?;
        String::from_utf8(value).ok()
    }

    /// The toolstack writes a node.
    fn host_writes(&mut self, path: &str, value: &str) {
        self.real
            .write_as_host(&format!("/local/domain/7/{path}"), value.as_bytes());
        self.pump();
    }

    /// The guest sends a request to its own store.
    fn guest_asks(&mut self, kind: MsgType, payload: &[u8]) {
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

    fn request(&mut self) -> Option<Request> {
        Points::<FakeMachine, FakeHost>::take_request(&mut self.points)
    }

    fn grant_table_op(
        &mut self,
        command: u64,
        args: u64,
        count: u64,
    ) -> Result<u64, xen_abi::Errno> {
        self.with(|points, outside| {
            points.grant_table_op(outside, 0, command, GuestVa(args), count)
        })
    }
}

/// A daemon with the nodes of a domain, that serves the ring.
fn toolstack(frames: &FakeFrames) -> VirtualStore {
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

#[test]
fn the_guests_store_begins_with_the_hosts_under_its_own_names() {
    let world = World::started();
    assert_eq!(world.guest("name").as_deref(), Some("g"));
    assert_eq!(world.guest("domid").as_deref(), Some("1"));
    let pages = (GUEST_PAGES * 4).to_string();
    assert_eq!(world.guest("memory/target"), Some(pages.clone()));
    assert_eq!(world.guest("memory/static-max"), Some(pages));
    assert!(world.points.bus.is_settled());
}

#[test]
fn a_host_whose_store_is_silent_is_waited_for_and_then_given_up() {
    let mut world = World::new();
    let before = world.bench.guest.host.now_ns();
    let started = world.with(|points, outside| points.start(outside));
    assert_eq!(started, Err(StartError::NoStore));
    assert!(world.bench.guest.host.now_ns() - before >= 60_000_000_000);
}

#[test]
fn what_either_side_writes_reaches_the_other() {
    let mut world = World::started();
    world.host_writes("data/note", "hello");
    assert_eq!(world.guest("data/note").as_deref(), Some("hello"));
    world.guest_asks(MsgType::WRITE, b"attr/answer\x0042");
    assert_eq!(world.host("attr/answer").as_deref(), Some("42"));
    world.host_writes("memory/target", "131072");
    let shim = 262_144 - GUEST_PAGES * 4;
    assert_eq!(
        world.guest("memory/target"),
        Some((131_072 - shim).to_string())
    );
    world.with(|points, outside| points.report(outside, "state", "running"));
    world.with(Points::flush);
    world.pump();
    assert_eq!(world.host("data/unmoved/state").as_deref(), Some("running"));
    assert_eq!(world.guest("data/unmoved/state"), None, "not the guest's");
}

#[test]
fn a_shutdown_is_the_guests_and_a_suspend_the_shims() {
    let mut world = World::started();
    world.host_writes("control/shutdown", "poweroff");
    assert_eq!(world.guest("control/shutdown").as_deref(), Some("poweroff"));
    world.guest_asks(MsgType::WRITE, b"control/shutdown\0");
    assert_eq!(world.host("control/shutdown").as_deref(), Some(""));
    assert_eq!(world.request(), None);

    world.host_writes("control/shutdown", "suspend");
    assert_eq!(world.host("control/shutdown").as_deref(), Some(""), "taken");
    assert_eq!(
        world.guest("control/shutdown").as_deref(),
        Some(""),
        "hidden"
    );
    assert_eq!(world.request(), Some(Request::Suspend));
    assert_eq!(world.request(), None, "once");
}

#[test]
fn a_suspend_may_come_by_an_event() {
    let mut world = World::started();
    let port = world
        .host("device/suspend/event-channel")
        .expect("published");
    assert_eq!(
        world.guest("device/suspend/event-channel").as_deref(),
        Some("")
    );
    world.event(HostEvent::Port(HostPort(Port(
        port.parse().expect("a port"),
    ))));
    assert_eq!(world.request(), Some(Request::Suspend));
}

#[test]
fn a_new_host_hears_what_the_old_one_was_told_and_the_guest_nothing() {
    let mut world = World::started();
    world.guest_asks(MsgType::WRITE, b"attr/answer\x0042");
    world.guest_asks(MsgType::WATCH, b"memory/target\0t\0");
    world.with(|points, outside| points.report(outside, "moves", "1"));
    world.with(Points::flush);
    world.pump();
    let quiet = world.with(|points, outside| points.quiesce(outside));
    assert_eq!(quiet, Progress::Done);

    let frames = world.bench.guest.host.frames.clone();
    world.real = toolstack(&frames);
    let m = &world.bench.guest.m;
    let heard = m.load32(Bench::STORE, ring::RSP_PROD);
    m.store32(Bench::STORE, ring::RSP_CONS, heard);
    let _ = world.bench.guest.host.ports.split_off(&0);
    world.with(|points, outside| points.reattach(outside, Arrival::NewDomain));
    world.pump();
    let attached = world.with(|points, outside| points.attached(outside));
    assert_eq!(attached, Ok(Progress::Done));
    world.with(|points, outside| points.resume(outside, true));
    world.pump();
    assert_eq!(world.host("attr/answer").as_deref(), Some("42"));
    assert_eq!(world.host("data/unmoved/moves").as_deref(), Some("1"));
    let port = world.host("device/suspend/event-channel").expect("there");
    assert!(
        world
            .bench
            .guest
            .host
            .ports
            .contains(&port.parse().expect("a port"))
    );
    let now = world.bench.guest.m.load32(Bench::STORE, ring::RSP_PROD);
    assert_eq!(now, heard, "nothing that the guest sees has changed");
    assert_eq!(world.request(), None);
}

#[test]
fn a_daemon_that_breaks_the_ring_is_a_reason_not_to_go_on_there() {
    let mut world = World::started();
    let frames = world.bench.guest.host.frames.clone();
    frames.store32(FakeHost::STORE_RING, ring::RSP_PROD, 0x8000_0000);
    world.event(HostEvent::Store);
    let attached = world.with(|points, outside| points.attached(outside));
    assert!(attached.is_err_and(|why| why.contains("xenstore")));
}

#[test]
fn the_guests_grant_table_is_shared_with_it_and_listed() {
    let mut world = World::started();
    let (at, list) = (world.bench.page(0), world.bench.page(1));
    let setup = SetupTable {
        dom: DomId::SELF.0,
        nr_frames: 2,
        frame_list: list,
        ..SetupTable::default()
    };
    world.bench.put(at, &setup);
    assert_eq!(world.grant_table_op(op::SETUP_TABLE, at, 1), Ok(0));
    let answer: SetupTable = world.bench.get(at);
    assert_eq!(answer.status, status::OKAY);
    let frames: [u64; 2] = world.bench.get(list);
    for frame in frames {
        let owner = world.bench.guest.ledger.owner(Mfn(frame));
        assert_eq!(owner, crate::mm::Owner::Shared, "{frame}");
    }
    // A list that the guest can not have written is an error that it hears of.
    let setup = SetupTable {
        frame_list: 0xffff_8300_0000_0000,
        ..setup
    };
    world.bench.put(at, &setup);
    assert_eq!(world.grant_table_op(op::SETUP_TABLE, at, 1), Ok(0));
    let answer: SetupTable = world.bench.get(at);
    assert_eq!(answer.status, status::BAD_VIRT_ADDR);

    let einval = Err(xen_abi::Errno::EINVAL);
    assert_eq!(world.grant_table_op(op::SETUP_TABLE, at, 2), einval);
    assert_eq!(world.grant_table_op(op::COPY, at, 1 << 20), einval);
    let efault = Err(xen_abi::Errno::EFAULT);
    assert_eq!(world.grant_table_op(op::COPY, 0x1000, 1), efault);
    assert_eq!(world.grant_table_op(99, at, 1), Err(xen_abi::Errno::ENOSYS));
    world.bench.put(
        at,
        &QuerySize {
            dom: 1,
            ..QuerySize::default()
        },
    );
    assert_eq!(world.grant_table_op(op::QUERY_SIZE, at, 1), Ok(0));
    let size: QuerySize = world.bench.get(at);
    assert_eq!((size.nr_frames, size.max_nr_frames), (2, 64));
}

#[test]
fn a_copy_between_the_guests_own_frames_goes_through_its_ledger() {
    let mut world = World::started();
    let (at, from, to) = (
        world.bench.page(0),
        world.bench.page(1),
        world.bench.page(2),
    );
    let text = *b"hello";
    world.bench.put(from, &text);
    let (source, dest) = (world.bench.frame(from), world.bench.frame(to));
    let table = world.bench.guest.m.root;
    for (dest, expected) in [
        (dest, status::OKAY),
        (table, status::GENERAL_ERROR),
        (Bench::SHIM, status::BAD_PAGE),
    ] {
        let mut copy = CopyOp {
            len: 5,
            ..CopyOp::default()
        };
        copy.source.frame_or_ref = source.0;
        copy.dest.frame_or_ref = dest.0;
        (copy.source.domid, copy.dest.domid) = (DomId::SELF.0, DomId::SELF.0);
        world.bench.put(at, &copy);
        assert_eq!(world.grant_table_op(op::COPY, at, 1), Ok(0));
        let answer: CopyOp = world.bench.get(at);
        assert_eq!(answer.status, expected, "to {dest:?}");
    }
    let copied: [u8; 5] = world.bench.get(to);
    assert_eq!(copied, text);
    world.bench.check();
}

#[test]
fn a_grant_to_oneself_is_mapped_by_the_guests_own_tables() {
    let mut world = World::started();
    let (args, granted, at) = (
        world.bench.page(0),
        world.bench.page(1),
        world.bench.page(2),
    );
    let frame = world.bench.frame(granted);
    let old = world.bench.frame(at);
    world.bench.put(granted, b"there");
    // Reference 8 of the table's first frame grants it to the guest itself.
    let table = world.points.sides.grants.frames()[0];
    let entry = 1 | 1 << 16 | frame.0 << 32;
    world.bench.guest.m.store64(table, 64, entry);
    let map = MapGrantRef {
        host_addr: at,
        flags: map_flags::HOST_MAP | map_flags::READONLY,
        reference: 8,
        dom: 1,
        ..MapGrantRef::default()
    };
    world.bench.put(args, &map);
    assert_eq!(world.grant_table_op(op::MAP_GRANT_REF, args, 1), Ok(0));
    let map: MapGrantRef = world.bench.get(args);
    assert_eq!(map.status, status::OKAY);
    assert_eq!(&world.bench.get::<[u8; 5]>(at), b"there");
    assert_ne!(world.bench.frame(at), old);

    let unmap = UnmapGrantRef {
        host_addr: at,
        handle: map.handle,
        ..UnmapGrantRef::default()
    };
    // Somewhere else is not where it was mapped.
    for (host_addr, expected) in [(granted + 0x1000_0000, status::GENERAL_ERROR), (at, 0)] {
        world.bench.put(args, &UnmapGrantRef { host_addr, ..unmap });
        assert_eq!(world.grant_table_op(op::UNMAP_GRANT_REF, args, 1), Ok(0));
        let answer: UnmapGrantRef = world.bench.get(args);
        assert_eq!(answer.status, expected);
    }
    let mut byte = [0];
    let gone = crate::mem::GuestMemory::read_guest(&world.bench.guest.m, GuestVa(at), &mut byte);
    assert!(gone.is_err(), "nothing is mapped there any more");
    world.bench.check();
}
