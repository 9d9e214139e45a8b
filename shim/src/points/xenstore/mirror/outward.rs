//! What of the guest's store is published in the real one, and the queue towards it.
//!
//! A guest can write faster than the host wants to hear.  So the queue holds *names*, each once;
//! the value is looked up when its turn comes, and only a few requests are on their way at a time.
//! When more names wait than are kept, the queue is rebuilt from what there is.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use xen_abi::Errno;

use super::super::VirtualStore;
use super::super::path::{is_within, join};
use super::super::seed::REPORTS;
use crate::host::StoreOp;
use crate::points::GuestStore as _;

/// Directories of which everything is published.
pub const AREAS: [&str; 4] = ["attr", "data", "drivers", "error"];
/// The nodes that are published besides: what begins like this.
pub const FEATURES: &str = "control/feature-";

/// Requests on their way to the host.
const IN_FLIGHT: usize = 8;
/// Names that wait before the queue is rebuilt.
const WAITING: usize = 512;
/// Nodes published at a time; about what the host's own quota allows.
const PUBLISHED: usize = 1024;
/// Longest name published.  Real ones are far shorter; a hostile guest's could fill the heap.
const NAME: usize = 256;
/// Keys of the shim's own reports.
const KEYS: usize = 32;
/// Errors that are logged one by one.
const ERRORS: u32 = 16;

/// The way out.  Names are relative to the domain's directory.
#[derive(Debug, Default)]
pub struct Outward {
    waiting: BTreeSet<String>,
    in_flight: VecDeque<String>,
    published: BTreeSet<String>,
    reports: BTreeMap<String, Vec<u8>>,
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

impl Outward {
    /// Begins anew with a store that has nothing of what was published.
    pub fn restart(&mut self) {
        self.in_flight.clear();
        self.publish_again();
    }

    fn publish_again(&mut self) {
        self.waiting = self.published.clone();
        self.waiting.extend(self.reports.keys().cloned());
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
        self.publish_again();
        let mut found = Vec::from(AREAS.map(String::from));
        let control = guest.list(&join(dir, "control"));
        found.extend(control.iter().map(|leaf| format!("control/{leaf}")));
        // Names grow while walking, so too long ones end the walk.
        while let Some(path) = found.pop().filter(|_| self.waiting.len() < 2 * PUBLISHED) {
            if is_public(&path) && guest.read(&join(dir, &path)).is_some() {
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
        self.waiting.insert(path);
    }

    /// Returns the next request to the host, if one may go out.
    pub fn next_request(&mut self, dir: &str, guest: &VirtualStore) -> Option<StoreOp> {
        while self.in_flight.len() < IN_FLIGHT {
            let path = self.waiting.pop_first()?;
            if let Some(op) = self.request(&path, dir, guest) {
                self.in_flight.push_back(path);
                return Some(op);
            }
        }
        None
    }

    fn request(&mut self, path: &str, dir: &str, guest: &VirtualStore) -> Option<StoreOp> {
        if let Some(value) = self.reports.get(path) {
            return Some(StoreOp::Write(path.to_string(), value.clone()));
        }
        if let Some(value) = guest.read(&join(dir, path)) {
            if self.published.len() >= PUBLISHED && !self.published.contains(path) {
                self.complain(path, "too much is published already");
                return None;
            }
            self.published.insert(path.to_string());
            return Some(StoreOp::Write(path.to_string(), value));
        }
        self.published.retain(|name| !is_within(name, path));
        // The directories themselves stay: the domain could not make them again.
        let kept = AREAS.contains(&path);
        (!kept).then(|| StoreOp::Remove(path.to_string()))
    }

    /// Takes the answer to the oldest request.
    pub fn written(&mut self, answer: Result<Vec<u8>, Errno>) {
        let path = self.in_flight.pop_front().unwrap_or_default();
        match answer {
            // A node that was never there, or went together with one above.
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(error) => self.complain(&path, &error.to_string()),
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
        let mut names = self.waiting.iter().chain(&self.in_flight);
        names.any(|name| is_within(name, path) || is_within(path, name))
    }

    /// Names that wait, for tests.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty()
    }
}
