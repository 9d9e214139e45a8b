//! What of the real store the guest is shown, and the queue from there.
//!
//! A watch only says that something may have changed.  Each name it gives is read, once however
//! often it is given, and the guest's node is written only if it differs: so neither the first
//! event of a watch nor the echo of what was published itself is seen by the guest.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::string::{String, ToString as _};

use super::super::VirtualStore;
use super::super::path::{is_within, join};
use super::super::seed::{REPORTS, cpu_number, less_hidden};
use super::{SHUTDOWN, SYSRQ};
use crate::host::StoreOp;
use crate::points::GuestStore as _;

/// What is watched in the real store.
pub const WATCHED: [&str; 5] = [SHUTDOWN, SYSRQ, TARGET, "cpu", "data"];

const TARGET: &str = "memory/target";

/// Reads on their way.
const IN_FLIGHT: usize = 4;
/// Names that wait to be read.
const WAITING: usize = 512;

/// The way in.  Names are relative to the domain's directory.
#[derive(Debug)]
pub struct Inward {
    hidden_kib: u64,
    waiting: BTreeSet<String>,
    in_flight: VecDeque<String>,
}

impl Inward {
    /// Makes the way in for a guest whose memory sizes are shown less `hidden_kib`.
    pub fn new(hidden_kib: u64) -> Self {
        Self {
            hidden_kib,
            waiting: BTreeSet::new(),
            in_flight: VecDeque::new(),
        }
    }

    /// From now on memory sizes are shown less `kib`.
    pub fn hide(&mut self, kib: u64) {
        self.hidden_kib = kib;
    }

    /// Begins anew with another store.
    pub fn restart(&mut self) {
        self.waiting.clear();
        self.in_flight.clear();
    }

    /// Takes the name that a watch gave.
    pub fn changed(&mut self, path: String, dir: &str, guest: &VirtualStore) {
        if path == "cpu" {
            // The first event: any of them may be another than before the migration.
            for number in guest.list(&join(dir, "cpu")) {
                self.want(&join(&join("cpu", &number), "availability"));
            }
        } else if is_shown(&path) {
            self.want(&path);
        }
    }

    /// Has a node read.
    pub fn want(&mut self, path: &str) {
        // What the toolstack asks for in `control` is never crowded out.
        if self.waiting.len() < WAITING || !is_within(path, "data") {
            self.waiting.insert(path.to_string());
        } else {
            log::warn!("xenstore: too many changes by the host; that of {path} is missed");
        }
    }

    /// Returns the next read, if one may go out.
    pub fn next_read(&mut self) -> Option<StoreOp> {
        if self.in_flight.len() >= IN_FLIGHT {
            return None;
        }
        let path = self.waiting.pop_first()?;
        self.in_flight.push_back(path.clone());
        Some(StoreOp::Read(path))
    }

    /// Returns what the answer that has come is about.
    pub fn answered(&mut self) -> Option<String> {
        self.in_flight.pop_front()
    }

    /// Shows the guest what the host has in a node, or that it has none.
    pub fn apply(&self, path: &str, value: Option<&[u8]>, dir: &str, guest: &mut VirtualStore) {
        let node = join(dir, path);
        let old = guest.read(&node);
        if is_within(path, "data") {
            match value {
                Some(value) if old.as_deref() == Some(value) => {}
                Some(_) if old.is_none() && !guest.has_room() => {
                    log::warn!("xenstore: the guest's store is full; {path} is not shown");
                }
                Some(value) => guest.write_as_host(&node, value),
                // The directory itself goes only when the guest removes it.
                None if path != "data" => guest.remove(&node),
                None => {}
            }
            return;
        }
        // Anything else exists already, or the guest is not to have it.
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
    }

    /// Whether nothing waits and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty()
    }
}

/// Whether the guest is shown a node, or it is a request that the shim reads itself.
fn is_shown(path: &str) -> bool {
    let fixed = [SHUTDOWN, SYSRQ, TARGET].contains(&path);
    let data = is_within(path, "data") && !is_within(path, REPORTS);
    fixed || data || cpu_number(path).is_some()
}
