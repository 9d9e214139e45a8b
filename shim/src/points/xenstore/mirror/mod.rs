//! The exchange between the guest's store and the real one.
//!
//! Outwards goes what host tools read of a guest; inwards what the host lets it read.  A request
//! to suspend is for the shim ([`SuspendRequest`]) and never shown.  What goes which way is data:
//! [`outward`], [`inward`] and [`hidden`] hold the rules and the bounded queues, this module the
//! requests of `control/`.
//!
//! Names towards the host are relative, or below the domain's directory as its real id has it,
//! which only [`inward`] knows.  After a migration [`Mirror::reattach`] sets the watches again,
//! publishes again what was published, and reads again what the host says; where that is what the
//! guest has already, the guest is told nothing.

pub mod hidden;
pub mod inward;
pub mod outward;

#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::Errno;

use super::VirtualStore;
use super::path;
use crate::host::store::HostStore;
use crate::host::{StoreEvent, StoreOp, Tag};
use crate::points::GuestStore as _;
use crate::points::TagOwner;
use crate::points::suspend::SuspendRequest;
use inward::{Asked, Inward, WATCHED};
use outward::Outward;

/// Where the toolstack asks for a shutdown or a suspend.
const SHUTDOWN: &str = "control/shutdown";
/// Where the toolstack sends a key for the guest's magic SysRq.
const SYSRQ: &str = "control/sysrq";
/// The toolstack's request to suspend.
const SUSPEND: &[u8] = b"suspend";
/// The requests that the guest is shown.
const SHOWN_SHUTDOWNS: [&[u8]; 3] = [b"poweroff", b"reboot", b"halt"];

/// What a submission is about; carried in its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Watch,
    Read,
    Write,
    Clear,
    Acknowledge,
}

const KINDS: [Kind; 5] = [
    Kind::Watch,
    Kind::Read,
    Kind::Write,
    Kind::Clear,
    Kind::Acknowledge,
];

/// Makes tags that tell the answers of one attachment from those of another.
#[derive(Clone, Copy, Debug)]
struct Tags {
    epoch: u32,
}

impl Tags {
    fn of(self, kind: Kind) -> Tag {
        let (what, epoch) = (kind as u8, self.epoch);
        TagOwner::Mirror { what, epoch }.tag()
    }

    /// What an answer is about, if it is one of this attachment.
    fn kind(self, what: u8, epoch: u32) -> Option<Kind> {
        let is_of_now = epoch == self.epoch;
        KINDS
            .into_iter()
            .find(|kind| is_of_now && *kind as u8 == what)
    }
}

/// The two stores.
pub struct Stores<'a> {
    /// The guest's store.
    pub guest: &'a mut VirtualStore,
    /// The real store.
    pub host: &'a mut dyn HostStore,
}

/// The exchange.
#[derive(Debug)]
pub struct Mirror {
    guest_dir: String,
    tags: Tags,
    outward: Outward,
    inward: Inward,
    /// The host's request to suspend, which `Guest::catch_up` takes from here.
    pub suspend: SuspendRequest,
    /// What the guest was shown in `control/shutdown` and `control/sysrq` and has not cleared.
    shown: [Option<Vec<u8>>; 2],
}

impl Mirror {
    /// Makes the exchange for the guest with directory `guest_dir`.  Nothing but reports is
    /// exchanged before [`attach`](Self::attach).
    pub fn new(guest_dir: String) -> Self {
        Self {
            guest_dir,
            tags: Tags { epoch: 0 },
            outward: Outward::default(),
            inward: Inward::new(0),
            suspend: SuspendRequest::default(),
            shown: [None, None],
        }
    }

    /// From now on the guest's memory sizes are shown less `kib`, the shim's share.
    pub fn hide(&mut self, kib: u64) {
        self.inward.hide(kib);
    }

    /// Connects to the real store of a new domain, at boot.
    pub fn attach(&mut self, stores: &mut Stores<'_>) {
        self.connect(stores, false);
    }

    /// Connects to the real store of a new domain after a migration.  The devices come first: only
    /// the host's requests and the shim's own reports are exchanged before
    /// [`release`](Self::release).
    pub fn reattach(&mut self, stores: &mut Stores<'_>) {
        self.connect(stores, true);
    }

    /// Exchanges everything.
    pub fn release(&mut self, stores: &mut Stores<'_>) {
        self.outward.release();
        self.pump(stores);
    }

    /// Leaves room in the real store for the nodes of this many devices.
    pub fn leave_room(&mut self, stores: &mut Stores<'_>, devices: usize) {
        if self.outward.leave_room(devices) {
            self.pump(stores);
        }
    }

    /// The real store is full although room was left: what the guest has there makes way.  `false`
    /// when there is nothing.
    pub fn make_way(&mut self, stores: &mut Stores<'_>) -> bool {
        let has_some = self.outward.is_making_way() || self.outward.make_way();
        self.pump(stores);
        has_some
    }

    fn connect(&mut self, stores: &mut Stores<'_>, is_held: bool) {
        // First, so that nothing of the old store is taken for an answer of the new one.
        self.tags.epoch = self.tags.epoch.wrapping_add(1);
        self.suspend.forget();
        self.inward.restart(&self.guest_dir, stores.guest);
        self.outward.restart(is_held);
        // Watches before reads: what is written after a read is then told, and nothing falls
        // between.
        for path in WATCHED {
            let watch = StoreOp::Watch(String::from(path));
            stores.host.submit(self.tags.of(Kind::Watch), watch);
        }
        self.pump(stores);
    }

    /// Takes what the guest has changed
    /// ([`take_guest_changes`](VirtualStore::take_guest_changes)).
    pub fn guest_changed(&mut self, stores: &mut Stores<'_>, changed: &[String]) {
        for name in changed {
            if name == "/" {
                self.outward.resync(&self.guest_dir, stores.guest);
            } else if let Some(path) = self.relative(name) {
                self.outward.add(path, &self.guest_dir, stores.guest);
            }
        }
        for (index, request) in [SHUTDOWN, SYSRQ].into_iter().enumerate() {
            let node = path::join(&self.guest_dir, request);
            if changed.iter().any(|name| path::concerns(name, &node)) {
                self.guest_answered(stores, index, &node, request);
            }
        }
        self.pump(stores);
    }

    /// The guest wrote a request's node: once it is empty, the real one is cleared, unless the
    /// host has replaced what the guest was shown.
    fn guest_answered(&mut self, stores: &mut Stores<'_>, index: usize, node: &str, request: &str) {
        if stores
            .guest
            .read(node)
            .is_some_and(|value| !value.is_empty())
        {
            return;
        }
        if let Some(shown) = self.shown[index].take() {
            let tag = self.tags.of(Kind::Clear);
            let path = String::from(request);
            stores.host.replace_if(tag, path, shown, Vec::new());
        }
    }

    /// Takes an event of the real store ([`TagOwner::Mirror`]).
    pub fn event(&mut self, stores: &mut Stores<'_>, what: u8, epoch: u32, event: StoreEvent) {
        let Some(kind) = self.tags.kind(what, epoch) else {
            return;
        };
        match (kind, event) {
            (_, StoreEvent::Changed(path)) => {
                self.inward.changed(&path, &self.guest_dir, stores.guest);
            }
            (Kind::Watch | Kind::Clear, StoreEvent::Reply(answer)) => {
                if let Err(error) = answer {
                    log::error!("xenstore: watching or answering the host: {error}");
                }
            }
            (Kind::Write, StoreEvent::Reply(answer)) => self.outward.written(answer),
            (Kind::Read, StoreEvent::Reply(answer)) => {
                if let Some(asked) = self.inward.answered() {
                    self.answered(stores, asked, answer);
                }
            }
            (Kind::Acknowledge, StoreEvent::Reply(answer)) => {
                if !self.suspend.acknowledged(answer) {
                    // There may be another request in the node by now.
                    self.inward.want(SHUTDOWN);
                }
            }
        }
        self.pump(stores);
    }

    fn answered(&mut self, stores: &mut Stores<'_>, asked: Asked, answer: Result<Vec<u8>, Errno>) {
        match asked {
            Asked::Value(path) => self.host_says(stores, &path, answer),
            Asked::Children(dir) => match answer {
                Ok(names) => self.inward.listed(&dir, &names),
                // Gone meanwhile, or not for us.
                Err(Errno::ENOENT | Errno::EACCES) => {}
                Err(error) => log::warn!("xenstore: listing the host's {dir}: {error}"),
            },
            Asked::Domid => {
                let dirs = self.inward.found_domid(&answer.unwrap_or_default());
                for dir in dirs.into_iter().flatten() {
                    let tag = self.tags.of(Kind::Watch);
                    stores.host.submit(tag, StoreOp::Watch(dir));
                }
            }
        }
    }

    fn host_says(&mut self, stores: &mut Stores<'_>, path: &str, answer: Result<Vec<u8>, Errno>) {
        let value = match answer {
            Ok(value) => Some(value),
            // Not for us is as good as not there.
            Err(Errno::ENOENT | Errno::EACCES) => None,
            Err(error) => {
                log::warn!("xenstore: reading the host's {path}: {error}");
                return;
            }
        };
        match path {
            SHUTDOWN => self.shutdown(stores, value.unwrap_or_default()),
            SYSRQ => self.show(stores, 1, value.unwrap_or_default()),
            // What was read is older than what the guest has done since: looks again afterwards.
            _ if self.outward.is_under_way(path) => self.inward.want(path),
            _ if value.is_none() && self.outward.has_left(path) => {}
            _ => self
                .inward
                .apply(path, value.as_deref(), &self.guest_dir, stores.guest),
        }
    }

    fn shutdown(&mut self, stores: &mut Stores<'_>, value: Vec<u8>) {
        if value == SUSPEND {
            if self.suspend.found_in_store() {
                let (tag, path) = (self.tags.of(Kind::Acknowledge), String::from(SHUTDOWN));
                stores.host.replace_if(tag, path, value, Vec::new());
            }
        } else if SHOWN_SHUTDOWNS.contains(&value.as_slice()) {
            self.show(stores, 0, value);
        } else if !value.is_empty() {
            log::warn!(
                "xenstore: the host asks for a {} byte unknown shutdown",
                value.len()
            );
        }
    }

    /// Shows the guest a request, if it is one.
    fn show(&mut self, stores: &mut Stores<'_>, index: usize, value: Vec<u8>) {
        if value.is_empty() || self.shown[index].as_ref() == Some(&value) {
            return;
        }
        let node = path::join(&self.guest_dir, [SHUTDOWN, SYSRQ][index]);
        let owner = stores.guest.guest_domid();
        stores.guest.write(&node, &value, owner);
        // Remembered, to clear the host's node only if it still holds what the guest has answered.
        self.shown[index] = Some(value);
    }

    /// Publishes something of the shim's own for the host: `data/unmoved/<key>`.  The last value
    /// of each key is published again after a migration.
    pub fn report(&mut self, stores: &mut Stores<'_>, key: &str, value: &[u8]) {
        self.outward.report(key, value);
        self.pump(stores);
    }

    /// Whether the guest has been shown what the host had for it at boot.
    pub fn is_up_to_date(&self) -> bool {
        self.inward.is_up_to_date()
    }

    /// Whether the real store has everything that is to go there, and has answered everything.
    pub fn is_idle(&self) -> bool {
        self.outward.is_idle() && self.inward.is_idle()
    }

    /// Names that wait to go out, for tests.
    #[cfg(test)]
    pub(super) fn outward_waiting(&self) -> usize {
        self.outward.waiting()
    }

    fn pump(&mut self, stores: &mut Stores<'_>) {
        while let Some(op) = self.inward.next_read(self.outward.is_held()) {
            stores.host.submit(self.tags.of(Kind::Read), op);
        }
        while let Some(op) = self.outward.next_request(&self.guest_dir, stores.guest) {
            stores.host.submit(self.tags.of(Kind::Write), op);
        }
    }

    fn relative<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(&self.guest_dir)?.strip_prefix('/')
    }
}
