//! A world around one disk: memory, both stores, both grant tables and ports, all of it fake.

use std::collections::BTreeMap;

use xen_abi::{Mfn, Port};

use super::backend::Backend;
use crate::host::grants::HostGrantTable;
use crate::host::{HostPort, StoreEvent, Tag};
use crate::mem::{FakeFrames, Frames};
use crate::points::disk::Vbd;
use crate::points::fake::{
    self, Allowed, BACKEND, FakePorts, FakeXen, GUEST, HOST_TABLE, Ledger, RealStore, VirtualStore,
};
use crate::points::grant::GuestGrantTable;
use crate::points::{Cx, Device};

pub(crate) const INDEX: u32 = 51712;
pub(crate) const FRONT: &str = "/local/domain/1/device/vbd/51712";
pub(crate) const BACK: &str = "/local/domain/0/backend/vbd/1/51712";
pub(crate) const HOST_FRONT: &str = "device/vbd/51712";
/// Frames below are the guest's.
pub(crate) const GUEST_FRAMES: u64 = 160;
const SHARED: u64 = 200;
const POOL: std::ops::Range<u64> = 400..500;

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

impl World {
    /// Makes a world whose host has this backend, and a disk that begins to connect to it.
    pub fn new(backend: Backend) -> Self {
        let mem = FakeFrames::new(POOL.end);
        (HOST_TABLE..HOST_TABLE + 2).for_each(|frame| mem.add(Mfn(frame)));
        let mut shared = vec![Mfn(SHARED)];
        let mut guest_table = GuestGrantTable::new(GUEST, BACKEND, 1);
        assert!(guest_table.create(&mut shared));
        let mut world = Self {
            mem,
            pool: POOL.map(Mfn).collect(),
            ledger: Ledger::new(0..GUEST_FRAMES),
            guest_table,
            host_table: HostGrantTable::new(),
            allowed: Allowed(2),
            xen: FakeXen::default(),
            real: RealStore::default(),
            store: VirtualStore::default(),
            ports: FakePorts::default(),
            backend,
            vbd: Vbd::unattached(INDEX, GUEST, BACKEND),
        };
        world.backend.announce(&mut world.real);
        world.with(|vbd, cx| vbd.start(cx, HOST_FRONT));
        world
    }

    /// Calls the disk with everything that is around it.
    pub fn with<R>(&mut self, act: impl FnOnce(&mut Vbd, &mut Cx<'_>) -> R) -> R {
        let mut host_grants = self.host_table.via(&self.mem, &mut self.allowed);
        let mut grants = self.guest_table.via(&mut self.ledger);
        let mut cx = Cx {
            frames: &self.mem,
            pool: &mut self.pool,
            xen: &mut self.xen,
            host_grants: &mut host_grants,
            host_store: &mut self.real,
            store: &mut self.store,
            ports: &mut self.ports,
            grants: &mut grants,
            guest_domid: GUEST,
            backend_domid: BACKEND,
        };
        act(&mut self.vbd, &mut cx)
    }

    /// Lets the real store and the backend do their part of the handshake, until nothing moves.
    pub fn handshake(&mut self) {
        while self.step() {}
    }

    /// One step of the handshake; `false` when nothing moves.
    pub fn step(&mut self) -> bool {
        let Some((tag, event, written)) = self.real.step() else {
            return false;
        };
        if written.is_some_and(|path| path.ends_with("/state")) {
            self.backend
                .frontend_changed(&mut self.real, &self.mem, &self.host_table);
        }
        self.store_event(tag, event);
        true
    }

    fn store_event(&mut self, tag: Tag, event: StoreEvent) {
        self.with(|vbd, cx| vbd.host_store_event(cx, tag.0 as u32, event));
    }

    /// The guest's driver writes its state.
    pub fn guest_state(&mut self, state: u32) {
        let path = format!("{FRONT}/state");
        self.store.0.insert(path.clone(), state.to_string());
        self.with(|vbd, cx| vbd.guest_store_changed(cx, &path));
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
        self.leave(next);
        self.backend.announce(&mut self.real);
        self.with(|vbd, cx| vbd.reattach(cx, HOST_FRONT));
        self.handshake();
    }

    /// Moves the machine to a host that has no such disk.
    pub fn migrate_to_nothing(&mut self, next: Backend) {
        self.leave(next);
        self.with(|vbd, cx| vbd.reattach(cx, HOST_FRONT));
        self.handshake();
    }

    /// The host gets the disk that was missing.
    pub fn appear(&mut self) {
        self.backend.announce(&mut self.real);
        self.with(|vbd, cx| vbd.listed(cx, HOST_FRONT));
        self.handshake();
    }

    /// Moves the machine to a host whose backend dies before it sees what it is offered.
    pub fn migrate_to_dying(&mut self, next: Backend) {
        self.leave(next);
        self.backend.announce(&mut self.real);
        self.with(|vbd, cx| vbd.reattach(cx, HOST_FRONT));
        while let Some((tag, event, _)) = self.real.step() {
            self.store_event(tag, event);
        }
        self.backend.is_dead = true;
        self.backend.set_state(&mut self.real, 6);
        self.handshake();
    }

    /// The backend is there again.
    pub fn backend_returns(&mut self) {
        self.backend.is_dead = false;
        self.backend.set_state(&mut self.real, 2);
        self.handshake();
    }

    fn leave(&mut self, next: Backend) {
        let old = core::mem::replace(&mut self.backend, next);
        self.backend.disk = old.disk;
        self.host_table.reset();
        (0..self.allowed.0 as u64).for_each(|index| {
            self.mem.clear(Mfn(HOST_TABLE + index));
        });
        self.xen = FakeXen::default();
        self.real = RealStore::default();
    }

    pub fn attached(&self) -> Result<crate::points::Progress, String> {
        self.vbd.attached()
    }

    pub fn host_kick(&mut self) {
        if let Some(&port) = self.xen.open.first() {
            self.with(|vbd, cx| vbd.host_kick(cx, HostPort(Port(port))));
        }
    }

    pub fn guest_kick(&mut self) {
        if let Some(&port) = self.ports.connected.first() {
            self.with(|vbd, cx| vbd.guest_kick(cx, port));
        }
    }

    pub fn quiesce(&mut self) -> crate::points::Progress {
        self.with(|vbd, cx| vbd.quiesce(cx))
    }

    pub fn resume(&mut self) {
        self.with(|vbd, cx| vbd.resume(cx));
    }

    pub fn retry(&mut self) {
        if self.vbd.wants_retry() {
            self.with(|vbd, cx| vbd.retry(cx));
        }
    }

    pub fn unplug(&mut self) {
        self.with(|vbd, cx| vbd.unplug(cx));
    }

    /// Nothing of what the disk took may be left when it is gone.
    pub fn assert_nothing_leaked(&self) {
        assert!(self.vbd.is_gone(), "{:?}", self.vbd);
        assert_eq!(self.host_table.outstanding(), 0, "host references");
        assert!(
            self.ledger.holds.is_empty(),
            "holds {:?}",
            self.ledger.holds
        );
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
    let table = &world.guest_table;
    fake::put_grant(&world.mem, table, reference(frame), frame, readonly);
}

pub(crate) fn put_entry(world: &World, reference: u32, raw: u64) {
    fake::put_entry(&world.mem, &world.guest_table, reference, raw);
}
