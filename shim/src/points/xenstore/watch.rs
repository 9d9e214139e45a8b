//! Watches: who wants to be told of which changes, and who may be.

use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::xs_wire::REL_PATH_MAX;
use xen_abi::{DomId, Errno};

use super::limits::Limits;
use super::path;
use super::path::canonical;
use super::perms::{Perms, Rights};
use super::tree::Tree;

/// A change that watchers are to be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The node.
    pub name: String,
    /// Whether only watches of this very node count, not those of nodes above: it went away
    /// together with a node above.
    pub exact: bool,
    /// Who can read one of these may know: the node, its parent, the node as it was.
    witnesses: Vec<Perms>,
}

impl Change {
    /// Describes a change of `name`, which was just stored or is about to be deleted.
    pub fn new(tree: &Tree, name: &str, exact: bool, old: Option<Perms>) -> Self {
        let mut witnesses = Vec::from_iter(old);
        if let Some(node) = tree.get(name) {
            witnesses.push(node.perms.clone());
            witnesses.extend(tree.get(path::parent(name)).map(|node| node.perms.clone()));
        }
        Self {
            name: String::from(name),
            exact,
            witnesses,
        }
    }

    /// Whether `domid` may be told.
    pub fn is_visible_to(&self, domid: DomId) -> bool {
        self.witnesses
            .iter()
            .any(|perms| perms.rights(domid).contains(Rights::READ))
    }
}

/// Bytes of heap that a watch takes besides its path and token: its place in the list, and headers.
const WATCH_OVERHEAD: usize = 192;

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Watch {
    path: Vec<u8>,
    token: Vec<u8>,
    relative: bool,
}

/// A watch's event, ready to be sent: a path, relative if the watch is, and the token.
pub type Event = (Vec<u8>, Vec<u8>);

/// The watches of one connection, in the order in which they were set.
#[derive(Debug)]
pub struct Watches {
    owner: DomId,
    set: Vec<Watch>,
}

impl Watches {
    /// Makes an empty set for a connection of `owner`.
    pub fn new(owner: DomId) -> Self {
        Self {
            owner,
            set: Vec::new(),
        }
    }

    /// Sets a watch and returns its first event, which goes out at once.
    pub fn add(
        &mut self,
        name: &[u8],
        token: &[u8],
        limits: &Limits,
        memory_left: usize,
    ) -> Result<Event, Errno> {
        let path = canonical(self.owner, name);
        let special = path.starts_with(b"@");
        if special && path.len() > REL_PATH_MAX
            || !special && !path::is_valid(&path, limits.path_bytes)
        {
            return Err(Errno::EINVAL);
        }
        if self.find(&path, token).is_some() {
            return Err(Errno::EEXIST);
        }
        // The daemon's comparison, which lets one more through (`Limits::watches`).
        if self.owner.0 != 0 && self.set.len() > limits.watches {
            return Err(Errno::E2BIG);
        }
        if self.owner.0 != 0 && WATCH_OVERHEAD + path.len() + token.len() >= memory_left {
            return Err(Errno::ENOMEM);
        }
        self.set.push(Watch {
            path,
            token: token.to_vec(),
            relative: !special && !name.starts_with(b"/"),
        });
        Ok((name.to_vec(), token.to_vec()))
    }

    /// Ends a watch.
    pub fn remove(&mut self, name: &[u8], token: &[u8]) -> Result<(), Errno> {
        let at = self
            .find(&canonical(self.owner, name), token)
            .ok_or(Errno::ENOENT)?;
        self.set.remove(at);
        Ok(())
    }

    fn find(&self, path: &[u8], token: &[u8]) -> Option<usize> {
        self.set
            .iter()
            .position(|watch| watch.path == path && watch.token == token)
    }

    /// Ends all.
    pub fn clear(&mut self) {
        self.set.clear();
    }

    /// Number of watches.
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Bytes held, as the memory quota counts them.
    pub fn bytes(&self) -> usize {
        self.set
            .iter()
            .map(|watch| WATCH_OVERHEAD + watch.path.len() + watch.token.len())
            .sum()
    }

    /// Returns the event that a change, of which the owner may know, causes at one of the watches.
    pub fn event(&self, index: usize, change: &Change) -> Option<Event> {
        let watch = self.set.get(index)?;
        let name = change.name.as_bytes();
        let concerned = if change.exact {
            watch.path == name
        } else {
            path::is_within(name, &watch.path)
        };
        if !concerned {
            return None;
        }
        let shown = if watch.relative {
            // Below the domain's directory, because the watched path is.
            let below = &name[path::domain_dir(self.owner).len()..];
            below.strip_prefix(b"/").unwrap_or(below)
        } else {
            name
        };
        Some((shown.to_vec(), watch.token.clone()))
    }
}
