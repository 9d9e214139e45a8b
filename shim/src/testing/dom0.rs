//! A host's control domain: xenstored with what a toolstack writes for a domain, the console daemon, and the
//! backends of the domain's devices.
//!
//! It is as quick as can be: what it is told of it has done when the notification returns.  What takes its time is
//! said: a backend that [`Backend::hold`] answers when it is told to, and what is planned happens when its time has
//! come.

#![cfg_attr(
    not(test),
    expect(dead_code, reason = "fuzz targets use a part of what the tests need")
)]

use std::collections::BTreeMap;
use std::rc::Rc;

use xen_abi::console::{IN, IN_PROD, OUT, OUT_CONS, OUT_PROD};
use xen_abi::{DomId, Mfn, Port};

use super::backend::Backend;
use crate::host::{HostEvent, HostPort};
use crate::mem::Frames;
use crate::points::GuestStore as _;
use crate::points::device::model::HostNodes;
use crate::points::xenstore::perms::Perms;
use crate::points::xenstore::{Limits, VirtualStore};
use crate::testing::FakeFrames;
use crate::testing::surroundings::HOST_TABLE;

/// The domain's id on every host; that it may be another one is not for this file to try.
const REAL: DomId = DomId(7);
/// Its directory.
const HOME: &str = "/local/domain/7";
/// The shim's reports, in that directory.
const REPORTS: &str = "data/unmoved/";
/// Frames of the grant table.
pub(super) const TABLE_FRAMES: usize = 4;
/// Size of the console's ring of output.
const CONSOLE_SIZE: u32 = 2048;
/// Size of its ring of input.
const INPUT_SIZE: usize = 1024;
/// Turns that both sides of the store may have before it is said that they never end.
const TURNS: usize = 100_000;

/// Something that happens at its time.
type Deed = Box<dyn FnOnce(&mut Dom0)>;

/// The control domain.
pub struct Dom0 {
    frames: Rc<FakeFrames>,
    /// xenstored.
    pub(crate) store: VirtualStore,
    /// What the shim has told so far, on whichever host: keys below `data/unmoved/`, and values.
    pub reports: Vec<(String, String)>,
    /// What the guest has said on its console.
    pub said: Vec<u8>,
    /// The domain's devices.
    pub(crate) backends: Vec<Box<dyn Backend>>,
    /// It takes notice of nothing.
    pub is_silent: bool,
    /// What happens, and at which time of the host.
    plan: BTreeMap<u64, Deed>,
    /// What it has raised, each event once.
    raised: Vec<HostEvent>,
}

impl Dom0 {
    /// The page that leads to xenstored.
    pub const STORE_RING: Mfn = Mfn(10);
    /// The page that leads to the console daemon.
    pub const CONSOLE_RING: Mfn = Mfn(11);

    /// A domain without devices, as its toolstack starts it with `kib` of memory.
    pub(super) fn new(frames: Rc<FakeFrames>, kib: u64) -> Self {
        (0..TABLE_FRAMES as u64).for_each(|index| frames.add(Mfn(HOST_TABLE + index)));
        Self {
            store: toolstack(&frames, kib),
            frames,
            reports: Vec::new(),
            said: Vec::new(),
            backends: Vec::new(),
            is_silent: false,
            plan: BTreeMap::new(),
            raised: Vec::new(),
        }
    }

    /// Another host's takes the domain in, with what its toolstack writes and the devices that go along.
    pub(super) fn take_in(&mut self) {
        let kib = self.read("memory/static-max");
        let kib = kib.and_then(|kib| kib.parse().ok()).expect("a size");
        self.store = toolstack(&self.frames, kib);
        for index in 0..TABLE_FRAMES as u64 {
            self.frames.clear(Mfn(HOST_TABLE + index));
        }
        self.frames.clear(Self::CONSOLE_RING);
        for nr in 0..self.backends.len() {
            let backend = &mut self.backends[nr];
            backend.arrive();
            if !backend.is_missing() {
                self.announce(nr);
            }
        }
        self.raised.clear();
    }

    /// Gives the domain a device.
    pub(crate) fn plug(&mut self, backend: Box<dyn Backend>) {
        self.backends.push(backend);
        self.announce(self.backends.len() - 1);
        self.serve();
    }

    /// The toolstack makes what the domain has of device number `nr`.
    pub(crate) fn announce(&mut self, nr: usize) {
        let to_domain = Perms::new(DomId(0), Some(REAL));
        let of_domain = Perms::new(REAL, Some(DomId(0)));
        let (front, back) = (self.backends[nr].front(), self.backends[nr].dir());
        let front = format!("{HOME}/{front}");
        let class = front.rsplit_once('/').map_or("", |(class, _)| class);
        for dir in [&format!("{HOME}/device"), class] {
            if !self.store.has(dir) {
                self.store.put(dir, b"", &to_domain);
            }
        }
        self.store.put(&front, b"", &of_domain);
        self.store.put(&back, b"", &to_domain);
        self.with(nr, |backend, store, _| backend.announce(store));
        if self.backends[nr].is_slow() {
            self.write(&format!("{back}/state"), "1");
        }
    }

    /// The backend of device number `nr`, which was slow, is ready.
    pub(crate) fn ready(&mut self, nr: usize) {
        self.backends[nr].be_slow(false);
        let back = self.backends[nr].dir();
        self.write(&format!("{back}/state"), "2");
    }

    /// Plans that `deed` happens at `at`, in the host's time.
    pub(crate) fn plan(&mut self, at: u64, deed: impl FnOnce(&mut Self) + 'static) {
        let old = self.plan.insert(at, Box::new(deed));
        assert!(old.is_none(), "two things at the same time");
    }

    /// When the next thing happens.
    pub(super) fn next(&self) -> Option<u64> {
        self.plan.keys().next().copied()
    }

    /// Does what was planned for now or earlier.
    pub(super) fn time_is(&mut self, now: u64) {
        while self.next().is_some_and(|at| at <= now) {
            if let Some((_, deed)) = self.plan.pop_first() {
                deed(self);
            }
        }
    }

    /// Takes what was raised.
    pub(super) fn raised(&mut self) -> Vec<HostEvent> {
        std::mem::take(&mut self.raised)
    }

    fn raise(&mut self, event: HostEvent) {
        if !self.raised.contains(&event) {
            self.raised.push(event);
        }
    }

    /// The domain has notified one of its ports.
    pub(super) fn notified(&mut self, port: HostPort) {
        if self.is_silent {
            return;
        }
        match port.0.0 {
            1 => self.serve(),
            2 => self.listen(),
            _ => {
                for nr in 0..self.backends.len() {
                    if self.ports(nr).contains(&port) {
                        self.with(nr, |backend, _, mem| backend.kicked(mem));
                        self.kick(nr);
                    }
                }
            }
        }
    }

    /// Raises the ports that device number `nr` listens to.
    pub(crate) fn kick(&mut self, nr: usize) {
        let ports = self.ports(nr);
        ports
            .into_iter()
            .for_each(|port| self.raise(HostEvent::Port(port)));
    }

    /// Has a backend answer `count` requests that it held.
    pub(crate) fn answer(&mut self, nr: usize, count: usize) {
        self.with(nr, |backend, _, mem| backend.answer(mem, count));
        self.kick(nr);
    }

    /// The ports that the domain has published for device number `nr`.
    fn ports(&self, nr: usize) -> Vec<HostPort> {
        let front = self.backends[nr].front();
        let keys = ["event-channel", "event-channel-tx", "event-channel-rx"];
        let port = |key| self.read(&format!("{front}/{key}"))?.parse().ok();
        let ports = keys.into_iter().filter_map(port);
        ports.map(|port| HostPort(Port(port))).collect()
    }

    fn with<R>(
        &mut self,
        nr: usize,
        act: impl FnOnce(&mut dyn Backend, &mut dyn HostNodes, &FakeFrames) -> R,
    ) -> R {
        let mut nodes = Nodes(&mut self.store);
        act(&mut *self.backends[nr], &mut nodes, &self.frames)
    }

    /// Lets a backend do something, and whatever follows in the store.
    pub(crate) fn backend<R>(
        &mut self,
        nr: usize,
        act: impl FnOnce(&mut dyn Backend, &mut dyn HostNodes, &FakeFrames) -> R,
    ) -> R {
        let result = self.with(nr, act);
        self.serve();
        result
    }

    /// Serves the store's ring until there is nothing more to do.
    pub(crate) fn serve(&mut self) {
        if self.is_silent {
            return;
        }
        for _ in 0..TURNS {
            let served = self.store.service(&*self.frames);
            if served.notify {
                self.raise(HostEvent::Store);
            }
            let changes = self.store.take_guest_changes();
            if changes.is_empty() && !served.again {
                return;
            }
            for path in changes {
                self.changed(&path);
            }
        }
        panic!("the store is never served");
    }

    /// The domain has changed a node.
    fn changed(&mut self, path: &str) {
        let Some(path) = path
            .strip_prefix(HOME)
            .and_then(|path| path.strip_prefix('/'))
        else {
            return;
        };
        if let Some(key) = path.strip_prefix(REPORTS)
            && let Some(value) = self.read(path)
        {
            self.reports.push((key.to_owned(), value));
        }
        for nr in 0..self.backends.len() {
            if path == format!("{}/state", self.backends[nr].front()) {
                self.with(nr, |backend, store, mem| {
                    backend.frontend_changed(store, mem);
                });
                // Requests that a guest's driver made meanwhile are found without a kick.
                self.with(nr, |backend, _, mem| backend.kicked(mem));
                self.kick(nr);
            }
        }
    }

    /// The console daemon reads what was said.
    fn listen(&mut self) {
        let ring = Self::CONSOLE_RING;
        let (mut at, end) = [OUT_CONS, OUT_PROD]
            .map(|index| self.frames.load32(ring, index))
            .into();
        if at == end {
            return;
        }
        while at != end {
            let offset = OUT + (at % CONSOLE_SIZE) as usize;
            self.said.push(self.frames.load8(ring, offset));
            at = at.wrapping_add(1);
        }
        self.frames.store32(ring, OUT_CONS, end);
        self.raise(HostEvent::Console);
    }

    /// Somebody types at the console.
    pub fn types(&mut self, text: &[u8]) {
        let ring = Self::CONSOLE_RING;
        let at = self.frames.load32(ring, IN_PROD);
        for (offset, byte) in text.iter().enumerate() {
            let index = (at as usize + offset) % INPUT_SIZE;
            self.frames.store8(ring, IN + index, *byte);
        }
        let end = at.wrapping_add(text.len() as u32);
        self.frames.store32(ring, IN_PROD, end);
        self.raise(HostEvent::Console);
    }

    /// What a tool reads in the domain's directory.
    pub fn read(&self, path: &str) -> Option<String> {
        let value = self.store.read(&format!("{HOME}/{path}"))?;
        String::from_utf8(value).ok()
    }

    /// A tool writes a node of the domain's directory.
    pub fn write(&mut self, path: &str, value: &str) {
        Nodes(&mut self.store).set(path, value);
        self.serve();
    }

    /// The toolstack asks for a suspend.
    pub fn ask_for_suspend(&mut self) {
        self.write("control/shutdown", "suspend");
    }

    /// The values that were reported of `key`, in order.
    pub fn told(&self, key: &str) -> Vec<&str> {
        let values = self.reports.iter().filter(|(told, _)| told == key);
        values.map(|(_, value)| value.as_str()).collect()
    }
}

/// The store, as backends and their toolstack know it.
struct Nodes<'a>(&'a mut VirtualStore);

impl Nodes<'_> {
    fn path(path: &str) -> String {
        match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("{HOME}/{path}"),
        }
    }
}

impl HostNodes for Nodes<'_> {
    fn get(&self, path: &str) -> Option<String> {
        String::from_utf8(self.0.read(&Self::path(path))?).ok()
    }
    fn set(&mut self, path: &str, value: &str) {
        self.0.write_as_host(&Self::path(path), value.as_bytes());
    }
    fn remove(&mut self, directory: &str) {
        self.0.remove(&Self::path(directory));
    }
}

/// A daemon with the nodes of a domain, that serves the ring.
fn toolstack(frames: &FakeFrames, kib: u64) -> VirtualStore {
    frames.clear(Dom0::STORE_RING);
    let mut real = VirtualStore::new(REAL, Limits::default());
    let kib = kib.to_string();
    for (path, value, is_guests) in [
        ("", "", false),
        ("vm", "/vm/0a-1b", false),
        ("name", "g", false),
        ("memory/static-max", &kib, false),
        ("memory/target", &kib, false),
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
        let path = format!("{HOME}/{path}");
        let path = path.trim_end_matches('/');
        let perms = match is_guests {
            true => Perms::new(REAL, None),
            false => Perms::new(DomId(0), Some(REAL)),
        };
        real.put(path, value.as_bytes(), &perms);
    }
    real.connect(frames, Dom0::STORE_RING);
    real
}
