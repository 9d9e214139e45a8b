//! A guest's store, a host's, and the mirror between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xen_abi::xs_wire::{Header, MsgType};
use xen_abi::{DomId, Errno, Mfn, Port};

use crate::host::store::HostStore;
use crate::host::{StoreClient, StoreEvent, StoreOp, Tag};
use crate::points::GuestStore as _;
use crate::points::xenstore::mirror::{Action, Mirror, Sides, is_mirror_tag};
use crate::points::xenstore::seed::{SeedParams, seed};
use crate::points::xenstore::{Limits, VirtualStore};

pub(super) const DIR: &str = "/local/domain/1";

pub(super) enum Job {
    Op(StoreOp),
    Replace(String, Vec<u8>, Vec<u8>),
}

/// The real store: names relative to the domain's directory.
#[derive(Default)]
pub(super) struct FakeHost {
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
        let mut host = Self::default();
        for (path, value) in [
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

    pub(super) fn fire(&mut self, path: &str) {
        for (tag, watched) in &self.watches {
            if crate::points::xenstore::path::is_within(path, watched) {
                self.events
                    .push_back((*tag, StoreEvent::Changed(path.into())));
            }
        }
    }

    /// A tool on the host writes.
    pub(super) fn set(&mut self, path: &str, value: &str) {
        self.nodes.insert(path.into(), value.into());
        self.fire(path);
    }

    pub(super) fn unset(&mut self, path: &str) {
        self.nodes.remove(path);
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
            Job::Op(StoreOp::Read(path)) => self.nodes.get(&path).cloned().ok_or(Errno::ENOENT),
            Job::Op(StoreOp::Write(path, value)) => {
                self.writes += 1;
                self.touched.insert(path.clone());
                self.nodes.insert(path.clone(), value);
                self.fire(&path);
                Ok(Vec::new())
            }
            Job::Op(StoreOp::Remove(path)) => {
                self.writes += 1;
                self.touched.insert(path.clone());
                let below = |name: &String| !crate::points::xenstore::path::is_within(name, &path);
                self.nodes.retain(|name, _| below(name));
                self.fire(&path);
                Ok(Vec::new())
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
    pub(super) actions: Vec<Action>,
}

impl World {
    pub(super) fn new() -> Self {
        let host = FakeHost::fresh();
        let mut guest = VirtualStore::new(DomId(1), Limits::default());
        let params = SeedParams {
            hidden_kib: 1024,
            store: (Port(1), Mfn(1)),
            console: (Port(2), Mfn(2)),
        };
        let real: Vec<_> = host.nodes.clone().into_iter().collect();
        seed(&mut guest, &real, &params);
        let mut mirror = Mirror::new(guest.guest_dir());
        mirror.hide(1024);
        let mut world = Self {
            guest,
            host,
            mirror,
            actions: Vec::new(),
        };
        world.attach();
        world.settle();
        world
    }

    pub(super) fn sides(&mut self) -> (&mut Mirror, Sides<'_>) {
        let sides = Sides {
            guest: &mut self.guest,
            host: &mut self.host,
        };
        (&mut self.mirror, sides)
    }

    pub(super) fn attach(&mut self) {
        let (mirror, mut sides) = self.sides();
        mirror.attach(&mut sides);
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
        let (mirror, mut sides) = self.sides();
        mirror.guest_changed(&mut sides, &names);
    }

    pub(super) fn write(&mut self, path: &str, value: &str) {
        self.ask(MsgType::WRITE, &format!("{path}\0{value}"));
    }

    pub(super) fn deliver(&mut self) -> bool {
        let Some((tag, event)) = self.host.events.pop_front() else {
            return false;
        };
        assert!(is_mirror_tag(tag));
        let (mirror, mut sides) = self.sides();
        let action = mirror.event(&mut sides, tag, event);
        self.actions.extend(action);
        true
    }

    pub(super) fn settle(&mut self) {
        while self.deliver() || self.host.step() {}
        assert!(self.mirror.is_idle());
    }

    pub(super) fn guest_has(&self, path: &str) -> Option<String> {
        let value = self.guest.read(&format!("{DIR}/{path}"))?;
        Some(String::from_utf8(value).expect("text"))
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
        self.host = fresh;
        self.attach();
        self.settle();
    }
}
