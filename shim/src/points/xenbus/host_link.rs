//! The frontend's side of a device, in the real store.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use xen_abi::xenbus::XenbusState;
use xen_abi::{DomId, Errno};

use super::{Nodes, number, text};
use crate::host::{StoreClient, StoreEvent, StoreOp};
use crate::points::{DeviceId, device_tag};

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
    /// The frontend's directory names no backend: there is no such device.
    is_missing: bool,
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
            is_missing: false,
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
        self.is_missing = false;
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

    /// Tells the backend our state.  Where there is no device, writing it must not create one.
    pub fn set_state(&self, store: &mut dyn StoreClient, state: XenbusState) {
        if !self.is_missing {
            self.write(store, "state", &state.0.to_string());
        }
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
                    // A relative name would lie below our own directory, where no backend is.
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
        // The store answers in the order of the requests. Whatever is not next belongs to a
        // collection that was forgotten.
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
            self.is_missing = true;
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
