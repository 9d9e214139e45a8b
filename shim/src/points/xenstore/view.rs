//! The tree as one request sees it: inside its transaction, or directly.

use alloc::sync::Arc;
use alloc::vec::Vec;

use xen_abi::{DomId, Errno};

use super::limits::Limits;
use super::perms::Perms;
use super::transaction::{Transaction, cost};
use super::tree::{NODE_OVERHEAD, Node, Tree};
use super::watch::Change;
use crate::heap;

/// What an operation works on.
pub struct View<'a> {
    /// The contents.
    pub tree: &'a mut Tree,
    /// The transaction that the request named.
    pub transaction: Option<&'a mut Transaction>,
    /// Who asks; domain 0 is privileged.
    pub caller: DomId,
    /// The guest's quotas.
    pub limits: &'a Limits,
    /// Bytes that the memory quota counts besides the tree and this transaction.
    pub other_bytes: usize,
    /// What has changed, directly; what a transaction changes is told at its commit.
    pub changes: Vec<Change>,
}

impl View<'_> {
    /// Whether the quotas do not apply to the caller.
    pub fn is_privileged(&self) -> bool {
        self.caller.0 == 0
    }

    /// Returns a node, if there is one.  `ENOSPC` when the transaction has looked at too many,
    /// `ENOMEM` when there is no memory to remember another; the daemon would go on and then
    /// never read from the guest again.
    pub fn look(&mut self, name: &str) -> Result<Option<Arc<Node>>, Errno> {
        let found = self.tree.get(name).cloned();
        let privileged = self.is_privileged();
        let Some(transaction) = &mut self.transaction else {
            return Ok(found);
        };
        // Counted once: a node that was looked at before costs nothing more, whatever the limits
        // say by now.
        if let Some(seen) = transaction.recall(name) {
            return Ok(seen);
        }
        if !privileged && transaction.nodes() >= self.limits.transaction_nodes {
            transaction.doom();
            return Err(Errno::ENOSPC);
        }
        let held = self.other_bytes + self.tree.guest_bytes() + transaction.bytes();
        let more = cost(name, found.as_deref());
        if !privileged && (held + more >= self.limits.memory || !heap::has_room()) {
            transaction.doom();
            return Err(Errno::ENOMEM);
        }
        transaction.remember(name, found.clone());
        Ok(found)
    }

    /// Stores a node if the quotas allow it.
    pub fn put(&mut self, name: &str, node: Node) -> Result<(), Errno> {
        if let Some(transaction) = &mut self.transaction {
            transaction.touch(name);
        }
        let verdict = self.check(name, &node);
        if verdict.is_ok() {
            self.put_unchecked(name, node);
        } else if let Some(transaction) = &mut self.transaction {
            transaction.doom();
        }
        verdict
    }

    fn check(&self, name: &str, node: &Node) -> Result<(), Errno> {
        if self.is_privileged() {
            return Ok(());
        }
        let bytes = node.bytes();
        if bytes >= self.limits.node_bytes {
            return Err(Errno::ENOSPC);
        }
        let (held, before) = match &self.transaction {
            Some(transaction) => (
                transaction.bytes() + self.tree.guest_bytes(),
                transaction.recall(name).flatten(),
            ),
            None => (self.tree.guest_bytes(), self.tree.get(name).cloned()),
        };
        let size = |node: &Node| NODE_OVERHEAD + name.len() + node.bytes();
        // What the node takes already is part of what is held, and goes when it is replaced.
        let before = before.map_or(0, |node| size(&node));
        let after = (self.other_bytes + held + size(node)).saturating_sub(before);
        if after >= self.limits.memory {
            return Err(Errno::ENOMEM);
        }
        heap::room()
    }

    /// Stores a node whatever the quotas say: it shrinks, or an operation is being undone.
    pub fn put_unchecked(&mut self, name: &str, mut node: Node) {
        match &mut self.transaction {
            Some(transaction) => {
                // A generation of its own, so that a listing in parts notices a change within the
                // transaction.
                node.generation = self.tree.next_generation();
                transaction.set(name, Some(Arc::new(node)));
            }
            None => self.tree.put(name, node),
        }
    }

    /// Deletes a node alone.
    pub fn delete(&mut self, name: &str) {
        match &mut self.transaction {
            Some(transaction) => transaction.set(name, None),
            None => self.tree.take(name),
        }
    }

    /// Tells watchers of `name`, and unless `exact` those of the nodes above it; `old` are the
    /// permissions that it had before.  Without room nobody hears of what went with a node above:
    /// the daemon, too, drops events when it has no memory for them.
    pub fn fire(&mut self, name: &str, exact: bool, old: Option<Perms>) {
        if exact && !heap::has_room() {
            return;
        }
        match &mut self.transaction {
            Some(transaction) => transaction.fire(name, exact),
            None => self.changes.push(Change::new(self.tree, name, exact, old)),
        }
    }

    /// Makes the commit of the transaction fail, if there is one.
    pub fn doom(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.doom();
        }
    }
}
