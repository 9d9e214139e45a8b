//! The mirror between a guest's store and a fake real one that runs one request at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xen_abi::xs_wire::{Header, MsgType};
use xen_abi::{DomId, Errno, Mfn, Port};

use super::outward::is_public;
use super::{Action, Mirror, Sides, is_mirror_tag};
use crate::host::store::HostStore;
use crate::host::{StoreClient, StoreEvent, StoreOp, Tag};
use crate::points::xenstore::seed::{SeedParams, seed};
use crate::points::xenstore::{Limits, VirtualStore};
use crate::points::{DeviceClass, DeviceId, GuestStore as _, device_tag};

const DIR: &str = "/local/domain/1";

enum Job {
    Op(StoreOp),
    Replace(String, Vec<u8>, Vec<u8>),
}

/// The real store: names relative to the domain's directory.
#[derive(Default)]
struct FakeHost {
    nodes: BTreeMap<String, Vec<u8>>,
    jobs: VecDeque<(Tag, Job)>,
    events: VecDeque<(Tag, StoreEvent)>,
    watches: Vec<(Tag, String)>,
    /// Names that were ever written or removed by the shim, and how often in all.
    touched: BTreeSet<String>,
    writes: usize,
    deepest: usize,
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
    fn fresh() -> Self {
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

    fn fire(&mut self, path: &str) {
        for (tag, watched) in &self.watches {
            if crate::points::xenstore::path::is_within(path, watched) {
                self.events
                    .push_back((*tag, StoreEvent::Changed(path.into())));
            }
        }
    }

    /// A tool on the host writes.
    fn set(&mut self, path: &str, value: &str) {
        self.nodes.insert(path.into(), value.into());
        self.fire(path);
    }

    fn unset(&mut self, path: &str) {
        self.nodes.remove(path);
        self.fire(path);
    }

    fn get(&self, path: &str) -> Option<&str> {
        self.nodes
            .get(path)
            .map(|value| std::str::from_utf8(value).expect("text"))
    }

    /// Runs the oldest request.
    fn step(&mut self) -> bool {
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

struct World {
    guest: VirtualStore,
    host: FakeHost,
    mirror: Mirror,
    actions: Vec<Action>,
}

impl World {
    fn new() -> Self {
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

    fn sides(&mut self) -> (&mut Mirror, Sides<'_>) {
        let sides = Sides {
            guest: &mut self.guest,
            host: &mut self.host,
        };
        (&mut self.mirror, sides)
    }

    fn attach(&mut self) {
        let (mirror, mut sides) = self.sides();
        mirror.attach(&mut sides);
    }

    /// A request of the guest's; answers and events are thrown away.
    fn ask(&mut self, kind: MsgType, payload: &str) {
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

    fn write(&mut self, path: &str, value: &str) {
        self.ask(MsgType::WRITE, &format!("{path}\0{value}"));
    }

    fn deliver(&mut self) -> bool {
        let Some((tag, event)) = self.host.events.pop_front() else {
            return false;
        };
        assert!(is_mirror_tag(tag));
        let (mirror, mut sides) = self.sides();
        let action = mirror.event(&mut sides, tag, event);
        self.actions.extend(action);
        true
    }

    fn settle(&mut self) {
        while self.deliver() || self.host.step() {}
        assert!(self.mirror.is_idle());
    }

    fn guest_has(&self, path: &str) -> Option<String> {
        let value = self.guest.read(&format!("{DIR}/{path}"))?;
        Some(String::from_utf8(value).expect("text"))
    }

    /// Whether the guest has events or answers waiting.
    fn guest_is_told(&mut self) -> bool {
        let (core, id) = self.guest.core_mut();
        let told = !core.connection(id).queue.is_empty();
        core.connection_mut(id).queue.clear();
        told
    }

    /// The same guest in a new domain of another host.
    fn migrate(&mut self) {
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

#[test]
fn the_rules_say_what_goes_out() {
    for path in [
        "data",
        "data/a",
        "attr/eth0/ip",
        "error/device/vif/0",
        "drivers/x",
        "control/feature-balloon",
    ] {
        assert!(is_public(path), "{path}");
    }
    for path in [
        "device/suspend/event-channel",
        "data/unmoved",
        "data/unmoved/x",
        "control/shutdown",
        "control/feature-",
        "control/feature-x/y",
        "database",
        "name",
        "device/vif/0/state",
        "memory/target",
        "",
    ] {
        assert!(!is_public(path), "{path}");
    }
    assert!(!is_public(&format!("data/{}", "x".repeat(252))));
}

#[test]
fn the_guest_s_changes_go_out() {
    let mut world = World::new();
    assert_eq!(
        world.host.writes, 0,
        "nothing is published before the guest says something"
    );
    world.write("data/a/b", "1");
    world.write("attr/eth0/ip", "10.0.0.1");
    world.write("control/feature-balloon", "1");
    world.write("device/suspend/event-channel", "9");
    world.write("data/unmoved/state", "forged");
    world.settle();
    assert_eq!(world.host.get("data/a/b"), Some("1"));
    assert_eq!(world.host.get("attr/eth0/ip"), Some("10.0.0.1"));
    assert_eq!(world.host.get("device/suspend/event-channel"), None);
    assert_eq!(world.host.get("data/unmoved/state"), None);
    world.ask(MsgType::RM, "data/a\0");
    world.settle();
    assert_eq!(world.host.get("data/a/b"), None);
    world.ask(MsgType::RM, "data\0");
    world.settle();
    assert_eq!(
        world.host.get("data"),
        Some(""),
        "the directory could not be made again"
    );
}

#[test]
fn the_host_s_requests_come_in_and_are_cleared_by_the_guest() {
    let mut world = World::new();
    world.ask(MsgType::WATCH, "control\0t\0");
    world.guest_is_told();
    for request in ["poweroff", "reboot", "halt"] {
        world.host.set("control/shutdown", request);
        world.settle();
        assert!(world.guest_is_told());
        assert_eq!(
            world.guest_has("control/shutdown").as_deref(),
            Some(request)
        );
        world.write("control/shutdown", "");
        world.settle();
        assert_eq!(world.host.get("control/shutdown"), Some(""));
    }
    world.host.set("control/sysrq", "s");
    world.settle();
    assert_eq!(world.guest_has("control/sysrq").as_deref(), Some("s"));
    world.write("control/sysrq", "");
    world.settle();
    assert_eq!(world.host.get("control/sysrq"), Some(""));
    world.guest_is_told();
    world.host.set("control/shutdown", "crash");
    world.settle();
    assert!(!world.guest_is_told());
    // The guest can not ask the host for anything through this node.
    world.write("control/shutdown", "suspend");
    world.settle();
    assert_eq!(world.host.get("control/shutdown"), Some("crash"));
}

#[test]
fn the_guest_s_answer_does_not_clear_a_later_request() {
    let mut world = World::new();
    world.host.set("control/shutdown", "poweroff");
    world.settle();
    world.write("control/shutdown", "");
    world.host.set("control/shutdown", "suspend");
    world.settle();
    assert_eq!(world.host.get("control/shutdown"), Some("suspend"));
    assert_eq!(world.actions, [Action::SuspendRequested]);
}

#[test]
fn a_suspend_is_the_shim_s_alone() {
    let mut world = World::new();
    world.ask(MsgType::WATCH, "control\0t\0");
    world.guest_is_told();
    for _ in 0..2 {
        world.actions.clear();
        world.host.set("control/shutdown", "suspend");
        world.host.fire("control/shutdown");
        world.settle();
        assert_eq!(world.actions, [Action::SuspendRequested]);
        world.mirror.acknowledge_suspend(&mut world.host);
        world.settle();
        assert_eq!(world.host.get("control/shutdown"), Some(""));
        assert_eq!(world.actions[1..], [Action::SuspendAcknowledged]);
        assert_eq!(world.guest_has("control/shutdown").as_deref(), Some(""));
        assert!(!world.guest_is_told());
    }
}

#[test]
fn a_withdrawn_suspend_is_not_acknowledged() {
    let mut world = World::new();
    world.host.set("control/shutdown", "suspend");
    world.settle();
    world.host.set("control/shutdown", "");
    world.settle();
    assert_eq!(
        world.actions,
        [Action::SuspendRequested, Action::SuspendWithdrawn]
    );
    world.mirror.acknowledge_suspend(&mut world.host);
    assert!(world.host.jobs.is_empty());
    // Withdrawn, and replaced, while the acknowledgement is on its way.
    world.host.set("control/shutdown", "suspend");
    world.settle();
    world.mirror.acknowledge_suspend(&mut world.host);
    world
        .host
        .nodes
        .insert("control/shutdown".into(), b"reboot".to_vec());
    world.settle();
    assert_eq!(
        world.actions[2..],
        [Action::SuspendRequested, Action::SuspendWithdrawn]
    );
    assert_eq!(
        world.guest_has("control/shutdown").as_deref(),
        Some("reboot")
    );
}

#[test]
fn memory_cpus_and_data_come_in() {
    let mut world = World::new();
    assert_eq!(world.guest_has("memory/target").as_deref(), Some("130048"));
    world.host.set("memory/target", "65536");
    world.host.set("cpu/1/availability", "online");
    world.host.set("cpu/0/availability", "nonsense");
    world.host.set("cpu/7/availability", "online");
    world.host.set("data/k", "v");
    world.host.set("data/unmoved/k", "v");
    world.settle();
    assert_eq!(world.guest_has("memory/target").as_deref(), Some("64512"));
    assert_eq!(
        world.guest_has("cpu/1/availability").as_deref(),
        Some("online")
    );
    assert_eq!(
        world.guest_has("cpu/0/availability").as_deref(),
        Some("online")
    );
    assert_eq!(world.guest_has("cpu/7/availability"), None);
    assert_eq!(world.guest_has("data/k").as_deref(), Some("v"));
    assert_eq!(world.guest_has("data/unmoved/k"), None);
    world.host.unset("data/k");
    world.settle();
    assert_eq!(world.guest_has("data/k"), None);
}

#[test]
fn an_old_echo_does_not_undo_what_the_guest_wrote_since() {
    let mut world = World::new();
    world.write("data/k", "1");
    // The write reaches the host; the watch's event is read, and its answer is on its way …
    assert!(world.host.step());
    while world.deliver() {}
    assert!(world.host.step());
    // … when the guest writes again.
    world.write("data/k", "2");
    world.settle();
    assert_eq!(world.guest_has("data/k").as_deref(), Some("2"));
    assert_eq!(world.host.get("data/k"), Some("2"));
}

#[test]
fn after_a_migration_the_guest_is_told_nothing_and_the_host_everything() {
    let mut world = World::new();
    world.write("data/a", "1");
    world.write("attr/os", "linux");
    world.host.set("data/host", "x");
    let (mirror, mut sides) = world.sides();
    mirror.report(&mut sides, "state", b"running");
    world.settle();
    world.ask(MsgType::WATCH, "/local/domain/1\0t\0");
    world.guest_is_told();
    world.migrate();
    assert!(!world.guest_is_told());
    assert_eq!(world.host.get("data/a"), Some("1"));
    assert_eq!(world.host.get("attr/os"), Some("linux"));
    assert_eq!(world.host.get("data/unmoved/state"), Some("running"));
    assert_eq!(world.guest_has("data/host").as_deref(), Some("x"));
    // The watches work in the new place, and what was asked before they were set is not lost.
    world.host.set("control/shutdown", "poweroff");
    world.settle();
    assert!(world.guest_is_told());
    let mut fresh = FakeHost::fresh();
    fresh
        .nodes
        .insert("control/shutdown".into(), b"suspend".to_vec());
    world.host = fresh;
    world.attach();
    world.settle();
    assert_eq!(world.actions, [Action::SuspendRequested]);
}

#[test]
fn a_guest_that_writes_in_a_loop_is_bounded() {
    let mut world = World::new();
    for number in 0..20_000 {
        world.write(&format!("data/{}", number % 3000), "v");
        world.ask(MsgType::RM, &format!("data/{}\0", number % 3000));
        world.write("data/k", &number.to_string());
        if number % 100 == 0 {
            world.deliver();
            world.host.step();
        }
        assert!(world.host.jobs.len() <= 12, "{}", world.host.jobs.len());
        assert!(world.mirror.outward_waiting() <= 4096);
    }
    world.settle();
    assert_eq!(world.host.get("data/k"), Some("19999"));
    assert_eq!(
        world
            .host
            .nodes
            .keys()
            .filter(|name| name.starts_with("data/"))
            .count(),
        1
    );
}

#[test]
fn too_much_at_once_ends_in_the_same_place() {
    let mut world = World::new();
    for number in 0..900 {
        world.write(&format!("data/{number}"), "v");
    }
    world.settle();
    for number in 0..900 {
        world.ask(MsgType::RM, &format!("data/{number}\0"));
    }
    world.write("data/last", "v");
    let (mirror, mut sides) = world.sides();
    mirror.guest_changed(&mut sides, &["/".into()]);
    world.settle();
    let left: Vec<_> = world
        .host
        .nodes
        .keys()
        .filter(|name| name.starts_with("data/"))
        .collect();
    assert_eq!(left, ["data/last"]);
}

#[test]
fn the_mirror_s_tags_are_nobody_else_s() {
    for class in [DeviceClass::Vbd, DeviceClass::Vif] {
        for index in [0, 51712, 0x1fff_ffff] {
            assert!(!is_mirror_tag(device_tag(
                DeviceId { class, index },
                u32::MAX
            )));
        }
    }
}

/// What the host says of a directory that the guest has removed and made again is old news.
#[test]
fn a_directory_made_again_is_not_removed_by_its_own_echo() {
    // However far the exchange has come when the guest makes it again.
    for steps in 0..60u32 {
        for order in 0..64u32 {
            let mut world = World::new();
            world.ask(MsgType::MKDIR, "data/t/own\0");
            world.write("data/t/own/a", "1");
            world.settle();
            world.ask(MsgType::RM, "data/t\0");
            for step in 0..steps {
                let _ = match order >> (step % 6) & 1 {
                    0 => world.host.step() || world.deliver(),
                    _ => world.deliver() || world.host.step(),
                };
            }
            world.ask(MsgType::MKDIR, "data/t/own\0");
            world.settle();
            assert!(world.guest_has("data/t/own").is_some(), "{steps} {order:b}");
            assert!(world.host.get("data/t/own").is_some(), "{steps} {order:b}");
        }
    }
}
