//! A guest's store, a host's, and the mirror between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xen_abi::xs_wire::{Header, MsgType};
use xen_abi::{DomId, Errno, Mfn, Port};

use crate::host::store::HostStore;
use crate::host::{StoreClient, StoreEvent, StoreOp, Tag};
use crate::points::GuestStore as _;
use crate::points::TagOwner;
use crate::points::xenstore::mirror::outward::HOST_NODES;
use crate::points::xenstore::mirror::{Mirror, Stores};
use crate::points::xenstore::path::{is_within, join, leaf, parent};
use crate::points::xenstore::seed::{SeedParams, seed};
use crate::points::xenstore::{Limits, VirtualStore};

pub(super) const DIR: &str = "/local/domain/1";

pub(super) enum Job {
    Op(StoreOp),
    Replace(String, Vec<u8>, Vec<u8>),
}

/// The real domain's directory.
pub(super) const HOME: &str = "/local/domain/7";
/// Bytes of a node that the daemon counts besides its value and its children's names: a header, and
/// two permissions.
const NODE_BYTES: usize = 40;
/// The daemon's bound for one node (`quota-max-entry-size`).
const NODE_MAX: usize = 2048;

/// The real store: names relative to the domain's directory, or absolute.  What a domain may own
/// and do there is as in xenstored: it makes nodes only below its own, those above that are missing
/// are made and counted with them, and neither nodes nor bytes of one exceed the quotas.  The host's
/// tools may do anything.
pub(super) struct FakeHost {
    /// Nodes that the domain may own (`quota-nb-entries`).
    pub(super) quota: usize,
    /// What the domain may not read.
    pub(super) secret: BTreeSet<String>,
    /// What was written or removed by the shim, in order.
    pub(super) log: Vec<String>,
    pub(super) nodes: BTreeMap<String, Vec<u8>>,
    pub(super) jobs: VecDeque<(Tag, Job)>,
    pub(super) events: VecDeque<(Tag, StoreEvent)>,
    pub(super) watches: Vec<(Tag, String)>,
    /// Names that were ever written or removed by the shim, and how often in all.
    pub(super) touched: BTreeSet<String>,
    pub(super) writes: usize,
    pub(super) deepest: usize,
}

impl StoreClient for FakeHost {
    fn submit(&mut self, tag: Tag, op: StoreOp) {
        self.jobs.push_back((tag, Job::Op(op)));
        self.deepest = self.deepest.max(self.jobs.len());
    }
}

impl HostStore for FakeHost {
    fn replace_if(&mut self, tag: Tag, path: String, old: Vec<u8>, new: Vec<u8>) {
        self.jobs.push_back((tag, Job::Replace(path, old, new)));
    }
}

impl FakeHost {
    pub(super) fn fresh() -> Self {
        let mut host = Self {
            quota: HOST_NODES,
            secret: BTreeSet::new(),
            log: Vec::new(),
            nodes: BTreeMap::new(),
            jobs: VecDeque::new(),
            events: VecDeque::new(),
            watches: Vec::new(),
            touched: BTreeSet::new(),
            writes: 0,
            deepest: 0,
        };
        for (path, value) in [
            ("domid", "7"),
            ("control", ""),
            ("control/feature-poweroff", ""),
            ("control/feature-reboot", ""),
            ("control/feature-suspend", ""),
            ("device", ""),
            ("device/suspend/event-channel", ""),
            ("drivers", ""),
            ("feature", ""),
            ("attr", ""),
            ("error", ""),
            ("/vm/1-2/uuid", "1-2"),
            ("/vm/1-2/name", "g"),
            ("/vm/1-2/start_time", "1700000000.00"),
            ("name", "g"),
            ("vm", "/vm/1-2"),
            ("memory/target", "131072"),
            ("memory/static-max", "262144"),
            ("cpu/0/availability", "online"),
            ("cpu/1/availability", "offline"),
            ("control/shutdown", ""),
            ("control/sysrq", ""),
            ("data", ""),
        ] {
            host.nodes.insert(path.into(), value.into());
        }
        host
    }

    /// Whether the domain owns a node: what the toolstack gives it, and what is below that.
    fn is_owned(path: &str) -> bool {
        let its = [
            "attr",
            "data",
            "drivers",
            "error",
            "feature",
            "control/shutdown",
        ];
        its.iter().any(|dir| is_within(path, dir))
            || path == "control/sysrq"
            || path.starts_with("control/feature-")
            || path.starts_with("device/suspend/")
            || path.matches('/').count() >= 2 && is_within(path, "device")
    }

    /// Nodes that the domain owns.
    pub(super) fn owned(&self) -> usize {
        self.nodes
            .keys()
            .filter(|name| Self::is_owned(name))
            .count()
    }

    fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    /// Bytes that the daemon counts for a node.
    fn size(&self, path: &str, value: usize) -> usize {
        let below = format!("{path}/");
        let children = self
            .nodes
            .keys()
            .filter_map(|name| name.strip_prefix(&below));
        let names: BTreeSet<&str> = children.filter_map(|rest| rest.split('/').next()).collect();
        NODE_BYTES + value + names.iter().map(|name| name.len() + 1).sum::<usize>()
    }

    /// The domain writes a node.
    pub(super) fn write(&mut self, path: &str, value: Vec<u8>) -> Result<Vec<u8>, Errno> {
        if !Self::is_owned(path) {
            return Err(Errno::EACCES);
        }
        if self.size(path, value.len()) >= NODE_MAX {
            return Err(Errno::ENOSPC);
        }
        let mut missing = Vec::new();
        let mut name = path;
        while name != "/" && !self.has(name) {
            missing.push(name.to_owned());
            name = parent(name);
        }
        if let Some(last) = missing.last() {
            if name == "/" || !Self::is_owned(last) || !Self::is_owned(name) {
                return Err(Errno::EACCES);
            }
            let grown = self.size(name, self.nodes[name].len()) + leaf(last).len() + 1;
            if self.owned() + missing.len() > self.quota || grown >= NODE_MAX {
                return Err(Errno::ENOSPC);
            }
        }
        for name in missing {
            self.nodes.insert(name, Vec::new());
        }
        self.nodes.insert(path.to_owned(), value);
        self.fire(path);
        Ok(Vec::new())
    }

    pub(super) fn fire(&mut self, path: &str) {
        if self.is_secret(path) {
            return;
        }
        for (tag, watched) in &self.watches {
            let name = match watched.starts_with('/') && !path.starts_with('/') {
                true => format!("{HOME}/{path}"),
                false => path.to_owned(),
            };
            if is_within(&name, watched) {
                self.events.push_back((*tag, StoreEvent::Changed(name)));
            }
        }
    }

    fn is_secret(&self, path: &str) -> bool {
        self.secret.iter().any(|dir| is_within(path, dir))
    }

    fn children(&self, path: &str) -> Vec<u8> {
        let relative = |name: &String| match path.strip_prefix(HOME) {
            Some(_) if name.starts_with('/') => None,
            Some("") => Some(name.clone()),
            Some(dir) => Some(name.strip_prefix(&format!("{}/", &dir[1..]))?.to_owned()),
            None => Some(name.strip_prefix(&format!("{path}/"))?.to_owned()),
        };
        let names = self.nodes.keys().filter_map(relative);
        let first = |name: String| name.split('/').next().map(|leaf| format!("{leaf}\0"));
        let mut leaves: Vec<String> = names.filter_map(first).collect();
        leaves.dedup();
        leaves.concat().into_bytes()
    }

    /// A tool on the host writes.
    pub(super) fn set(&mut self, path: &str, value: &str) {
        self.nodes.insert(path.into(), value.into());
        self.fire(path);
    }

    pub(super) fn unset(&mut self, path: &str) {
        self.nodes.retain(|name, _| !is_within(name, path));
        self.fire(path);
    }

    pub(super) fn get(&self, path: &str) -> Option<&str> {
        self.nodes
            .get(path)
            .map(|value| std::str::from_utf8(value).expect("text"))
    }

    /// Runs the oldest request.
    pub(super) fn step(&mut self) -> bool {
        let Some((tag, job)) = self.jobs.pop_front() else {
            return false;
        };
        let reply = match job {
            Job::Op(StoreOp::Read(path)) if self.is_secret(&path) => Err(Errno::EACCES),
            Job::Op(StoreOp::Read(path)) => self.nodes.get(&path).cloned().ok_or(Errno::ENOENT),
            Job::Op(StoreOp::Directory(path)) => Ok(self.children(&path)),
            Job::Op(StoreOp::Write(path, value)) => {
                self.writes += 1;
                self.touched.insert(path.clone());
                self.log.push(path.clone());
                self.write(&path, value)
            }
            Job::Op(StoreOp::Remove(path)) => {
                self.writes += 1;
                self.touched.insert(path.clone());
                self.log.push(path.clone());
                let is_there = self.has(&path);
                self.nodes.retain(|name, _| !is_within(name, &path));
                self.fire(&path);
                is_there.then(Vec::new).ok_or(Errno::ENOENT)
            }
            Job::Op(StoreOp::Watch(path)) => {
                self.watches.push((tag, path.clone()));
                self.events
                    .push_back((tag, StoreEvent::Reply(Ok(Vec::new()))));
                self.events.push_back((tag, StoreEvent::Changed(path)));
                return true;
            }
            Job::Op(other) => panic!("the mirror does not ask for {other:?}"),
            Job::Replace(path, old, new) => {
                if self.nodes.get(&path) == Some(&old) {
                    self.nodes.insert(path.clone(), new);
                    self.fire(&path);
                    Ok(b"T".to_vec())
                } else {
                    Ok(b"F".to_vec())
                }
            }
        };
        self.events.push_back((tag, StoreEvent::Reply(reply)));
        true
    }
}

pub(super) struct World {
    pub(super) guest: VirtualStore,
    pub(super) host: FakeHost,
    pub(super) mirror: Mirror,
}

impl World {
    pub(super) fn new() -> Self {
        Self::on(FakeHost::fresh())
    }

    pub(super) fn on(host: FakeHost) -> Self {
        let mut guest = VirtualStore::new(DomId(1), Limits::default());
        let params = SeedParams {
            hidden_kib: 1024,
            store: (Port(1), Mfn(1)),
            console: (Port(2), Mfn(2)),
        };
        let of_home = |(name, _): &(String, Vec<u8>)| !name.starts_with('/');
        let real: Vec<_> = host.nodes.clone().into_iter().filter(of_home).collect();
        seed(&mut guest, &real, &params);
        let mut mirror = Mirror::new(guest.guest_dir());
        mirror.hide(1024);
        let mut world = Self {
            guest,
            host,
            mirror,
        };
        world.attach();
        world.settle();
        world
    }

    pub(super) fn stores(&mut self) -> (&mut Mirror, Stores<'_>) {
        let stores = Stores {
            guest: &mut self.guest,
            host: &mut self.host,
        };
        (&mut self.mirror, stores)
    }

    pub(super) fn attach(&mut self) {
        let (mirror, mut stores) = self.stores();
        mirror.attach(&mut stores);
    }

    /// A request of the guest's; answers and events are thrown away.
    pub(super) fn ask(&mut self, kind: MsgType, payload: &str) {
        let (core, id) = self.guest.core_mut();
        let header = Header {
            kind: kind.0,
            req_id: 0,
            tx_id: 0,
            len: 0,
        };
        let changes = core.handle(id, &header, payload.as_bytes());
        core.connection_mut(id).queue.clear();
        let names: Vec<_> = changes.into_iter().map(|change| change.name).collect();
        let (mirror, mut stores) = self.stores();
        mirror.guest_changed(&mut stores, &names);
    }

    pub(super) fn write(&mut self, path: &str, value: &str) {
        self.ask(MsgType::WRITE, &format!("{path}\0{value}"));
    }

    pub(super) fn deliver(&mut self) -> bool {
        let Some((tag, event)) = self.host.events.pop_front() else {
            return false;
        };
        let Some(TagOwner::Mirror { what, epoch }) = TagOwner::of(tag) else {
            panic!("{tag:?} is not the mirror's");
        };
        let (mirror, mut stores) = self.stores();
        mirror.event(&mut stores, what, epoch, event);
        true
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..100_000 {
            if !(self.deliver() || self.host.step()) {
                assert!(self.mirror.is_idle(), "{:?}", self.mirror);
                return;
            }
        }
        panic!("the exchange never ends");
    }

    pub(super) fn guest_has(&self, path: &str) -> Option<String> {
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("{DIR}/{path}"),
        };
        let value = self.guest.read(&path)?;
        Some(String::from_utf8(value).expect("text"))
    }

    /// All nodes of the guest's store.
    pub(super) fn everything(&self) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        let mut found = vec![String::from("/")];
        while let Some(path) = found.pop() {
            found.extend(self.guest.list(&path).iter().map(|leaf| join(&path, leaf)));
            all.extend(self.guest.read(&path).map(|value| (path, value)));
        }
        all
    }

    /// Whether the guest has events or answers waiting.
    pub(super) fn guest_is_told(&mut self) -> bool {
        let (core, id) = self.guest.core_mut();
        let told = !core.connection(id).queue.is_empty();
        core.connection_mut(id).queue.clear();
        told
    }

    /// The same guest in a new domain of another host.
    pub(super) fn migrate(&mut self) {
        let mut fresh = FakeHost::fresh();
        fresh.nodes.insert(
            "memory/target".into(),
            self.host.nodes["memory/target"].clone(),
        );
        self.arrive(fresh);
        self.release();
    }

    /// The same guest in a new domain, whose devices have not connected yet.
    pub(super) fn arrive(&mut self, host: FakeHost) {
        self.host = host;
        let (mirror, mut stores) = self.stores();
        mirror.reattach(&mut stores);
        while self.deliver() || self.host.step() {}
    }

    pub(super) fn release(&mut self) {
        let (mirror, mut stores) = self.stores();
        mirror.release(&mut stores);
        self.settle();
    }

    pub(super) fn leave_room(&mut self, devices: usize) {
        let (mirror, mut stores) = self.stores();
        mirror.leave_room(&mut stores, devices);
        self.settle();
    }
}
