//! Transactions: what one has seen and changed, and whether it may still be committed.
//!
//! Like the daemon, a transaction sees each node as it was when it *first looked*, not when it
//! began; a commit succeeds if none of the nodes it looked at has changed since then.  Every
//! operation looks before it writes, so writes conflict just as reads do.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use xen_abi::{DomId, Errno};

use super::limits::Limits;
use super::tree::{Node, Tree};
use super::watch::Change;
use crate::heap;

/// Bytes of heap that a look takes besides the name and the node: its place in the map, which is half
/// empty at worst, and the name's header.
const LOOK_OVERHEAD: usize = 192;

/// A node that a transaction has looked at.
#[derive(Debug)]
struct Seen {
    /// What the first look found.
    original: Option<Arc<Node>>,
    /// What the transaction has made of it.
    current: Option<Arc<Node>>,
    /// Whether the commit has to write it.
    modified: bool,
    /// Whether watchers are to be told at the commit; `true` inside: only of the exact path.
    fire: Option<bool>,
    /// Which look was the first at this node; commits go in this order.
    look: usize,
}

/// An open transaction.
#[derive(Debug, Default)]
pub struct Transaction {
    seen: BTreeMap<String, Seen>,
    doomed: bool,
    created: bool,
    bytes: usize,
}

impl Transaction {
    /// Returns a node as the transaction sees it, if it has looked before.
    pub fn recall(&self, name: &str) -> Option<Option<Arc<Node>>> {
        self.seen.get(name).map(|seen| seen.current.clone())
    }

    /// Remembers what the first look at `name` found.
    pub fn remember(&mut self, name: &str, found: Option<Arc<Node>>) {
        self.bytes += cost(name, found.as_deref());
        let look = self.seen.len();
        self.seen.insert(
            String::from(name),
            Seen {
                original: found.clone(),
                current: found,
                modified: false,
                fire: None,
                look,
            },
        );
    }

    /// Number of nodes looked at.
    pub fn nodes(&self) -> usize {
        self.seen.len()
    }

    /// Bytes held, as the memory quota counts them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Marks a node as changed before what it becomes is known (and perhaps refused).
    pub fn touch(&mut self, name: &str) {
        if let Some(seen) = self.seen.get_mut(name) {
            seen.modified = true;
        }
    }

    /// Replaces what the transaction sees under a name that it has looked at.
    pub fn set(&mut self, name: &str, node: Option<Arc<Node>>) {
        let Some(seen) = self.seen.get_mut(name) else {
            // Every operation looks first; should one ever not, nothing may come of it.
            self.doomed = true;
            return;
        };
        self.bytes -= cost(name, seen.current.as_deref());
        self.bytes += cost(name, node.as_deref());
        seen.modified = true;
        seen.current = node;
    }

    /// Tells watchers of `name` at the commit.
    pub fn fire(&mut self, name: &str, exact: bool) {
        match self.seen.get_mut(name) {
            Some(seen) => seen.fire = Some(seen.fire.unwrap_or(true) && exact),
            None => self.doomed = true,
        }
    }

    /// Makes the commit fail: an operation could not be undone cleanly.
    pub fn doom(&mut self) {
        self.doomed = true;
    }

    /// Notes that a node was made, which has the node quota checked at the commit.
    pub fn note_creation(&mut self) {
        self.created = true;
    }

    /// Commits for `caller` and returns what changed, in order; without room for all of it, `/`
    /// stands for the rest.
    pub fn commit(
        self,
        tree: &mut Tree,
        caller: DomId,
        limits: &Limits,
    ) -> Result<Vec<Change>, Errno> {
        if self.doomed {
            return Err(Errno::ENOMEM);
        }
        if self.created && caller.0 != 0 && self.guest_nodes_after(tree) >= limits.nodes {
            return Err(Errno::ENOSPC);
        }
        // Generations, not contents: a value that was changed and changed back is a conflict, too.
        let generation = |node: Option<&Arc<Node>>| node.map(|node| node.generation);
        if self
            .seen
            .iter()
            .any(|(name, seen)| generation(seen.original.as_ref()) != generation(tree.get(name)))
        {
            return Err(Errno::EAGAIN);
        }
        // Moved, not copied: what a transaction has made may be half of the heap.
        let all = self.seen.into_iter();
        let mut modified: Vec<_> = all.filter(|(_, seen)| seen.modified).collect();
        modified.sort_unstable_by_key(|(_, seen)| seen.look);
        let mut changes = Vec::new();
        let mut has_room = true;
        for (name, seen) in modified {
            match seen.current {
                Some(node) => tree.put(&name, Arc::unwrap_or_clone(node)),
                None => tree.take(&name),
            }
            let Some(exact) = seen.fire.filter(|_| has_room) else {
                continue;
            };
            has_room = heap::has_room();
            let old = seen.original.as_ref().map(|node| node.perms.clone());
            changes.push(match has_room {
                true => Change::new(tree, &name, exact, old),
                false => Change::new(tree, "/", false, None),
            });
        }
        Ok(changes)
    }

    /// How many nodes the guest would own afterwards.
    fn guest_nodes_after(&self, tree: &Tree) -> usize {
        let count = |node: fn(&Seen) -> Option<&Arc<Node>>| {
            self.seen
                .values()
                .filter_map(node)
                .filter(|node| tree.is_guest_s(&node.perms))
                .count()
        };
        (tree.guest_nodes() + count(|seen| seen.current.as_ref()))
            .saturating_sub(count(|seen| seen.original.as_ref()))
    }
}

/// Bytes that a look at a node counts as; looking where no node is costs as much.
pub(super) fn cost(name: &str, node: Option<&Node>) -> usize {
    LOOK_OVERHEAD + name.len() + node.map_or(0, Node::bytes)
}

/// The open transactions of one connection.
#[derive(Debug, Default)]
pub struct Transactions {
    open: BTreeMap<u32, Transaction>,
    next: u32,
}

impl Transactions {
    /// Opens one and returns its id, which is not 0.
    pub fn start(&mut self) -> u32 {
        loop {
            let id = self.next;
            self.next = self.next.wrapping_add(1);
            if id != 0 && !self.open.contains_key(&id) {
                self.open.insert(id, Transaction::default());
                return id;
            }
        }
    }

    /// Returns an open one.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Transaction> {
        self.open.get_mut(&id)
    }

    /// Whether one is open under this id.
    pub fn contains(&self, id: u32) -> bool {
        self.open.contains_key(&id)
    }

    /// Closes one and returns it.
    pub fn take(&mut self, id: u32) -> Option<Transaction> {
        self.open.remove(&id)
    }

    /// Closes all.
    pub fn clear(&mut self) {
        self.open.clear();
    }

    /// Number of open ones.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Bytes held by all.
    pub fn bytes(&self) -> usize {
        self.open.values().map(Transaction::bytes).sum()
    }
}
