//! A world around one disk: memory, both stores, both grant tables and ports, all of it fake.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xen_abi::{DomId, Errno, Mfn, Port};

use super::backend::Backend;
use crate::host::grants::{HostGrantTable, TableFrames};
use crate::host::{HostPort, StoreClient, StoreEvent, StoreOp, Tag, Xen};
use crate::mem::{FakeFrames, Frames};
use crate::points::disk::Vbd;
use crate::points::grant::{FrameHolds, GuestGrantTable};
use crate::points::{Cx, Device, DeviceId, GuestPorts, GuestStore};

pub(crate) const GUEST: DomId = DomId(1);
pub(crate) const BACKEND: DomId = DomId(0);
pub(crate) const INDEX: u32 = 51712;
pub(crate) const FRONT: &str = "/local/domain/1/device/vbd/51712";
pub(crate) const BACK: &str = "/local/domain/0/backend/vbd/1/51712";
pub(crate) const HOST_FRONT: &str = "device/vbd/51712";
/// Frames below are the guest's.
pub(crate) const GUEST_FRAMES: u64 = 160;
const SHARED: u64 = 200;
const HOST_TABLE: u64 = 300;
const POOL: std::ops::Range<u64> = 400..500;

/// The frame ledger: counts holds of the guest's frames.
#[derive(Default)]
pub(crate) struct Ledger(pub BTreeMap<(Mfn, bool), u32>);

impl FrameHolds for Ledger {
    fn hold(&mut self, frame: Mfn, write: bool) -> bool {
        if frame.0 < GUEST_FRAMES {
            *self.0.entry((frame, write)).or_default() += 1;
        }
        frame.0 < GUEST_FRAMES
    }
    fn release(&mut self, frame: Mfn, write: bool) {
        let count = self.0.get_mut(&(frame, write)).expect("held before");
        *count -= 1;
        self.0.retain(|_, count| *count > 0);
    }
}

/// Frames of the real grant table, as many as the host allows.
pub(crate) struct Allowed(pub usize);

impl TableFrames for Allowed {
    fn map_next(&mut self, index: usize) -> Option<Mfn> {
        (index < self.0).then_some(Mfn(HOST_TABLE + index as u64))
    }
}

#[derive(Default)]
pub(crate) struct FakeXen {
    next: u32,
    pub open: BTreeSet<u32>,
    pub notified: bool,
}

impl Xen for FakeXen {
    fn alloc_unbound(&mut self, remote: DomId) -> Result<HostPort, Errno> {
        assert_eq!(remote, BACKEND);
        self.next += 1;
        self.open.insert(self.next);
        Ok(HostPort(Port(self.next)))
    }
    fn close(&mut self, port: HostPort) {
        self.open.remove(&port.0.0);
    }
    fn notify(&mut self, port: HostPort) {
        assert!(self.open.contains(&port.0.0));
        self.notified = true;
    }
    fn now_ns(&self) -> u64 {
        0
    }
}

/// The real xenstored and its client.
#[derive(Default)]
pub(crate) struct RealStore {
    pub nodes: BTreeMap<String, String>,
    queue: VecDeque<(Tag, StoreOp)>,
    watches: Vec<(Tag, String)>,
    events: VecDeque<(Tag, String)>,
}

impl StoreClient for RealStore {
    fn submit(&mut self, tag: Tag, op: StoreOp) {
        self.queue.push_back((tag, op));
    }
}

impl RealStore {
    pub fn set(&mut self, path: &str, value: &str) {
        self.nodes.insert(path.to_owned(), value.to_owned());
        for (tag, watched) in &self.watches {
            if path == watched {
                self.events.push_back((*tag, watched.clone()));
            }
        }
    }

    pub fn remove(&mut self, directory: &str) {
        self.nodes.retain(|path, _| !path.starts_with(directory));
        for (tag, watched) in &self.watches {
            if watched.starts_with(directory) {
                self.events.push_back((*tag, watched.clone()));
            }
        }
    }

    fn answer(&mut self, tag: Tag, op: StoreOp) -> Result<Vec<u8>, Errno> {
        match op {
            StoreOp::Read(path) => self
                .nodes
                .get(&path)
                .map(|value| value.clone().into_bytes())
                .ok_or(Errno::ENOENT),
            StoreOp::Write(path, value) => {
                self.set(&path, core::str::from_utf8(&value).unwrap());
                Ok(Vec::new())
            }
            StoreOp::Remove(path) => self
                .nodes
                .remove(&path)
                .map(|_| Vec::new())
                .ok_or(Errno::ENOENT),
            StoreOp::Watch(path) => {
                self.events.push_back((tag, path.clone()));
                self.watches.push((tag, path));
                Ok(Vec::new())
            }
            StoreOp::Unwatch(path) => {
                self.watches.retain(|watch| *watch != (tag, path.clone()));
                Ok(Vec::new())
            }
            StoreOp::Directory(_) => Ok(Vec::new()),
        }
    }
}

/// The store that the guest sees.
#[derive(Default)]
pub(crate) struct VirtualStore(pub BTreeMap<String, String>);

impl GuestStore for VirtualStore {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.0.get(path).map(|value| value.clone().into_bytes())
    }
    fn list(&self, _path: &str) -> Vec<String> {
        Vec::new()
    }
    fn write(&mut self, path: &str, value: &[u8], owner: DomId) {
        let expected = if path.starts_with(FRONT) {
            GUEST
        } else {
            BACKEND
        };
        assert_eq!(owner, expected);
        self.0
            .insert(path.to_owned(), String::from_utf8(value.to_vec()).unwrap());
    }
    fn remove(&mut self, path: &str) {
        self.0.retain(|node, _| !node.starts_with(path));
    }
}

#[derive(Default)]
pub(crate) struct FakePorts {
    pub connected: BTreeSet<Port>,
    pub raised: bool,
}

impl GuestPorts for FakePorts {
    fn connect(&mut self, port: Port, _device: DeviceId) -> bool {
        port.0 < 100 && self.connected.insert(port)
    }
    fn raise(&mut self, port: Port) {
        assert!(self.connected.contains(&port));
        self.raised = true;
    }
    fn disconnect(&mut self, port: Port) {
        assert!(self.connected.remove(&port));
    }
}

pub(crate) struct World {
    pub mem: FakeFrames,
    pub pool: Vec<Mfn>,
    pub ledger: Ledger,
    pub guest_table: GuestGrantTable,
    pub host_table: HostGrantTable,
    pub allowed: Allowed,
    pub xen: FakeXen,
    pub real: RealStore,
    pub store: VirtualStore,
    pub ports: FakePorts,
    pub backend: Backend,
    pub vbd: Vbd,
}

/// Calls the disk with everything that is around it.
macro_rules! call {
    ($world:expr, |$vbd:ident, $cx:ident| $body:expr) => {{
        let world: &mut World = &mut *$world;
        let mut host_grants = world.host_table.via(&world.mem, &mut world.allowed);
        let mut grants = world.guest_table.via(&mut world.ledger);
        let mut cx = Cx {
            frames: &world.mem,
            pool: &mut world.pool,
            xen: &mut world.xen,
            host_grants: &mut host_grants,
            host_store: &mut world.real,
            store: &mut world.store,
            ports: &mut world.ports,
            grants: &mut grants,
            guest_domid: GUEST,
            backend_domid: BACKEND,
        };
        let ($vbd, $cx) = (&mut world.vbd, &mut cx);
        $body
    }};
}

impl World {
    /// Makes a world whose host has this backend, and a disk that begins to connect to it.
    pub fn new(backend: Backend) -> Self {
        let mem = FakeFrames::new(POOL.end);
        let mut shared = vec![Mfn(SHARED)];
        let mut guest_table = GuestGrantTable::new(GUEST, BACKEND, 1);
        assert!(guest_table.create(&mut shared));
        let id = DeviceId {
            class: crate::points::DeviceClass::Vbd,
            index: INDEX,
        };
        let mut world = Self {
            mem,
            pool: POOL.map(Mfn).collect(),
            ledger: Ledger::default(),
            guest_table,
            host_table: HostGrantTable::new(),
            allowed: Allowed(2),
            xen: FakeXen::default(),
            real: RealStore::default(),
            store: VirtualStore::default(),
            ports: FakePorts::default(),
            backend,
            vbd: Vbd::unattached(id, GUEST, BACKEND),
        };
        world.backend.announce(&mut world.real);
        call!(&mut world, |vbd, cx| vbd.host.start(cx, HOST_FRONT));
        world
    }

    /// Lets the real store and the backend do their part of the handshake, until nothing moves.
    pub fn handshake(&mut self) {
        loop {
            if let Some((tag, op)) = self.real.queue.pop_front() {
                let is_state = matches!(&op, StoreOp::Write(path, _) if path.ends_with("/state"));
                let reply = StoreEvent::Reply(self.real.answer(tag, op));
                if is_state {
                    self.backend
                        .frontend_changed(&mut self.real, &self.mem, &self.host_table);
                }
                self.store_event(tag, reply);
            } else if let Some((tag, path)) = self.real.events.pop_front() {
                self.store_event(tag, StoreEvent::Changed(path));
            } else {
                return;
            }
        }
    }

    fn store_event(&mut self, tag: Tag, event: StoreEvent) {
        call!(self, |vbd, cx| vbd.host_store_event(
            cx,
            tag.0 as u32,
            event
        ));
    }

    /// The guest's driver writes its state.
    pub fn guest_state(&mut self, state: u32) {
        let path = format!("{FRONT}/state");
        self.store.0.insert(path.clone(), state.to_string());
        call!(self, |vbd, cx| vbd.guest_store_changed(cx, &path));
    }

    /// A node of the guest-facing backend.
    pub fn back(&self, key: &str) -> Option<&str> {
        self.store
            .0
            .get(&format!("{BACK}/{key}"))
            .map(String::as_str)
    }

    /// Everything that the guest can read about the disk.
    pub fn guest_view(&self) -> BTreeMap<String, String> {
        self.store.0.clone()
    }

    /// Moves the machine to another host, whose backend is `next`.
    pub fn migrate(&mut self, next: Backend) {
        let old = core::mem::replace(&mut self.backend, next);
        self.backend.disk = old.disk;
        self.host_table.reset();
        (0..self.allowed.0 as u64).for_each(|index| {
            self.mem.clear(Mfn(HOST_TABLE + index));
        });
        self.xen = FakeXen::default();
        self.real = RealStore::default();
        self.backend.announce(&mut self.real);
        call!(self, |vbd, cx| vbd.reattach(cx, HOST_FRONT));
        self.handshake();
    }

    pub fn attached(&self) -> Result<crate::points::Progress, String> {
        self.vbd.attached()
    }

    pub fn host_kick(&mut self) {
        if let Some(&port) = self.xen.open.first() {
            call!(self, |vbd, cx| vbd.host_kick(cx, HostPort(Port(port))));
        }
    }

    pub fn guest_kick(&mut self) {
        if let Some(&port) = self.ports.connected.first() {
            call!(self, |vbd, cx| vbd.guest_kick(cx, port));
        }
    }

    pub fn quiesce(&mut self) -> crate::points::Progress {
        call!(self, |vbd, cx| vbd.quiesce(cx))
    }

    pub fn resume(&mut self) {
        call!(self, |vbd, cx| vbd.resume(cx));
    }

    pub fn retry(&mut self) {
        if self.vbd.wants_retry() {
            call!(self, |vbd, cx| vbd.retry(cx));
        }
    }

    pub fn unplug(&mut self) {
        call!(self, |vbd, cx| vbd.unplug(cx));
    }

    /// Nothing of what the disk took may be left when it is gone.
    pub fn assert_nothing_leaked(&self) {
        assert!(self.vbd.is_gone(), "{:?}", self.vbd);
        assert_eq!(self.host_table.outstanding(), 0, "host references");
        assert!(self.ledger.0.is_empty(), "holds {:?}", self.ledger.0);
        assert_eq!(self.pool.len() as u64, POOL.end - POOL.start, "frames");
        assert!(self.xen.open.is_empty(), "host ports");
        assert!(self.ports.connected.is_empty(), "guest ports");
        assert!(self.store.0.is_empty(), "nodes {:?}", self.store.0);
    }
}

/// The reference under which the guest grants a frame: always the same.
pub(crate) fn reference(frame: Mfn) -> u32 {
    frame.0 as u32 + 8
}

pub(crate) fn grant(world: &World, frame: Mfn, readonly: bool) {
    let flags = if readonly { 5 } else { 1 };
    put_entry(world, reference(frame), flags | frame.0 << 32);
}

pub(crate) fn put_entry(world: &World, reference: u32, raw: u64) {
    let table = world.guest_table.frames()[0];
    world.mem.store64(table, reference as usize * 8, raw);
}
