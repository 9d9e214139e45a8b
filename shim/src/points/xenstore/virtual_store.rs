//! The store as the rest of the shim knows it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use xen_abi::xs_wire::PAYLOAD_MAX;
use xen_abi::{DomId, Errno, Mfn};

use super::changed::Changed;
use super::daemon::{ConnId, Daemon};
use super::limits::Limits;
use super::operations as op;
use super::path;
use super::perms::Perms;
use super::ring::GuestRing;
use super::tree::Node;
use super::view::View;
use crate::mem::Frames;
use crate::points::GuestStore;

/// What [`VirtualStore::service`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Serviced {
    /// The guest's xenstore port is to be raised.
    pub notify: bool,
    /// There is more to do; call again after everybody else had a turn.
    pub again: bool,
}

/// The guest's xenstore.
#[derive(Debug)]
pub struct VirtualStore {
    core: Daemon,
    guest: DomId,
    connection: ConnId,
    ring: Option<GuestRing>,
    changed: Changed,
}

impl VirtualStore {
    /// Makes an empty store for the guest that believes to be `guest`; see
    /// [`seed`](super::seed) for its first contents.
    pub fn new(guest: DomId, limits: Limits) -> Self {
        let mut core = Daemon::new(guest, limits);
        let connection = core.connect(guest);
        Self {
            core,
            guest,
            connection,
            ring: None,
            changed: Changed::default(),
        }
    }

    /// What the guest believes its domain id to be.
    pub fn guest_domid(&self) -> DomId {
        self.guest
    }

    /// The directory that the guest's relative names lie below.
    pub fn guest_dir(&self) -> String {
        path::domain_dir(self.guest)
    }

    /// Begins to serve the guest's ring page.
    pub fn connect(&mut self, frames: &dyn Frames, page: Mfn) {
        // Another page is another client: nothing of the one before is its business.
        self.core.reset(self.connection);
        self.ring = Some(GuestRing::new(frames, page, self.connection));
    }

    /// Serves the guest's ring: call when the guest has notified its xenstore port, and when
    /// [`has_output`](Self::has_output).
    pub fn service(&mut self, frames: &dyn Frames) -> Serviced {
        let Some(ring) = &mut self.ring else {
            return Serviced::default();
        };
        let turn = ring.serve(frames, &mut self.core, &mut self.changed);
        Serviced {
            notify: turn.notify,
            again: turn.again,
        }
    }

    /// Whether something waits to be sent to the guest.
    pub fn has_output(&self) -> bool {
        !self.core.connection(self.connection).queue.is_empty()
    }

    /// Returns the nodes that the guest has changed (committed, not merely inside an open
    /// transaction) since the last call, each once, in the order of their first change.
    ///
    /// An entry stands for the node and everything below it; `/` stands for anything, when there
    /// was more than is remembered.  [`path::concerns`] compares.
    pub fn take_guest_changes(&mut self) -> Vec<String> {
        self.changed.take()
    }

    /// Writes a node as the host's tools would: a missing one inherits its permissions.
    pub fn write_as_host(&mut self, path: &str, value: &[u8]) {
        self.privileged(path, |view| op::write(view, path.as_bytes(), value));
    }

    /// Puts a node with these permissions, whatever was there; missing nodes above inherit.
    pub fn put(&mut self, path: &str, value: &[u8], perms: &Perms) {
        self.privileged(path, |view| {
            op::write(view, path.as_bytes(), value)?;
            give(view, path, perms)?;
            // Who may know is decided by what the node has become.
            view.changes.clear();
            view.fire(path, false, None);
            Ok(())
        });
    }

    /// Whether the guest's quota has room for another node.
    pub fn has_room(&self) -> bool {
        self.core.tree.guest_nodes() < self.core.limits.nodes
    }

    /// Whether there is such a node.
    pub fn has(&self, path: &str) -> bool {
        self.core.tree.get(path).is_some()
    }

    /// A node's permissions as the wire carries them.
    pub fn perms(&self, path: &str) -> Option<Vec<u8>> {
        self.core.tree.get(path).map(|node| node.perms.to_wire())
    }

    /// The store without its transport, for tests.
    #[cfg(any(test, feature = "testing"))]
    pub fn core_mut(&mut self) -> (&mut Daemon, ConnId) {
        (&mut self.core, self.connection)
    }

    fn privileged(&mut self, path: &str, run: impl FnOnce(&mut View<'_>) -> Result<(), Errno>) {
        let (result, changes) = self.core.operate_privileged(run);
        if let Err(error) = result {
            log::error!("xenstore: the shim's own change of {path} failed: {error}");
        }
        // Also after an error: what was changed before it stays changed.
        self.core.announce(&changes);
    }

    /// Whether `dir` is the directory of a *class* of the guest's devices, in which it may not
    /// make devices of its own.
    fn is_class_dir(&self, dir: &str) -> bool {
        path::parent(dir)
            .strip_prefix(path::domain_dir(self.guest).as_str())
            .is_some_and(|rest| rest == "/device")
    }
}

impl GuestStore for VirtualStore {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.core.tree.get(path).map(|node| node.value.clone())
    }

    fn list(&self, path: &str) -> Vec<String> {
        let node = self.core.tree.get(path);
        let names = node.iter().flat_map(|node| node.children.iter());
        names.map(ToString::to_string).collect()
    }

    /// A node that exists keeps its permissions.  A new one belongs to `owner` and can be read by
    /// the other side; so does the directory that holds it, if that is new as well and not the
    /// directory of a device class.  What is missing further up inherits.
    fn write(&mut self, path: &str, value: &[u8], owner: DomId) {
        if value.len() > PAYLOAD_MAX {
            log::error!("xenstore: {} bytes do not fit into {path}", value.len());
            return;
        }
        if self.core.tree.get(path).is_some() {
            self.write_as_host(path, value);
            return;
        }
        let other = if owner == self.guest {
            DomId(0)
        } else {
            self.guest
        };
        let perms = Perms::new(owner, Some(other));
        let holder = path::parent(path);
        if self.core.tree.get(holder).is_none() && !self.is_class_dir(holder) {
            self.put(holder, &[], &perms);
        }
        self.put(path, value, &perms);
    }

    fn remove(&mut self, path: &str) {
        if self.core.tree.get(path).is_some() {
            self.privileged(path, |view| op::remove(view, path.as_bytes()));
        }
    }
}

fn give(view: &mut View<'_>, path: &str, perms: &Perms) -> Result<(), Errno> {
    let node = view.look(path)?.ok_or(Errno::ENOENT)?;
    view.put(
        path,
        Node {
            perms: perms.clone(),
            ..Node::clone(&node)
        },
    )
}
