//! A world around one interface: memory, both stores, both grant tables and ports, all of it fake.

use std::collections::BTreeMap;

use xen_abi::{Mfn, Port};

use super::backend::Backend;
use crate::host::HostPort;
use crate::host::grants::HostGrantTable;
use crate::mem::{FakeFrames, Frames};
use crate::points::fake::{
    self, Allowed, BACKEND, FakePorts, FakeXen, GUEST, HOST_TABLE, Ledger, RealStore, VirtualStore,
};
use crate::points::grant::GuestGrantTable;
use crate::points::net::Vif;
use crate::points::{Cx, Device, Progress};

pub(crate) const FRONT: &str = "/local/domain/1/device/vif/0";
const BACK: &str = "/local/domain/0/backend/vif/1/0";
pub(crate) const HOST_FRONT: &str = "device/vif/0";
/// Frames below are the guest's: the rings, then those to send from, then those to receive into.
pub(crate) const GUEST_FRAMES: u64 = 160;
pub(crate) const TX_RING: Mfn = Mfn(0);
pub(crate) const RX_RING: Mfn = Mfn(1);
const SHARED: u64 = 200;
const POOL: std::ops::Range<u64> = 400..420;
/// The guest's ports; without the second, one does for both rings.
pub(crate) const PORTS: [u32; 2] = [9, 10];

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
    pub vif: Vif,
}

impl World {
    /// Makes a world whose host has this backend, and an interface that begins to connect to it.
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
            vif: Vif::unattached(0, GUEST, BACKEND),
        };
        world.backend.announce(&mut world.real);
        world.with(|vif, cx| vif.start(cx, HOST_FRONT));
        world
    }

    /// Calls the interface with everything that is around it.
    pub fn with<R>(&mut self, act: impl FnOnce(&mut Vif, &mut Cx<'_>) -> R) -> R {
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
        act(&mut self.vif, &mut cx)
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
            self.backend.frontend_changed(&mut self.real, &self.mem);
        }
        self.with(|vif, cx| vif.host_store_event(cx, tag.0 as u32, event));
        true
    }

    /// The guest's driver writes its state.
    pub fn guest_state(&mut self, state: u32) {
        let path = format!("{FRONT}/state");
        self.store.0.insert(path.clone(), state.to_string());
        self.with(|vif, cx| vif.guest_store_changed(cx, &path));
    }

    /// Writes a node of the guest's driver.
    pub fn front(&mut self, key: &str, value: &str) {
        let path = format!("{FRONT}/{key}");
        self.store.0.insert(path, value.to_owned());
    }

    /// A node of the guest-facing backend.
    pub fn back(&self, key: &str) -> Option<&str> {
        let node = self.store.0.get(&format!("{BACK}/{key}"));
        node.map(String::as_str)
    }

    /// Everything that the guest can read about the interface.
    pub fn guest_view(&self) -> BTreeMap<String, String> {
        self.store.0.clone()
    }

    /// Moves the machine to another host, whose backend is `next`.
    pub fn migrate(&mut self, next: Backend) {
        self.leave(next);
        self.backend.announce(&mut self.real);
        self.with(|vif, cx| vif.reattach(cx, HOST_FRONT));
        self.handshake();
    }

    /// Moves the machine to a host that has no such interface.
    pub fn migrate_to_nothing(&mut self, next: Backend) {
        self.leave(next);
        self.with(|vif, cx| vif.reattach(cx, HOST_FRONT));
        self.handshake();
    }

    /// The host gets the interface that was missing.
    pub fn appear(&mut self) {
        self.backend.announce(&mut self.real);
        self.with(|vif, cx| vif.listed(cx, HOST_FRONT));
        self.handshake();
    }

    fn leave(&mut self, next: Backend) {
        self.backend.succeed(next);
        self.host_table.reset();
        (0..self.allowed.0 as u64).for_each(|index| self.mem.clear(Mfn(HOST_TABLE + index)));
        let now = self.xen.now;
        self.xen = FakeXen::default();
        self.xen.now = now;
        self.real = RealStore::default();
    }

    pub fn host_kick(&mut self) {
        for port in self.xen.open.clone() {
            self.with(|vif, cx| vif.host_kick(cx, HostPort(Port(port))));
        }
    }

    pub fn guest_kick(&mut self) {
        for port in self.ports.connected.clone() {
            self.with(|vif, cx| vif.guest_kick(cx, port));
        }
    }

    pub fn quiesce(&mut self) -> Progress {
        self.with(|vif, cx| vif.quiesce(cx))
    }

    pub fn resume(&mut self) {
        self.with(|vif, cx| vif.resume(cx));
    }

    /// Time passes; what waits for it is tried again.
    pub fn retry(&mut self) {
        self.xen.now += 5_000_000;
        if self.vif.wants_retry() {
            self.with(|vif, cx| vif.retry(cx));
        }
    }

    pub fn unplug(&mut self) {
        self.with(|vif, cx| vif.unplug(cx));
    }

    /// The driver closes, the host takes the interface away, and nothing that it took is left.
    pub fn tear_down(&mut self) {
        self.guest_state(5);
        self.guest_state(6);
        self.unplug();
        for _ in 0..3 {
            self.handshake();
            self.backend.let_go(&self.mem);
            self.retry();
        }
        self.assert_nothing_left();
    }

    /// Nothing of what the interface took may be left when it is gone.
    pub fn assert_nothing_left(&self) {
        assert!(self.vif.is_gone(), "{:?}", self.vif);
        assert_eq!(self.host_table.outstanding(), 0, "host references");
        assert!(self.ledger.holds.is_empty(), "{:?}", self.ledger.holds);
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
