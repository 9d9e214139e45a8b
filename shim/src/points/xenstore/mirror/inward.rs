//! What of the real store the guest is shown, and the queue from there.
//!
//! A watch only says that something may have changed.  Each name it gives is read, once however
//! often it is given, and the guest's node is written only if it differs: so neither the first
//! event of a watch nor the echo of what was published itself is seen by the guest.
//!
//! The domain's whole directory and `/vm/UUID` are watched; [`hidden`](super::hidden) lists what of
//! them does not come in.  At boot they are read through.  After a move they are not: what the next
//! host's toolstack has in them, or has not, is no news to the guest, which goes on with what it
//! has seen; only what is written there later is.
//!
//! The host may write without end.  What the toolstack asks for is read first, names take turns,
//! and what is kept for the guest is bounded ([`NODES`], [`BYTES`]).

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::{String, ToString as _};
use core::ops::Bound;

use super::super::VirtualStore;
use super::super::path::{self, is_within, join};
use super::super::seed::{cpu_number, less_hidden};
use super::hidden::{AT_HOME, BELOW_VM, is_among};
use super::{SHUTDOWN, SYSRQ};
use crate::host::StoreOp;
use crate::points::GuestStore as _;

/// What is watched besides the directories, before they are known.
pub const WATCHED: [&str; 4] = [SHUTDOWN, SYSRQ, TARGET, "cpu"];

const TARGET: &str = "memory/target";
/// Where the domain's id is, which gives the name of its directory.
const DOMID: &str = "domid";

/// Directories that belong to the guest, and where the host writes, too.
const AREAS: [&str; 5] = ["attr", "data", "drivers", "error", "feature"];

/// Reads on their way.
const IN_FLIGHT: usize = 4;
/// Names that wait to be read; more are looked for when these were read.
const WAITING: usize = 512;
/// Nodes of the host's that the guest is shown outside of its own directories.
const NODES: usize = 256;
/// Bytes of their names and values.
const BYTES: usize = 64 << 10;
/// Longest name.
const NAME: usize = 256;
/// Longest value: what a node of a domain's may have.
const VALUE: usize = 2048;
/// Complaints that are logged one by one.
const COMPLAINTS: u32 = 16;

/// What was asked of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The domain's id.
    Domid,
    /// A node's value.
    Value(String),
    /// The names below a node.
    Children(String),
}

/// The way in.  Names are relative to the domain's directory, or absolute below `/vm`.
#[derive(Debug)]
pub struct Inward {
    hidden_kib: u64,
    /// Requests of the toolstack's that wait to be read.
    urgent: BTreeSet<String>,
    /// Other names that wait to be read.
    waiting: BTreeSet<String>,
    /// Whose turn was last.
    last: String,
    /// Directories that wait to be listed.
    listing: BTreeSet<String>,
    in_flight: VecDeque<Asked>,
    wants_domid: bool,
    /// The domain's real directory.
    home: Option<String>,
    /// The real `/vm/UUID`, which is the guest's as well.
    vm: Option<String>,
    /// The directories have to be read through.
    is_behind: bool,
    /// They were at least once.
    was_read: bool,
    /// What the host has put into the guest's store outside of the guest's own directories, and
    /// the bytes that this takes.
    shown: BTreeMap<String, usize>,
    bytes: usize,
    complaints: u32,
}

impl Inward {
    /// Makes the way in for a guest whose memory sizes are shown less `hidden_kib`.
    pub fn new(hidden_kib: u64) -> Self {
        Self {
            hidden_kib,
            urgent: BTreeSet::new(),
            waiting: BTreeSet::new(),
            last: String::new(),
            listing: BTreeSet::new(),
            in_flight: VecDeque::new(),
            wants_domid: false,
            home: None,
            vm: None,
            is_behind: true,
            was_read: false,
            shown: BTreeMap::new(),
            bytes: 0,
            complaints: 0,
        }
    }

    /// From now on memory sizes are shown less `kib`.
    pub fn hide(&mut self, kib: u64) {
        self.hidden_kib = kib;
    }

    /// Begins anew with another store.
    pub fn restart(&mut self, dir: &str, guest: &VirtualStore) {
        self.urgent.clear();
        self.waiting.clear();
        self.listing.clear();
        // Answers of the old store will not come: the mirror's epoch has changed.
        self.in_flight.clear();
        self.home = None;
        self.vm = guest
            .read(&join(dir, "vm"))
            .and_then(|vm| String::from_utf8(vm).ok())
            .filter(|vm| path::parent(vm) == "/vm");
        self.wants_domid = true;
        self.is_behind = !self.was_read;
    }

    /// Takes the domain's id, and returns the directories to watch.
    pub fn found_domid(&mut self, value: &[u8]) -> [Option<String>; 2] {
        let text = core::str::from_utf8(value).ok();
        self.home = text
            .and_then(|text| text.parse().ok())
            .map(|id| path::domain_dir(xen_abi::DomId(id)));
        if self.home.is_none() {
            log::error!("xenstore: the domain has no id; what the host writes is not shown");
            self.is_behind = false;
        }
        [self.home.clone(), self.vm.clone()]
    }

    /// Takes the name that a watch gave.
    pub fn changed(&mut self, path: &str, dir: &str, guest: &VirtualStore) {
        if path == "cpu" {
            // The first event: any of them may be another than before the migration.
            for number in guest.list(&join(dir, "cpu")) {
                self.want(&join(&join("cpu", &number), "availability"));
            }
            return;
        }
        let home = self.home.as_deref();
        let relative = match home.and_then(|home| path.strip_prefix(home)) {
            // The first event.
            Some("") => return,
            Some(rest) => rest.strip_prefix('/').unwrap_or(path),
            None => path,
        };
        if is_from_toolstack(relative) || self.is_shown(relative) {
            self.want(relative);
        }
    }

    /// Queues a node to be read.
    pub fn want(&mut self, path: &str) {
        if is_from_toolstack(path) {
            // What the toolstack asks for is never crowded out.
            self.urgent.insert(path.to_string());
        } else if self.waiting.len() < WAITING {
            self.waiting.insert(path.to_string());
        } else {
            self.is_behind = true;
        }
    }

    /// Whether a node comes in under its own name.
    fn is_shown(&self, path: &str) -> bool {
        let is_short = !path.is_empty() && path.len() <= NAME;
        is_short
            && match path.strip_prefix('/') {
                None => !is_among(&AT_HOME, path),
                Some(_) => self.vm.as_deref().is_some_and(|vm| {
                    let below = path
                        .strip_prefix(vm)
                        .and_then(|rest| rest.strip_prefix('/'));
                    below.is_some_and(|below| !is_among(&BELOW_VM, below))
                }),
            }
    }

    /// Returns the next request to the host, if one may go out.  While `is_held`, only requests of
    /// the toolstack are read.
    pub fn next_read(&mut self, is_held: bool) -> Option<StoreOp> {
        if self.in_flight.len() >= IN_FLIGHT {
            return None;
        }
        let asked = if core::mem::take(&mut self.wants_domid) {
            Asked::Domid
        } else if let Some(path) = self.urgent.pop_first() {
            Asked::Value(path)
        } else if is_held || self.home.is_none() {
            return None;
        } else if let Some(path) = self.next_turn() {
            Asked::Value(path)
        } else if let Some(path) = self.listing.pop_first() {
            Asked::Children(path)
        } else if core::mem::take(&mut self.is_behind) {
            self.was_read = true;
            self.waiting.extend(self.shown.keys().cloned());
            self.listing.extend(self.vm.clone());
            Asked::Children(String::new())
        } else {
            return None;
        };
        let op = match &asked {
            Asked::Domid => StoreOp::Read(DOMID.to_string()),
            Asked::Value(path) => StoreOp::Read(path.clone()),
            Asked::Children(path) if path.is_empty() => StoreOp::Directory(self.home.clone()?),
            Asked::Children(path) => StoreOp::Directory(path.clone()),
        };
        self.in_flight.push_back(asked);
        Some(op)
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

    /// Returns what the answer that has come is about.
    pub fn answered(&mut self) -> Option<Asked> {
        // The store answers in the order of the requests.
        self.in_flight.pop_front()
    }

    /// Takes the names below a directory.
    pub fn listed(&mut self, dir: &str, names: &[u8]) {
        let names = names
            .split(|byte| *byte == 0)
            .filter_map(|name| core::str::from_utf8(name).ok())
            .filter(|name| !name.is_empty());
        for name in names {
            let path = match dir {
                "" => name.to_string(),
                _ => join(dir, name),
            };
            if !self.is_shown(&path) {
                continue;
            }
            if self.waiting.len() >= WAITING || self.listing.len() >= WAITING {
                self.complain(&path, "the host has too much");
                return;
            }
            self.waiting.insert(path.clone());
            self.listing.insert(path);
        }
    }

    /// Shows the guest what the host has in a node, or that it has none.
    pub fn apply(&mut self, path: &str, value: Option<&[u8]>, dir: &str, guest: &mut VirtualStore) {
        let node = match path.starts_with('/') {
            true => path.to_string(),
            false => join(dir, path),
        };
        // Compared first: an unchanged value must not fire the guest's watches, or it would notice
        // a move.
        let old = guest.read(&node);
        if is_from_toolstack(path) {
            // It exists already, or the guest is not to have it.
            let (Some(old), Some(value)) = (old, value) else {
                return;
            };
            let shown = if path == TARGET {
                less_hidden(value, self.hidden_kib).map(String::into_bytes)
            } else {
                [&b"online"[..], b"offline"]
                    .contains(&value)
                    .then(|| value.to_vec())
            };
            match shown {
                Some(shown) if shown != old => guest.write_as_host(&node, &shown),
                Some(_) => {}
                None => log::warn!("xenstore: the host's {path} makes no sense"),
            }
        } else if AREAS.iter().any(|area| is_within(path, area)) {
            match value {
                Some(value) if old.as_deref() == Some(value) => {}
                Some(_) if old.is_none() && !guest.has_room() => {
                    self.complain(path, "the guest's store is full");
                }
                Some(value) => guest.write_as_host(&node, value),
                // The directory itself goes only when the guest removes it.
                None if !AREAS.contains(&path) => guest.remove(&node),
                None => {}
            }
        } else if let Some(value) = value {
            if old.as_deref() != Some(value) && self.count(path, value.len()) {
                guest.write_as_host(&node, value);
            }
        } else if self.shown.keys().any(|name| is_within(name, path)) {
            self.forget(path);
            guest.remove(&node);
        }
    }

    /// Counts a node of the host's, and those above it that come to be by it; `false` when there is
    /// no room for it.
    fn count(&mut self, path: &str, len: usize) -> bool {
        if len > VALUE {
            self.complain(path, "its value is too long");
            return false;
        }
        // Measured first and counted afterwards, so that a refusal leaves nothing behind.
        let mut nodes = 0;
        let mut bytes = len;
        let mut name = path;
        while name != "/" && Some(name) != self.vm.as_deref() && !self.shown.contains_key(name) {
            nodes += 1;
            bytes += name.len();
            name = path::parent(name);
        }
        let old = self.shown.get(path).copied().unwrap_or(0);
        if self.shown.len() + nodes > NODES || self.bytes + bytes - old > BYTES {
            self.complain(path, "the host has too much for the guest");
            return false;
        }
        let mut name = path;
        while name != "/" && Some(name) != self.vm.as_deref() && !self.shown.contains_key(name) {
            self.shown.insert(name.to_string(), 0);
            self.bytes += name.len();
            name = path::parent(name);
        }
        self.bytes = self.bytes + len - old;
        self.shown.insert(path.to_string(), len);
        true
    }

    /// Counts a node and those below it no more.
    fn forget(&mut self, path: &str) {
        let bytes = &mut self.bytes;
        self.shown.retain(|name, len| {
            let stays = !is_within(name, path);
            if !stays {
                *bytes -= name.len() + *len;
            }
            stays
        });
    }

    fn complain(&mut self, path: &str, why: &str) {
        self.complaints = self.complaints.saturating_add(1);
        if self.complaints <= COMPLAINTS {
            log::warn!("xenstore: {path} is not shown to the guest: {why}");
        }
    }

    /// Whether the guest has been shown what the host had for it at boot.
    pub fn is_up_to_date(&self) -> bool {
        !self.is_behind && self.is_idle()
    }

    /// Whether nothing waits and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.urgent.is_empty()
            && self.waiting.is_empty()
            && self.listing.is_empty()
            && self.in_flight.is_empty()
    }
}

/// Whether the toolstack asks for something by a node: the shim reads it itself, or shows it to the
/// guest in its own way.
fn is_from_toolstack(path: &str) -> bool {
    [SHUTDOWN, SYSRQ, TARGET].contains(&path) || cpu_number(path).is_some()
}
