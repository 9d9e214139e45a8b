//! What disks and nets share of the handshake through the store (`xen/include/public/io/xenbus.h`).
//!
//! Towards the host a device is a frontend: a [`HostLink`] finds the backend, watches its state
//! and collects the nodes that the device asks for, all without ever waiting.  Towards the guest
//! it is a backend: a [`GuestLink`] publishes the device's two directories in the virtual store
//! and reads what the guest's driver wrote.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::Cell;
use core::str::FromStr;

use xen_abi::xenbus::XenbusState;
use xen_abi::{DomId, Errno};

use super::{Cx, DeviceId, GuestStore, device_tag};
use crate::host::{StoreClient, StoreEvent, StoreOp};

/// Values longer than this are not taken from anybody: no node of a device is.
const MAX_VALUE: usize = 1024;

/// Says why a node could not be read.
pub fn why_failed(path: &str, error: Errno) -> String {
    match error {
        Errno::ENOENT => format!("this host has no {path}"),
        _ => format!("{path}: {error}"),
    }
}

/// Turns a node's value into text, without the NUL that some write behind it.
pub fn text(value: &[u8]) -> Option<&str> {
    if value.len() > MAX_VALUE {
        return None;
    }
    let text = core::str::from_utf8(value).ok()?;
    Some(text.trim_matches(|c: char| c == '\0' || c.is_ascii_whitespace()))
}

/// Turns a node's value into a number, written in decimal.
pub fn number<T: FromStr>(value: &[u8]) -> Option<T> {
    text(value)?.parse().ok()
}

/// The nodes of a directory that a [`HostLink`] collected; those that do not exist are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes(BTreeMap<&'static str, Vec<u8>>);

impl Nodes {
    /// Makes a set of nodes, for tests and defaults.
    pub fn from_pairs(pairs: &[(&'static str, &str)]) -> Self {
        Self(
            pairs
                .iter()
                .map(|&(key, value)| (key, value.as_bytes().to_vec()))
                .collect(),
        )
    }

    /// Returns a node's text.
    pub fn text(&self, key: &str) -> Option<&str> {
        text(self.0.get(key)?)
    }

    /// Returns a node's number.
    pub fn number<T: FromStr>(&self, key: &str) -> Option<T> {
        number(self.0.get(key)?)
    }

    /// Returns whether a feature is offered: the node is there and not 0.
    pub fn flag(&self, key: &str) -> bool {
        self.number::<u64>(key).is_some_and(|value| value != 0)
    }
}

/// What a [`HostLink`] has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The frontend directory was read and the backend found; its state is watched from now on.
    Found(Nodes),
    /// The backend's state, whenever it was written (even with the value that it had), and 0 when
    /// there is none (any more).
    State(XenbusState),
    /// The nodes of the backend's directory that were asked for as collection `what`.
    Nodes {
        /// The number given to [`HostLink::collect`].
        what: u8,
        /// What there is of them.
        nodes: Nodes,
    },
    /// A node could not be written or read, for another reason than that it does not exist.
    Failed {
        /// Its path.
        path: String,
        /// Why.
        error: Errno,
    },
}

/// The kinds of submissions, told apart in the tag's detail.
mod kind {
    pub const FRONTEND: u8 = 0;
    /// What the link itself reads of the frontend's directory.
    pub const OWN: u8 = 3;
    pub const STATE: u8 = 1;
    pub const WRITE: u8 = 2;
    /// Collection `what` is this and above.
    pub const COLLECT: u8 = 16;
}

/// A set of reads under way.
#[derive(Debug)]
struct Collection {
    kind: u8,
    /// Tells the answers from those to a collection that was forgotten.
    serial: u8,
    keys: &'static [&'static str],
    answered: usize,
    nodes: Nodes,
}

/// A frontend's view of its two directories in the real store.
#[derive(Debug)]
pub struct HostLink {
    device: DeviceId,
    /// Told apart from answers to a link of before a migration.
    generation: u8,
    frontend: String,
    backend: Option<String>,
    backend_id: DomId,
    collections: Vec<Collection>,
    serial: u8,
}

impl HostLink {
    /// Makes a link that is not yet tied to any directory.
    pub const fn new(device: DeviceId) -> Self {
        Self {
            device,
            generation: 0,
            frontend: String::new(),
            backend: None,
            backend_id: DomId::INVALID,
            collections: Vec::new(),
            serial: 0,
        }
    }

    /// Begins (anew) at a frontend directory: reads `keys` of it besides what it needs itself.
    /// Whatever an earlier link still gets an answer to is ignored; its watch is not ended, for
    /// after a migration there is nobody left who knows it.
    pub fn start(
        &mut self,
        store: &mut dyn StoreClient,
        frontend: &str,
        keys: &'static [&'static str],
    ) {
        self.generation = self.generation.wrapping_add(1);
        self.frontend = frontend.to_owned();
        self.backend = None;
        self.backend_id = DomId::INVALID;
        self.collections.clear();
        for (key, index) in [("backend", 0), ("backend-id", 1)] {
            let op = StoreOp::Read(format!("{frontend}/{key}"));
            self.submit(store, self.detail(kind::OWN, index), op);
        }
        self.begin(store, kind::FRONTEND, frontend.to_owned(), keys);
    }

    /// Ends the watch and ignores whatever is still to come.
    pub fn stop(&mut self, store: &mut dyn StoreClient) {
        if let Some(backend) = self.backend.take() {
            let detail = self.detail(kind::STATE, 0);
            self.submit(store, detail, StoreOp::Unwatch(format!("{backend}/state")));
        }
        self.generation = self.generation.wrapping_add(1);
        self.collections.clear();
    }

    /// The backend's domain.
    pub fn backend_id(&self) -> DomId {
        self.backend_id
    }

    /// The frontend's directory.
    pub fn frontend(&self) -> &str {
        &self.frontend
    }

    /// Reads `keys` of the backend's directory, to be delivered as [`LinkEvent::Nodes`] when all
    /// have been answered.  A collection of the same number that is still under way is forgotten.
    pub fn collect(
        &mut self,
        store: &mut dyn StoreClient,
        what: u8,
        keys: &'static [&'static str],
    ) {
        if let Some(backend) = self.backend.clone() {
            self.begin(store, kind::COLLECT + what, backend, keys);
        }
    }

    /// Writes a node of the frontend's directory.
    pub fn write(&self, store: &mut dyn StoreClient, key: &str, value: &str) {
        let path = format!("{}/{key}", self.frontend);
        let op = StoreOp::Write(path, value.as_bytes().to_vec());
        self.submit(store, self.detail(kind::WRITE, 0), op);
    }

    /// Removes a node of the frontend's directory.
    pub fn remove(&self, store: &mut dyn StoreClient, key: &str) {
        let path = format!("{}/{key}", self.frontend);
        self.submit(store, self.detail(kind::WRITE, 1), StoreOp::Remove(path));
    }

    /// Tells the backend our state.
    pub fn set_state(&self, store: &mut dyn StoreClient, state: XenbusState) {
        self.write(store, "state", &state.0.to_string());
    }

    /// Takes a store event that came for the device; `None` when nothing follows from it (yet).
    pub fn event(
        &mut self,
        store: &mut dyn StoreClient,
        detail: u32,
        event: StoreEvent,
    ) -> Option<LinkEvent> {
        let [low, high, kind, generation] = detail.to_le_bytes();
        if generation != self.generation {
            return None;
        }
        let index = u16::from_le_bytes([low, high]);
        match (kind, event) {
            (kind::STATE, StoreEvent::Changed(_)) => {
                let backend = self.backend.as_ref()?;
                let op = StoreOp::Read(format!("{backend}/state"));
                self.submit(store, detail, op);
                None
            }
            // The watch itself is answered as well as each read of the state; only the latter
            // has a value.
            (kind::STATE, StoreEvent::Reply(Ok(value))) if value.is_empty() => None,
            (kind::STATE, StoreEvent::Reply(Ok(value))) => {
                let state = number(&value).map_or(XenbusState::UNKNOWN, XenbusState);
                Some(LinkEvent::State(state))
            }
            (kind::STATE, StoreEvent::Reply(Err(Errno::ENOENT))) => {
                Some(LinkEvent::State(XenbusState::UNKNOWN))
            }
            (kind::STATE, StoreEvent::Reply(Err(error))) => Some(LinkEvent::Failed {
                path: format!("{}/state", self.backend.as_deref().unwrap_or_default()),
                error,
            }),
            // Removing what is not there is as good.
            (kind::WRITE, StoreEvent::Reply(Err(error)))
                if (index, error) != (1, Errno::ENOENT) =>
            {
                Some(LinkEvent::Failed {
                    path: self.frontend.clone(),
                    error,
                })
            }
            (kind::OWN, StoreEvent::Reply(reply)) => {
                let value = reply.ok()?;
                if index == 1 {
                    self.backend_id = DomId(number(&value)?);
                } else {
                    self.backend = text(&value)
                        .filter(|path| path.starts_with('/'))
                        .map(ToOwned::to_owned);
                }
                None
            }
            (kind::FRONTEND | kind::COLLECT.., StoreEvent::Reply(reply)) => {
                self.answered(store, kind, index, reply)
            }
            _ => None,
        }
    }

    fn answered(
        &mut self,
        store: &mut dyn StoreClient,
        kind: u8,
        index: u16,
        reply: Result<Vec<u8>, Errno>,
    ) -> Option<LinkEvent> {
        let value = match reply {
            Ok(value) => Some(value),
            Err(Errno::ENOENT) => None,
            Err(error) => {
                return Some(LinkEvent::Failed {
                    path: self.frontend.clone(),
                    error,
                });
            }
        };
        let at = self.collections.iter().position(|c| c.kind == kind)?;
        let collection = &mut self.collections[at];
        let [key, serial] = index.to_le_bytes();
        if serial != collection.serial || usize::from(key) != collection.answered {
            return None;
        }
        if let (Some(&key), Some(value)) = (collection.keys.get(collection.answered), value) {
            collection.nodes.0.insert(key, value);
        }
        collection.answered += 1;
        // One further read closes the collection, so that an empty one is answered, too.
        if collection.answered <= collection.keys.len() {
            return None;
        }
        let nodes = self.collections.swap_remove(at).nodes;
        if kind != kind::FRONTEND {
            let what = kind - kind::COLLECT;
            return Some(LinkEvent::Nodes { what, nodes });
        }
        let (Some(backend), true) = (&self.backend, self.backend_id != DomId::INVALID) else {
            return Some(LinkEvent::Failed {
                path: format!("{}/backend", self.frontend),
                error: Errno::ENOENT,
            });
        };
        let op = StoreOp::Watch(format!("{backend}/state"));
        self.submit(store, self.detail(kind::STATE, 0), op);
        Some(LinkEvent::Found(nodes))
    }

    fn begin(
        &mut self,
        store: &mut dyn StoreClient,
        kind: u8,
        directory: String,
        keys: &'static [&'static str],
    ) {
        debug_assert!(keys.len() < 256);
        self.serial = self.serial.wrapping_add(1);
        self.collections.retain(|c| c.kind != kind);
        self.collections.push(Collection {
            kind,
            serial: self.serial,
            keys,
            answered: 0,
            nodes: Nodes::default(),
        });
        for (index, key) in keys.iter().chain(&["state"]).enumerate() {
            let op = StoreOp::Read(format!("{directory}/{key}"));
            let index = u16::from_le_bytes([index as u8, self.serial]);
            self.submit(store, self.detail(kind, index), op);
        }
    }

    fn detail(&self, kind: u8, index: u16) -> u32 {
        let [low, high] = index.to_le_bytes();
        u32::from_le_bytes([low, high, kind, self.generation])
    }

    fn submit(&self, store: &mut dyn StoreClient, detail: u32, op: StoreOp) {
        store.submit(device_tag(self.device, detail), op);
    }
}

/// The device's two directories in the guest's store, as the guest sees them for ever.
#[derive(Debug)]
pub struct GuestLink {
    frontend: String,
    backend: String,
    guest: DomId,
    backend_domid: DomId,
    state: XenbusState,
}

impl GuestLink {
    /// Names the directories of `device`; nothing is written.
    pub fn new(device: DeviceId, guest: DomId, backend: DomId) -> Self {
        let (class, index) = (device.class.name(), device.index);
        Self {
            frontend: format!("/local/domain/{}/device/{class}/{index}", guest.0),
            backend: format!(
                "/local/domain/{}/backend/{class}/{}/{index}",
                backend.0, guest.0
            ),
            guest,
            backend_domid: backend,
            state: XenbusState::UNKNOWN,
        }
    }

    /// Makes both directories, as a toolstack does: `front` and `back` are what the device has in
    /// them besides the nodes that every device has.  The backend's directory comes first, for the
    /// guest watches the frontend's.
    pub fn publish(
        &mut self,
        store: &mut dyn GuestStore,
        front: &[(&str, &str)],
        back: &[(&str, &str)],
    ) {
        let initialising = XenbusState::INITIALISING.0.to_string();
        let (guest, backend_domid) = (self.guest.0.to_string(), self.backend_domid.0.to_string());
        let frontend = self.frontend.clone();
        for &(key, value) in [
            ("frontend", frontend.as_str()),
            ("frontend-id", &guest),
            ("online", "1"),
        ]
        .iter()
        .chain(back)
        {
            self.set(store, key, value);
        }
        self.set_state(store, XenbusState::INITIALISING);
        for &(key, value) in [
            ("backend", self.backend.as_str()),
            ("backend-id", &backend_domid),
        ]
        .iter()
        .chain(front)
        .chain(&[("state", initialising.as_str())])
        {
            store.write(&format!("{frontend}/{key}"), value.as_bytes(), self.guest);
        }
    }

    /// Removes both directories.
    pub fn remove(&mut self, store: &mut dyn GuestStore) {
        self.state = XenbusState::UNKNOWN;
        store.remove(&self.frontend);
        store.remove(&self.backend);
    }

    /// The state that the backend was given last.
    pub fn state(&self) -> XenbusState {
        self.state
    }

    /// Writes the backend's state, even if it is the one that it had.
    pub fn set_state(&mut self, store: &mut dyn GuestStore, state: XenbusState) {
        self.state = state;
        self.set(store, "state", &state.0.to_string());
    }

    /// Writes a node of the backend's directory.
    pub fn set(&self, store: &mut dyn GuestStore, key: &str, value: &str) {
        let path = format!("{}/{key}", self.backend);
        store.write(&path, value.as_bytes(), self.backend_domid);
    }

    /// Returns the state that the guest's driver has written.
    pub fn frontend_state(&self, store: &dyn GuestStore) -> XenbusState {
        self.number(store, "state")
            .map_or(XenbusState::UNKNOWN, XenbusState)
    }

    /// Returns a number that the guest's driver has written.
    pub fn number<T: FromStr>(&self, store: &dyn GuestStore, key: &str) -> Option<T> {
        number(&store.read(&format!("{}/{key}", self.frontend))?)
    }

    /// Returns what the guest's driver has written.
    pub fn text(&self, store: &dyn GuestStore, key: &str) -> Option<String> {
        let value = store.read(&format!("{}/{key}", self.frontend))?;
        text(&value).map(ToOwned::to_owned)
    }

    /// Whether a path that changed is the frontend's `state`, or something above it.
    pub fn is_frontend_state(&self, path: &str) -> bool {
        path.strip_prefix(self.frontend.as_str())
            .is_some_and(|rest| matches!(rest, "" | "/" | "/state"))
    }
}

/// Keeps anybody outside from filling the log: only so many lines of a device are written.
#[derive(Debug)]
pub struct LogLimit(Cell<u32>);

impl LogLimit {
    /// Allows `lines` lines.
    pub const fn new(lines: u32) -> Self {
        Self(Cell::new(lines))
    }

    /// Writes a warning about `device`, unless there were too many.
    pub fn warn(&self, device: DeviceId, message: core::fmt::Arguments<'_>) {
        let left = self.0.get();
        if left == 0 {
            return;
        }
        self.0.set(left - 1);
        let (class, index) = (device.class.name(), device.index);
        log::warn!("{class}/{index}: {message}");
        if left == 1 {
            log::warn!(
                "{class}/{index}: this was the last complaint about the device that is shown"
            );
        }
    }
}

/// Connects a port of the guest to a device, read from the frontend's node `key`.
pub fn connect_port(
    cx: &mut Cx<'_>,
    link: &GuestLink,
    device: DeviceId,
    key: &str,
) -> Option<xen_abi::Port> {
    let port = xen_abi::Port(link.number(cx.store, key)?);
    cx.ports.connect(port, device).then_some(port)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use xen_abi::xenbus::XenbusState;
    use xen_abi::{DomId, Errno};

    use super::{HostLink, LinkEvent, Nodes, number, text};
    use crate::host::{StoreClient, StoreEvent, StoreOp, Tag};
    use crate::points::{DeviceClass, DeviceId};

    const DEVICE: DeviceId = DeviceId {
        class: DeviceClass::Vbd,
        index: 51712,
    };

    #[derive(Default)]
    struct Queue(VecDeque<(Tag, StoreOp)>);
    impl StoreClient for Queue {
        fn submit(&mut self, tag: Tag, op: StoreOp) {
            self.0.push_back((tag, op));
        }
    }

    /// Answers everything in the queue from `nodes` and returns what the link makes of it.
    fn serve(link: &mut HostLink, queue: &mut Queue, nodes: &[(&str, &str)]) -> Vec<LinkEvent> {
        let mut events = Vec::new();
        while let Some((tag, op)) = queue.0.pop_front() {
            let reply = match op {
                StoreOp::Read(path) => nodes
                    .iter()
                    .find(|(name, _)| *name == path)
                    .map(|(_, value)| value.as_bytes().to_vec())
                    .ok_or(Errno::ENOENT),
                StoreOp::Watch(path) => {
                    let event = StoreEvent::Changed(path);
                    events.extend(link.event(queue, tag.0 as u32, event));
                    Ok(Vec::new())
                }
                _ => Ok(Vec::new()),
            };
            events.extend(link.event(queue, tag.0 as u32, StoreEvent::Reply(reply)));
        }
        events
    }

    const STORE: &[(&str, &str)] = &[
        (
            "device/vbd/51712/backend",
            "/local/domain/3/backend/vbd/9/51712",
        ),
        ("device/vbd/51712/backend-id", "3"),
        ("device/vbd/51712/virtual-device", "51712"),
        ("/local/domain/3/backend/vbd/9/51712/state", "2"),
        ("/local/domain/3/backend/vbd/9/51712/sectors", "2048\0"),
    ];

    #[test]
    fn a_backend_is_found_and_read() {
        let (mut link, mut queue) = (HostLink::new(DEVICE), Queue::default());
        link.start(
            &mut queue,
            "device/vbd/51712",
            &["virtual-device", "absent"],
        );
        let events = serve(&mut link, &mut queue, STORE);
        assert_eq!(
            events,
            [
                LinkEvent::Found(Nodes::from_pairs(&[("virtual-device", "51712")])),
                LinkEvent::State(XenbusState::INIT_WAIT),
            ]
        );
        assert_eq!(link.backend_id(), DomId(3));
        link.collect(&mut queue, 1, &["sectors", "info"]);
        let events = serve(&mut link, &mut queue, STORE);
        let [LinkEvent::Nodes { what: 1, nodes }] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(nodes.number::<u64>("sectors"), Some(2048));
        assert_eq!(nodes.number::<u32>("info"), None);
    }

    #[test]
    fn a_missing_backend_is_a_failure() {
        let (mut link, mut queue) = (HostLink::new(DEVICE), Queue::default());
        link.start(&mut queue, "device/vbd/51712", &[]);
        assert!(matches!(
            serve(&mut link, &mut queue, &[])[..],
            [LinkEvent::Failed { .. }]
        ));
    }

    #[test]
    fn answers_to_an_earlier_link_are_ignored() {
        let (mut link, mut queue) = (HostLink::new(DEVICE), Queue::default());
        link.start(&mut queue, "device/vbd/51712", &[]);
        let mut stale = Queue(core::mem::take(&mut queue.0));
        link.start(&mut queue, "device/vbd/51712", &["virtual-device"]);
        assert!(serve(&mut link, &mut stale, STORE).is_empty());
        assert_eq!(serve(&mut link, &mut queue, STORE).len(), 2);
        link.stop(&mut queue);
        assert!(serve(&mut link, &mut queue, STORE).is_empty());
    }

    #[test]
    fn values_are_bounded_and_trimmed() {
        assert_eq!(text(b" 12\0\n"), Some("12"));
        assert_eq!(number::<u16>(b"65536"), None);
        assert_eq!(number::<u32>(b"-1"), None);
        assert_eq!(text(&[b'1'; 2000]), None);
        assert_eq!(text(&[0xff]), None);
    }
}
