//! Fakes of everything around a device, for its tests and fuzz targets: both stores, both grant
//! tables' surroundings, ports and the frame ledger.

#![expect(
    clippy::unwrap_used,
    reason = "a fake that was told nonsense is a failed test"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xen_abi::{DomId, Errno, Mfn, Port};

use crate::host::grants::TableFrames;
use crate::host::{HostPort, StoreClient, StoreEvent, StoreOp, Tag, Xen};
use crate::mem::Frames;
use crate::points::device::model::HostNodes;
use crate::points::grant::{FrameHolds, GuestGrantTable};
use crate::points::{DeviceId, GuestPorts, GuestStore};

/// What the guest believes its own domain to be.
pub(crate) const GUEST: DomId = DomId(1);
/// Where the backends are, for the guest and in truth.
pub(crate) const BACKEND: DomId = DomId(0);
/// The first frame of the real grant table.
pub(crate) const HOST_TABLE: u64 = 2000;

/// The frame ledger: counts holds of the guest's frames.
pub(crate) struct Ledger {
    /// The holds that were taken.
    pub holds: BTreeMap<(Mfn, bool), u32>,
    /// The frames that are the guest's.
    pub guest: std::ops::Range<u64>,
}

impl Ledger {
    pub fn new(guest: std::ops::Range<u64>) -> Self {
        Self {
            holds: BTreeMap::new(),
            guest,
        }
    }
}

impl FrameHolds for Ledger {
    fn hold(&mut self, frame: Mfn, write: bool) -> bool {
        let is_guests = self.guest.contains(&frame.0);
        if is_guests {
            *self.holds.entry((frame, write)).or_default() += 1;
        }
        is_guests
    }
    fn release(&mut self, frame: Mfn, write: bool) {
        let count = self.holds.get_mut(&(frame, write)).expect("held before");
        *count -= 1;
        if *count == 0 {
            self.holds.remove(&(frame, write));
        }
    }
}

/// Frames of the real grant table, as many as the host allows.
pub(crate) struct Allowed(pub usize);

impl TableFrames for Allowed {
    fn map_next(&mut self, index: usize) -> Option<Mfn> {
        (index < self.0).then_some(Mfn(HOST_TABLE + index as u64))
    }
}

/// Event channels of the host, and its clock.
#[derive(Default)]
pub(crate) struct FakeXen {
    next: u32,
    pub open: BTreeSet<u32>,
    /// Whether any port was notified.
    pub notified: bool,
    /// What the clock shows.
    pub now: u64,
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
        self.now
    }
}

/// The real xenstored and its client, for one device by itself.
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

impl HostNodes for RealStore {
    fn get(&self, path: &str) -> Option<String> {
        self.nodes.get(path).cloned()
    }

    fn set(&mut self, path: &str, value: &str) {
        self.nodes.insert(path.to_owned(), value.to_owned());
        for (tag, watched) in &self.watches {
            if path == watched {
                self.events.push_back((*tag, watched.clone()));
            }
        }
    }

    fn remove(&mut self, directory: &str) {
        self.nodes.retain(|path, _| !path.starts_with(directory));
        for (tag, watched) in &self.watches {
            if watched.starts_with(directory) {
                self.events.push_back((*tag, watched.clone()));
            }
        }
    }
}

impl RealStore {
    /// Does the next thing that is to be done, and returns who is to be told what, with the path
    /// that was written if one was.
    pub fn step(&mut self) -> Option<(Tag, StoreEvent, Option<String>)> {
        if let Some((tag, op)) = self.queue.pop_front() {
            let written = match &op {
                StoreOp::Write(path, _) => Some(path.clone()),
                _ => None,
            };
            let reply = StoreEvent::Reply(self.answer(tag, op));
            return Some((tag, reply, written));
        }
        let (tag, path) = self.events.pop_front()?;
        Some((tag, StoreEvent::Changed(path), None))
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
        let expected = if path.starts_with("/local/domain/1/device/") {
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

/// The guest's ports, of which those below 100 are there.
#[derive(Default)]
pub(crate) struct FakePorts {
    pub connected: BTreeSet<Port>,
    /// Whether any port was raised.
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

/// Writes a raw entry of the guest's grant table.
pub(crate) fn put_entry(mem: &dyn Frames, table: &GuestGrantTable, reference: u32, raw: u64) {
    let frame = table.frames()[reference as usize / 512];
    mem.store64(frame, reference as usize % 512 * 8, raw);
}

/// Grants a frame to the backends.
pub(crate) fn put_grant(
    mem: &dyn Frames,
    table: &GuestGrantTable,
    reference: u32,
    frame: Mfn,
    readonly: bool,
) {
    let flags = if readonly { 5 } else { 1 };
    put_entry(mem, table, reference, flags | frame.0 << 32);
}

/// Maps a frame for the backend as the hypervisor does, which refuses what was not granted.
pub(crate) fn map(mem: &dyn Frames, reference: u32, write: bool) -> Mfn {
    let (frame, at) = host_entry(reference);
    let flags = mem.load16(frame, at);
    assert_eq!(flags & 3, 1, "reference {reference} grants nothing");
    assert_eq!(mem.load16(frame, at + 2), BACKEND.0, "granted to dom0");
    assert!(
        !write || flags & 4 == 0,
        "reference {reference} is read-only"
    );
    let in_use = if write { 8 | 16 } else { 8 };
    mem.store16(frame, at, flags | in_use);
    Mfn(u64::from(mem.load32(frame, at + 4)))
}

/// Whether a reference grants anything, which one that was withdrawn does not.
pub(crate) fn is_granted(mem: &dyn Frames, reference: u32) -> bool {
    let (frame, at) = host_entry(reference);
    mem.load16(frame, at) & 3 == 1
}

/// Ends the backend's mappings.
pub(crate) fn unmap(mem: &dyn Frames, references: &[u32]) {
    for &reference in references {
        let (frame, at) = host_entry(reference);
        mem.store16(frame, at, mem.load16(frame, at) & !(8 | 16));
    }
}

fn host_entry(reference: u32) -> (Mfn, usize) {
    assert!((8..2048).contains(&reference), "a reference {reference}");
    let frame = Mfn(HOST_TABLE + u64::from(reference / 512));
    (frame, (reference % 512) as usize * 8)
}
