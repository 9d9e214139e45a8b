//! A world around one device: memory, both stores, both grant tables and ports, all of it fake.

use std::collections::BTreeMap;

use xen_abi::{Mfn, Port};

use super::Peer;
use crate::host::grants::HostGrantTable;
use crate::host::{HostPort, StoreEvent, Tag};
use crate::mem::Frames;
use crate::points::device::{Carrier, Protocol};
use crate::points::grant::GuestGrantTable;
use crate::points::{Cx, Device, Progress};
use crate::testing::FakeFrames;
use crate::testing::surroundings::{
    self, Allowed, BACKEND, FakePorts, FakeXen, GUEST, HOST_TABLE, Ledger, RealStore, VirtualStore,
};

/// Frames below are the guest's.
pub(crate) const GUEST_FRAMES: u64 = 160;
const SHARED: u64 = 200;
const POOL: u64 = 400;
/// Time between two tries of what gives no event.
const RETRY_NS: u64 = 5_000_000;

pub(crate) struct World<B: Peer> {
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
    pub backend: B,
    /// The backend has died, and answers nobody.
    pub is_dead: bool,
    pub device: Carrier<B::Protocol>,
}

impl<B: Peer> World<B> {
    /// Makes a world whose host has this backend, and a device that begins to connect to it.
    pub fn new(backend: B) -> Self {
        let mem = FakeFrames::new(POOL + B::POOL);
        (HOST_TABLE..HOST_TABLE + 2).for_each(|frame| mem.add(Mfn(frame)));
        let mut shared = vec![Mfn(SHARED)];
        let mut guest_table = GuestGrantTable::new(GUEST, BACKEND, 1);
        assert!(guest_table.create(&mut shared));
        let mut world = Self {
            mem,
            pool: (POOL..POOL + B::POOL).map(Mfn).collect(),
            ledger: Ledger::new(0..GUEST_FRAMES),
            guest_table,
            host_table: HostGrantTable::new(),
            allowed: Allowed(2),
            xen: FakeXen::default(),
            real: RealStore::default(),
            store: VirtualStore::default(),
            ports: FakePorts::default(),
            backend,
            is_dead: false,
            device: Carrier::unattached(B::INDEX, GUEST, BACKEND),
        };
        world.backend.announce(&mut world.real);
        world.with(|device, cx| device.start(cx, &B::host_front()));
        world
    }

    /// Calls the device with everything that is around it.
    pub fn with<R>(&mut self, act: impl FnOnce(&mut Carrier<B::Protocol>, &mut Cx<'_>) -> R) -> R {
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
        act(&mut self.device, &mut cx)
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
        if !self.is_dead && written.is_some_and(|path| path.ends_with("/state")) {
            self.backend.frontend_changed(&mut self.real, &self.mem);
        }
        self.store_event(tag, event);
        true
    }

    fn store_event(&mut self, tag: Tag, event: StoreEvent) {
        self.with(|device, cx| device.host_store_event(cx, tag.0 as u32, event));
    }

    /// The backend, or the toolstack in its name, writes a state.
    pub fn backend_state(&mut self, state: u32) {
        B::set_state(&mut self.real, state);
    }

    /// The guest's directory of the frontend.
    fn front_dir() -> String {
        let class = B::Protocol::CLASS.name();
        format!("/local/domain/{}/device/{class}/{}", GUEST.0, B::INDEX)
    }

    /// The guest's driver writes its state.
    pub fn guest_state(&mut self, state: u32) {
        self.front("state", &state.to_string());
        let path = format!("{}/state", Self::front_dir());
        self.with(|device, cx| device.guest_store_changed(cx, &path));
    }

    /// Writes a node of the guest's driver.
    pub fn front(&mut self, key: &str, value: &str) {
        let path = format!("{}/{key}", Self::front_dir());
        self.store.0.insert(path, value.to_owned());
    }

    /// Removes what a driver has written of its rings and ports.
    pub fn forget_driver(&mut self) {
        let is_rings = |path: &str| path.contains("ring-") || path.contains("/event-channel");
        self.store.0.retain(|path, _| !is_rings(path));
    }

    /// A node of the guest-facing backend.
    pub fn back(&self, key: &str) -> Option<&str> {
        let class = B::Protocol::CLASS.name();
        let dir = format!("/local/domain/{}/backend/{class}/{}", BACKEND.0, GUEST.0);
        let node = self.store.0.get(&format!("{dir}/{}/{key}", B::INDEX));
        node.map(String::as_str)
    }

    /// Everything that the guest can read about the device.
    pub fn guest_view(&self) -> BTreeMap<String, String> {
        self.store.0.clone()
    }

    /// Moves the machine to another host, whose backend is `next`.
    pub fn migrate(&mut self, next: B) {
        self.leave(next);
        self.backend.announce(&mut self.real);
        self.with(|device, cx| device.reattach(cx, &B::host_front()));
        self.handshake();
    }

    /// Moves the machine to a host that has no such device.
    pub fn migrate_to_nothing(&mut self, next: B) {
        self.leave(next);
        self.with(|device, cx| device.reattach(cx, &B::host_front()));
        self.handshake();
    }

    /// The host gets the device that was missing.
    pub fn appear(&mut self) {
        self.backend.announce(&mut self.real);
        self.with(|device, cx| device.begin_if_absent(cx, &B::host_front()));
        self.handshake();
    }

    /// Moves the machine to a host whose backend dies before it sees what it is offered.
    pub fn migrate_to_dying(&mut self, next: B) {
        self.leave(next);
        self.backend.announce(&mut self.real);
        self.is_dead = true;
        self.with(|device, cx| device.reattach(cx, &B::host_front()));
        self.handshake();
        self.backend_state(6);
        self.handshake();
    }

    /// The backend is there again.
    pub fn backend_returns(&mut self) {
        self.is_dead = false;
        self.backend_state(2);
        self.handshake();
    }

    /// The domain was suspended and goes on as the same one: its backend has not noticed, and has in use what it had.
    pub fn resume_in_place(&mut self) {
        self.host_table.abandon(&self.mem);
        self.xen.open.clear();
        self.with(|device, cx| device.reattach(cx, &B::host_front()));
    }

    fn leave(&mut self, next: B) {
        let old = core::mem::replace(&mut self.backend, next);
        self.backend.succeed(old);
        self.is_dead = false;
        self.host_table.reset();
        (0..self.allowed.0 as u64).for_each(|index| self.mem.clear(Mfn(HOST_TABLE + index)));
        let now = self.xen.now;
        self.xen = FakeXen::default();
        self.xen.now = now;
        self.real = RealStore::default();
    }

    pub fn attached(&self) -> Result<Progress, String> {
        self.device.attached()
    }

    pub fn host_kick(&mut self) {
        for port in self.xen.open.clone() {
            self.with(|device, cx| device.host_kick(cx, HostPort(Port(port))));
        }
    }

    pub fn guest_kick(&mut self) {
        for port in self.ports.connected.clone() {
            self.with(|device, cx| device.guest_kick(cx, port));
        }
    }

    pub fn quiesce(&mut self) -> Progress {
        self.with(|device, cx| device.quiesce(cx))
    }

    pub fn resume(&mut self) {
        self.with(|device, cx| device.resume(cx));
    }

    /// Time passes; what waits for it is tried again.
    pub fn retry(&mut self) {
        self.xen.now += RETRY_NS;
        if self.device.wants_retry() {
            self.with(|device, cx| device.retry(cx));
        }
    }

    pub fn unplug(&mut self) {
        self.with(|device, cx| device.unplug(cx));
    }

    /// The driver closes, the host takes the device away, and nothing that it took is left.
    pub fn tear_down(&mut self) {
        for state in [5, 6] {
            // What is gone is not written to, or there would be something again.
            if !self.device.is_gone() {
                self.guest_state(state);
            }
        }
        self.finish_unplug();
    }

    /// The host takes the device away, and nothing that it took is left.
    pub fn finish_unplug(&mut self) {
        self.unplug();
        // A backend lets go of the rings only when it has closed.
        for _ in 0..3 {
            self.handshake();
            self.backend.let_go(&self.mem);
            self.retry();
        }
        self.assert_nothing_left();
    }

    /// Nothing of what the device took may be left when it is gone.
    pub fn assert_nothing_left(&self) {
        assert!(self.device.is_gone(), "{:?}", self.device);
        assert_eq!(self.host_table.outstanding(), 0, "host references");
        assert!(self.ledger.holds.is_empty(), "{:?}", self.ledger.holds);
        assert_eq!(self.pool.len() as u64, B::POOL, "frames");
        assert!(self.xen.open.is_empty(), "host ports");
        assert!(self.ports.connected.is_empty(), "guest ports");
        assert!(self.store.0.is_empty(), "nodes {:?}", self.store.0);
    }
}

/// The reference under which the guest grants a frame: always the same.
pub(crate) fn reference(frame: Mfn) -> u32 {
    frame.0 as u32 + 8
}

pub(crate) fn grant<B: Peer>(world: &World<B>, frame: Mfn, readonly: bool) {
    let table = &world.guest_table;
    surroundings::put_grant(&world.mem, table, reference(frame), frame, readonly);
}

pub(crate) fn put_entry<B: Peer>(world: &World<B>, reference: u32, raw: u64) {
    surroundings::put_entry(&world.mem, &world.guest_table, reference, raw);
}
