//! The tree and its connections: what the daemon is without its transports.
//!
//! In the shim there is one connection, the guest's.  Tests and comparisons with the real daemon
//! add a privileged one to see how the two interfere.

use alloc::vec::Vec;

use xen_abi::xs_wire::{Header, MsgType, error_name};
use xen_abi::{DomId, Errno};

use super::limits::Limits;
use super::perms::Perms;
use super::queue::Queue;
use super::transaction::Transactions;
use super::tree::{NODE_OVERHEAD, Tree};
use super::view::View;
use super::watch::{Change, Event, Watches};
use crate::heap;

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnId(usize);

/// One client.
#[derive(Debug)]
pub struct Connection {
    /// The domain it belongs to; 0 is privileged.
    pub domid: DomId,
    /// Its watches.
    pub watches: Watches,
    /// Its open transactions.
    pub transactions: Transactions,
    /// What waits to be sent to it.
    pub queue: Queue,
}

/// The store.
#[derive(Debug)]
pub struct Daemon {
    /// The contents.
    pub tree: Tree,
    /// The guest's quotas.
    pub limits: Limits,
    guest: DomId,
    connections: Vec<Connection>,
    /// Permissions of `@introduceDomain` and `@releaseDomain`.
    special: [Perms; 2],
}

impl Daemon {
    /// Makes a store of a root alone, for a host on which there are domain 0 and `guest`.
    pub fn new(guest: DomId, limits: Limits) -> Self {
        let nobody = Perms::new(DomId(0), None);
        Self {
            tree: Tree::new(guest),
            limits,
            guest,
            connections: Vec::new(),
            special: [nobody.clone(), nobody],
        }
    }

    /// Adds a client of `domid`, which is 0 or the guest.
    pub fn connect(&mut self, domid: DomId) -> ConnId {
        self.connections.push(Connection {
            domid,
            watches: Watches::new(domid),
            transactions: Transactions::default(),
            queue: Queue::default(),
        });
        ConnId(self.connections.len() - 1)
    }

    /// Returns a client.
    pub fn connection(&self, id: ConnId) -> &Connection {
        &self.connections[id.0]
    }

    /// Returns a client.
    pub fn connection_mut(&mut self, id: ConnId) -> &mut Connection {
        &mut self.connections[id.0]
    }

    /// Forgets what a client has set up, and what waits for it.
    pub fn reset(&mut self, id: ConnId) {
        let connection = self.connection_mut(id);
        connection.watches.clear();
        connection.transactions.clear();
        connection.queue.clear();
    }

    /// Whether an id is that of a domain of this host.
    pub fn is_domain(&self, id: i32) -> bool {
        id == 0 || id == i32::from(self.guest.0)
    }

    /// Returns the permissions of a special name, if it is one.
    pub fn special_mut(&mut self, name: &[u8]) -> Option<&mut Perms> {
        match name {
            b"@introduceDomain" => Some(&mut self.special[0]),
            b"@releaseDomain" => Some(&mut self.special[1]),
            _ => None,
        }
    }

    /// Bytes that the memory quota counts: about what the guest makes the heap hold.
    pub fn memory(&self) -> usize {
        let of = |connection: &Connection| {
            connection.watches.bytes() + connection.transactions.bytes() + connection.queue.bytes()
        };
        let guests = |connection: &&Connection| connection.domid == self.guest;
        self.tree.guest_bytes()
            + self.tree.guest_nodes() * NODE_OVERHEAD
            + self
                .connections
                .iter()
                .filter(guests)
                .map(of)
                .sum::<usize>()
    }

    /// Bytes that the quota leaves for `domid`.
    pub fn memory_left(&self, domid: DomId) -> usize {
        if domid == self.guest {
            self.limits.memory.saturating_sub(self.memory())
        } else {
            usize::MAX
        }
    }

    /// Runs an operation for a client, inside its transaction `tx` (which is open) unless 0.
    /// Returns its result and the changes that watchers are to be told of.
    pub fn operate<T>(
        &mut self,
        id: ConnId,
        tx: u32,
        operation: impl FnOnce(&mut View<'_>) -> T,
    ) -> (T, Vec<Change>) {
        let memory = self.memory();
        let connection = &mut self.connections[id.0];
        let transaction = connection.transactions.get_mut(tx);
        // The view counts the tree and this transaction itself, for these grow while it works. All
        // the rest stands still meanwhile.
        let held = self.tree.guest_bytes() + transaction.as_ref().map_or(0, |open| open.bytes());
        let mut view = View {
            tree: &mut self.tree,
            transaction,
            caller: connection.domid,
            limits: &self.limits,
            other_bytes: memory.saturating_sub(held),
            changes: Vec::new(),
        };
        let result = operation(&mut view);
        (result, view.changes)
    }

    /// Runs an operation as domain 0, without any connection.
    pub fn operate_privileged<T>(
        &mut self,
        operation: impl FnOnce(&mut View<'_>) -> T,
    ) -> (T, Vec<Change>) {
        let mut view = View {
            tree: &mut self.tree,
            transaction: None,
            caller: DomId(0),
            limits: &self.limits,
            other_bytes: 0,
            changes: Vec::new(),
        };
        let result = operation(&mut view);
        (result, view.changes)
    }

    /// Tells every client's watches.
    pub fn announce(&mut self, changes: &[Change]) {
        for change in changes {
            for index in 0..self.connections.len() {
                // Before its watches are looked at: whoever may not read a node must not learn that
                // it changes.
                if !change.is_visible_to(self.connections[index].domid) {
                    continue;
                }
                for watch in 0..self.connections[index].watches.len() {
                    let event = self.connections[index].watches.event(watch, change);
                    if let Some(event) = event {
                        self.send_event(ConnId(index), &event);
                    }
                }
            }
        }
    }

    /// Queues an event, or drops it for want of room.
    pub fn send_event(&mut self, id: ConnId, event: &Event) {
        // A watch promises no event for each change, and the daemon drops some as well; an answer
        // can not be dropped.
        if !heap::has_room() {
            return;
        }
        let left = self.memory_left(self.connections[id.0].domid);
        self.connections[id.0].queue.event(event, left);
    }

    /// Queues an answer; one that is too long or does not fit the quota becomes an error.
    pub fn send_reply(&mut self, id: ConnId, request: &Header, payload: &[u8]) {
        /// Answers up to this length are sent even beyond the quota.
        const ALWAYS: usize = 1024;
        let connection = &self.connections[id.0];
        if payload.len() > xen_abi::xs_wire::PAYLOAD_MAX {
            self.send_error(id, request, Errno::E2BIG);
        } else if payload.len() > ALWAYS && payload.len() >= self.memory_left(connection.domid) {
            self.send_error(id, request, Errno::ENOMEM);
        } else {
            let queue = &mut self.connections[id.0].queue;
            queue.reply(request, MsgType(request.kind), payload);
        }
    }

    /// Queues an error.
    pub fn send_error(&mut self, id: ConnId, request: &Header, error: Errno) {
        let payload = [error_name(error).as_bytes(), &[0]].concat();
        let queue = &mut self.connections[id.0].queue;
        queue.reply(request, MsgType::ERROR, &payload);
    }
}
