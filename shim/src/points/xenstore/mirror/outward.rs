//! What of the guest's store is published in the real one, and the queue towards it.
//!
//! A guest can write faster than the host wants to hear.  So the queue holds *names*, each once;
//! the value is looked up when its turn comes, and only a few requests are on their way at a time.
//! The shim's own reports go first, and the guest's names take turns, so that none that is changed
//! all the time keeps another waiting.  When more names wait than are kept, the queue is rebuilt
//! from what there is.
//!
//! The real store lets a domain own only so many nodes, those of its devices among them, and
//! without these there is no ring.  So only as much of the guest's is published as leaves room
//! ([`room_beside`]); after a move it waits until the devices have connected; and where the store
//! is full all the same, the guest's nodes make way.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::ops::Bound;

use xen_abi::Errno;

use super::super::VirtualStore;
use super::super::path::{is_within, join, parent};
use super::super::seed::REPORTS;
use crate::host::StoreOp;
use crate::host::store::is_full;
use crate::points::GuestStore as _;

/// Directories of which everything is published.
pub const AREAS: [&str; 4] = ["attr", "data", "drivers", "error"];
/// The nodes that are published besides: what begins like this.
pub const FEATURES: &str = "control/feature-";

/// Requests on their way to the host.
const IN_FLIGHT: usize = 8;
/// Names that wait before the queue is rebuilt.
const WAITING: usize = 512;
/// Names that wait after the queue was rebuilt: more than a guest may own.
const REBUILT: usize = 2048;
/// Longest name published.  Real ones are far shorter; a hostile guest's could fill the heap.
const NAME: usize = 256;
/// Keys of the shim's own reports.
const KEYS: usize = 32;
/// Errors that are logged one by one.
const ERRORS: u32 = 16;

/// Nodes that the real daemon lets a domain own, unless it was started otherwise
/// (`quota-nb-entries` of xenstored, `quota-maxentity` of oxenstored).
pub const HOST_NODES: usize = 1000;
/// Nodes of the domain's that the toolstack makes: 17 with all features, and the directories that
/// hold the shim's reports.
const TOOLSTACK_NODES: usize = 24;
/// Nodes of one device: up to 9 of the toolstack's, its directory among them, and up to 13 of
/// ours, with a ring of eight frames.
const DEVICE_NODES: usize = 24;
/// Devices that may be plugged before room for them has been made.
const SPARE_DEVICES: usize = 4;
/// Nodes that make way when the store is full although it should not be.
const WAY: usize = 64;

/// How many nodes may be published beside `devices` devices.
pub const fn room_beside(devices: usize) -> usize {
    let others = TOOLSTACK_NODES + KEYS + (devices + SPARE_DEVICES) * DEVICE_NODES;
    HOST_NODES.saturating_sub(others)
}

/// Whose a request on its way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// A report of the shim's.
    Own,
    /// A node of the guest's.
    Guest,
    /// A node of the guest's that makes way.
    Leaving,
}

/// The way out.  Names are relative to the domain's directory.
#[derive(Debug)]
pub struct Outward {
    /// Reports that wait.
    own: BTreeSet<String>,
    /// Reports that wait until something has made way for them.
    late: BTreeSet<String>,
    /// Names of the guest's that wait.
    waiting: BTreeSet<String>,
    /// Whose turn was last.
    last: String,
    /// Names that make way for others.
    leaving: VecDeque<String>,
    /// Names that have made way: the guest has them, and the host does not.
    left: BTreeSet<String>,
    in_flight: VecDeque<(String, Whose)>,
    published: BTreeSet<String>,
    reports: BTreeMap<String, Vec<u8>>,
    devices: usize,
    /// How much may be published.
    limit: usize,
    /// What is the guest's waits.
    is_held: bool,
    errors: u32,
}

/// Whether a node of the guest's is published.
pub fn is_public(path: &str) -> bool {
    let area = AREAS.iter().any(|area| is_within(path, area));
    let feature = path
        .strip_prefix(FEATURES)
        .is_some_and(|rest| !rest.is_empty() && !rest.contains('/'));
    (area || feature) && !is_within(path, REPORTS) && path.len() <= NAME
}

impl Default for Outward {
    fn default() -> Self {
        Self {
            own: BTreeSet::new(),
            late: BTreeSet::new(),
            waiting: BTreeSet::new(),
            last: String::new(),
            leaving: VecDeque::new(),
            left: BTreeSet::new(),
            in_flight: VecDeque::new(),
            published: BTreeSet::new(),
            reports: BTreeMap::new(),
            devices: 0,
            limit: room_beside(0),
            is_held: false,
            errors: 0,
        }
    }
}

impl Outward {
    /// Begins anew with a store that has nothing of what was published.  If `is_held`, what is the
    /// guest's waits for [`release`](Self::release).
    pub fn restart(&mut self, is_held: bool) {
        // Whether a removal that was under way was done does not matter here: in the new store the
        // node is not there.
        let unsure = self
            .in_flight
            .drain(..)
            .filter(|(_, whose)| *whose == Whose::Leaving);
        self.left.extend(unsure.map(|(path, _)| path));
        self.left.extend(self.leaving.drain(..));
        self.is_held = is_held;
        self.limit = room_beside(self.devices);
        self.late.clear();
        self.own = self.reports.keys().cloned().collect();
        // What had not had its turn yet still waits.
        self.waiting.extend(self.published.iter().cloned());
        self.waiting.append(&mut self.left);
    }

    /// What is the guest's need not wait any more.
    pub fn release(&mut self) {
        self.is_held = false;
    }

    /// Whether what is the guest's waits.
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// Leaves room for this many devices; `false` when it did already.
    pub fn leave_room(&mut self, devices: usize) -> bool {
        if core::mem::replace(&mut self.devices, devices) == devices {
            return false;
        }
        self.limit = room_beside(devices);
        self.shrink();
        if self.published.len() < self.limit {
            self.waiting.append(&mut self.left);
        }
        true
    }

    /// The store is full although it should not be: lets some of the guest's nodes make way.
    /// `false` when there are none.
    pub fn make_way(&mut self) -> bool {
        let has_some = !self.published.is_empty();
        self.limit = self.limit.min(self.published.len().saturating_sub(WAY));
        self.shrink();
        has_some
    }

    /// Whether what makes way has not gone yet.
    pub fn is_making_way(&self) -> bool {
        let is_leaving = |(_, whose): &(String, Whose)| *whose == Whose::Leaving;
        !self.leaving.is_empty() || self.in_flight.iter().any(is_leaving)
    }

    fn shrink(&mut self) {
        let excess = self.published.len().saturating_sub(self.limit);
        for _ in 0..excess {
            // What is below a node comes after it, and so goes before it.
            self.leaving.extend(self.published.pop_last());
        }
        if excess > 0 {
            log::warn!(
                "xenstore: {excess} nodes of the guest are not published any more: the host lets a \
                 domain own {HOST_NODES}, and its devices need them"
            );
        }
    }

    /// Notes that the guest has changed a node.
    pub fn add(&mut self, path: &str, dir: &str, guest: &VirtualStore) {
        if !is_public(path) || self.waiting.contains(path) {
            return;
        }
        if self.waiting.len() >= WAITING {
            self.resync(dir, guest);
        } else {
            self.waiting.insert(path.to_string());
        }
    }

    /// Notes that the guest may have changed anything.
    pub fn resync(&mut self, dir: &str, guest: &VirtualStore) {
        self.waiting = self.published.clone();
        let mut found = Vec::from(AREAS.map(String::from));
        let control = guest.list(&join(dir, "control"));
        found.extend(control.iter().map(|leaf| format!("control/{leaf}")));
        // Names grow while walking, so too long ones end the walk.
        while let Some(path) = found.pop().filter(|_| self.waiting.len() < REBUILT) {
            if is_public(&path) && guest.has(&join(dir, &path)) {
                let below = guest.list(&join(dir, &path));
                found.extend(below.iter().map(|leaf| join(&path, leaf)));
                self.waiting.insert(path);
            }
        }
    }

    /// Sets one of the shim's own nodes.
    pub fn report(&mut self, key: &str, value: &[u8]) {
        let path = join(REPORTS, key);
        if self.reports.len() >= KEYS && !self.reports.contains_key(&path) {
            log::error!("xenstore: no room to report {key}");
            return;
        }
        self.reports.insert(path.clone(), value.to_vec());
        self.own.insert(path);
    }

    /// Returns the next request to the host, if one may go out.
    pub fn next_request(&mut self, dir: &str, guest: &VirtualStore) -> Option<StoreOp> {
        while self.in_flight.len() < IN_FLIGHT {
            let (path, op, whose) = if let Some(path) = self.own.pop_first() {
                let value = self.reports.get(&path)?.clone();
                let op = StoreOp::Write(path.clone(), value);
                (path, Some(op), Whose::Own)
            } else if let Some(path) = self.leaving.pop_front() {
                let op = removal(&path);
                (path, op, Whose::Leaving)
            } else if let Some(path) = self.late.pop_first() {
                let value = self.reports.get(&path)?.clone();
                let op = StoreOp::Write(path.clone(), value);
                (path, Some(op), Whose::Own)
            } else if self.is_held {
                return None;
            } else {
                let path = self.next_turn()?;
                let op = self.request(&path, dir, guest);
                (path, op, Whose::Guest)
            };
            if let Some(op) = op {
                self.in_flight.push_back((path, whose));
                return Some(op);
            }
        }
        None
    }

    /// Takes out the name whose turn it is: the next after the last one, round and round.
    fn next_turn(&mut self) -> Option<String> {
        let after = (Bound::Excluded(self.last.as_str()), Bound::Unbounded);
        let next = self.waiting.range::<str, _>(after).next();
        let path = next.or_else(|| self.waiting.first())?.clone();
        self.waiting.remove(&path);
        self.last.clone_from(&path);
        Some(path)
    }

    fn request(&mut self, path: &str, dir: &str, guest: &VirtualStore) -> Option<StoreOp> {
        let Some(value) = guest.read(&join(dir, path)) else {
            self.published.retain(|name| !is_within(name, path));
            self.left.retain(|name| !is_within(name, path));
            return removal(path);
        };
        // The host makes the directories above as well, and counts them.
        let mut new = Vec::new();
        let mut name = path;
        while name != "/" && is_public(name) && !self.published.contains(name) {
            new.push(name.to_string());
            name = parent(name);
        }
        if self.published.len() + new.len() > self.limit {
            self.complain(path, "the host lets a domain own no more nodes");
            return None;
        }
        for name in &new {
            self.left.remove(name);
        }
        // Counted when it is asked for and not when it is answered: what is on its way takes room
        // there as well.
        self.published.extend(new);
        // It may have been removed with everything below, and made again.
        let below = join(path, "");
        let from = (Bound::Included(below.as_str()), Bound::Unbounded);
        let published = self.published.range::<str, _>(from);
        let gone = published
            .take_while(|name| name.starts_with(&below))
            .filter(|name| !guest.has(&join(dir, name)));
        self.waiting.extend(gone.cloned());
        Some(StoreOp::Write(path.to_string(), value))
    }

    /// Takes the answer to the oldest request.
    pub fn written(&mut self, answer: Result<Vec<u8>, Errno>) {
        let Some((path, whose)) = self.in_flight.pop_front() else {
            return;
        };
        match answer {
            // Whatever the answer: the node is not counted any more, and waits until there is room.
            _ if whose == Whose::Leaving => {
                self.left.insert(path);
                return;
            }
            // A node that was never there, or went together with one above.
            Ok(_) | Err(Errno::ENOENT) => return,
            Err(error) if is_full(error) && whose == Whose::Own && self.make_way() => {
                self.late.insert(path);
                return;
            }
            Err(error) if is_full(error) && whose == Whose::Guest => {
                self.published.remove(&path);
            }
            Err(_) => {}
        }
        if let Err(error) = answer {
            self.complain(&path, &error.to_string());
        }
    }

    fn complain(&mut self, path: &str, why: &str) {
        self.errors = self.errors.saturating_add(1);
        if self.errors <= ERRORS {
            log::warn!("xenstore: {path} is not published: {why}");
        }
    }

    /// Whether what the host says of a node may be older than what the guest has done to it: to
    /// the node itself, to one below, which made it, or to one above, with which it went.
    pub fn is_under_way(&self, path: &str) -> bool {
        let in_flight = self.in_flight.iter().map(|(name, _)| name);
        let mut names = self.waiting.iter().chain(&self.leaving).chain(in_flight);
        names.any(|name| is_within(name, path) || is_within(path, name))
    }

    /// Whether the host lacks a node because it made way: that is no news for the guest.
    pub fn has_left(&self, path: &str) -> bool {
        self.left.contains(path)
    }

    /// Names that wait, for tests.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.own.is_empty()
            && self.late.is_empty()
            && self.leaving.is_empty()
            && self.waiting.is_empty()
            && self.in_flight.is_empty()
    }
}

/// The request that removes a node.  The directories themselves stay: the domain could not make
/// them again.
fn removal(path: &str) -> Option<StoreOp> {
    (!AREAS.contains(&path)).then(|| StoreOp::Remove(path.to_string()))
}
