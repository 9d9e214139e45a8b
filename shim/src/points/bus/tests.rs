//! The bus with devices that only note what happens to them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use xen_abi::{Mfn, Port};

use super::{Bus, DeviceFactory};
use crate::host::grants::HostGrantTable;
use crate::host::{HostPort, StoreClient, StoreEvent, StoreOp, Tag};
use crate::points::grant::GuestGrantTable;
use crate::points::{Cx, Device, DeviceClass, DeviceId, Progress, TagOwner, device_tag};
use crate::testing::FakeFrames;
use crate::testing::surroundings::{
    Allowed, BACKEND, FakePorts, FakeXen, GUEST, Ledger, VirtualStore,
};

type Notes = Rc<RefCell<Vec<String>>>;
/// With how many each device shares, itself among them.
type Shares = Rc<RefCell<BTreeMap<String, usize>>>;

struct Noting {
    name: String,
    notes: Notes,
    port: HostPort,
    gone: Rc<RefCell<bool>>,
    /// Whether the guest was told of the devices.
    shown: Rc<RefCell<bool>>,
    shares: Shares,
}

impl Noting {
    fn note(&self, what: &str) {
        self.notes
            .borrow_mut()
            .push(format!("{} {what}", self.name));
    }
}

impl Device for Noting {
    fn guest_store_changed(&mut self, _: &mut Cx<'_>, path: &str) {
        self.note(path);
    }
    fn host_store_event(&mut self, _: &mut Cx<'_>, detail: u32, _: StoreEvent) {
        self.note(&format!("store {detail}"));
    }
    fn guest_kick(&mut self, _: &mut Cx<'_>, _: Port) {
        self.note("guest kick");
    }
    fn host_kick(&mut self, _: &mut Cx<'_>, _: HostPort) {
        self.note("host kick");
    }
    fn quiesce(&mut self, _: &mut Cx<'_>) -> Progress {
        Progress::Done
    }
    fn in_flight(&self) -> usize {
        2
    }
    fn share(&mut self, devices: usize) {
        self.shares.borrow_mut().insert(self.name.clone(), devices);
    }
    fn reattach(&mut self, _: &mut Cx<'_>, host_frontend: &str) {
        self.note(&format!("reattach {host_frontend}"));
        self.port = HostPort(Port(self.port.0.0 + 100));
    }
    fn begin_if_absent(&mut self, _: &mut Cx<'_>, host_frontend: &str) {
        self.note(&format!("listed {host_frontend}"));
    }
    fn is_shown(&self) -> bool {
        *self.shown.borrow()
    }
    fn attached(&self) -> Result<Progress, String> {
        Ok(Progress::Done)
    }
    fn resume(&mut self, _: &mut Cx<'_>) {
        self.note("resume");
    }
    fn unplug(&mut self, _: &mut Cx<'_>) {
        self.note("unplug");
    }
    fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }
    fn host_ports(&self) -> Vec<HostPort> {
        vec![self.port]
    }
}

struct Factory {
    notes: Notes,
    gone: Rc<RefCell<bool>>,
    shown: Rc<RefCell<bool>>,
    shares: Shares,
}

impl DeviceFactory for Factory {
    fn make(&mut self, _: &mut Cx<'_>, id: DeviceId, host_frontend: &str) -> Box<dyn Device> {
        let made = Noting {
            name: format!("{}{}", id.class.name(), id.index),
            notes: self.notes.clone(),
            port: HostPort(Port(id.index)),
            gone: self.gone.clone(),
            shown: self.shown.clone(),
            shares: self.shares.clone(),
        };
        made.note(&format!("made at {host_frontend}"));
        Box::new(made)
    }
}

/// A store that has only the list of devices.
#[derive(Default)]
struct List {
    queue: Vec<(Tag, StoreOp)>,
    devices: Vec<&'static str>,
}

impl StoreClient for List {
    fn submit(&mut self, tag: Tag, op: StoreOp) {
        self.queue.push((tag, op));
    }
}

impl List {
    fn children(&self, directory: &str) -> Vec<u8> {
        let mut names: Vec<&str> = self
            .devices
            .iter()
            .filter_map(|path| path.strip_prefix(directory)?.strip_prefix('/'))
            .filter_map(|rest| rest.split('/').next())
            .collect();
        names.dedup();
        names
            .iter()
            .flat_map(|name| [name.as_bytes(), b"\0"].concat())
            .collect()
    }
}

struct Machine {
    bus: Bus,
    list: List,
    notes: Notes,
    gone: Rc<RefCell<bool>>,
    shown: Rc<RefCell<bool>>,
    shares: Shares,
    scans: usize,
}

impl Machine {
    fn new(devices: &[&'static str]) -> Self {
        let (notes, gone) = (Notes::default(), Rc::default());
        let shown = Rc::new(RefCell::new(true));
        let factory = Factory {
            notes: Rc::clone(&notes),
            gone: Rc::clone(&gone),
            shown: Rc::clone(&shown),
            shares: Shares::default(),
        };
        let shares = Rc::clone(&factory.shares);
        let mut machine = Self {
            bus: Bus::new(Box::new(factory)),
            list: List::default(),
            notes,
            gone,
            shown,
            shares,
            scans: 0,
        };
        machine.list.devices = devices.to_vec();
        machine.call(|bus, cx| bus.start(cx));
        machine.serve();
        machine
    }

    fn call<R>(&mut self, act: impl FnOnce(&mut Bus, &mut Cx<'_>) -> R) -> R {
        let mem = FakeFrames::new(1);
        let (mut host, mut allowed) = (HostGrantTable::new(), Allowed(0));
        let (guest, mut ledger) = (GuestGrantTable::new(GUEST, BACKEND, 1), Ledger::new(0..0));
        let mut cx = Cx {
            frames: &mem,
            pool: &mut Vec::<Mfn>::new(),
            xen: &mut FakeXen::default(),
            host_grants: &mut host.via(&mem, &mut allowed),
            host_store: &mut self.list,
            store: &mut VirtualStore::default(),
            ports: &mut FakePorts::default(),
            grants: &mut guest.via(&mut ledger),
            guest_domid: GUEST,
            backend_domid: BACKEND,
        };
        act(&mut self.bus, &mut cx)
    }

    fn serve(&mut self) {
        while !self.list.queue.is_empty() {
            let (tag, op) = self.list.queue.remove(0);
            match op {
                StoreOp::Watch(path) => self.event(tag, StoreEvent::Changed(path)),
                StoreOp::Directory(path) => {
                    self.scans += usize::from(path == "device");
                    let reply = StoreEvent::Reply(Ok(self.list.children(&path)));
                    self.event(tag, reply);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn event(&mut self, tag: Tag, event: StoreEvent) {
        self.call(|bus, cx| match TagOwner::of(tag) {
            Some(TagOwner::Device(id, detail)) => bus.host_store_event(cx, id, detail, event),
            Some(TagOwner::Bus(detail)) => bus.own_event(cx, detail, event),
            other => panic!("{other:?} is not on the bus"),
        });
    }

    /// The watch fires; `generation` is which host's.
    fn changed(&mut self, path: &str, generation: u32) {
        let tag = TagOwner::Bus(generation << 8).tag();
        self.event(tag, StoreEvent::Changed(path.to_owned()));
        self.serve();
    }

    fn notes(&mut self) -> Vec<String> {
        self.notes.take()
    }
}

const VBD: DeviceId = DeviceId {
    class: DeviceClass::Vbd,
    index: 51712,
};

#[test]
fn devices_come_and_go_with_the_list() {
    let mut machine = Machine::new(&[
        "device/suspend/event-channel",
        "device/vbd/51712",
        "device/vkbd/0",
    ]);
    assert_eq!(machine.notes(), ["vbd51712 made at device/vbd/51712"]);
    assert_eq!(machine.bus.hidden().collect::<Vec<_>>(), ["vkbd"]);
    assert_eq!(machine.bus.attached(), Ok(Progress::Done));

    machine.list.devices.push("device/vif/0");
    machine.changed("device/vif/0/backend", 1);
    assert_eq!(machine.notes(), ["vif0 made at device/vif/0"]);
    assert_eq!(machine.bus.in_flight(), 4);

    let scans = machine.scans;
    machine.changed("device/vif/0/state", 1);
    assert_eq!(machine.scans, scans, "our own writing is no news");

    machine.list.devices.remove(1);
    machine.changed("device/vbd/51712", 1);
    assert_eq!(machine.notes(), ["vbd51712 unplug"]);
    assert_eq!(machine.bus.len(), 2, "until it has closed");
    *machine.gone.borrow_mut() = true;
    machine.call(|bus, cx| bus.guest_kick(cx, VBD, Port(1)));
    assert_eq!(machine.bus.len(), 1);
}

#[test]
fn the_devices_of_a_class_know_how_many_they_are() {
    let mut machine = Machine::new(&["device/vbd/1", "device/vbd/2", "device/vif/0"]);
    let share = |machine: &Machine, name: &str| machine.shares.borrow()[name];
    assert_eq!(share(&machine, "vbd1"), 2);
    assert_eq!(share(&machine, "vbd2"), 2);
    assert_eq!(share(&machine, "vif0"), 1);
    machine.list.devices.push("device/vbd/3");
    machine.changed("device/vbd/3/backend", 1);
    assert_eq!(share(&machine, "vbd1"), 3);
    assert_eq!(share(&machine, "vbd3"), 3);
    machine.list.devices.retain(|name| *name != "device/vbd/1");
    machine.changed("device/vbd/1", 1);
    *machine.gone.borrow_mut() = true;
    let id = DeviceId { index: 1, ..VBD };
    machine.call(|bus, cx| bus.guest_kick(cx, id, Port(1)));
    assert_eq!(share(&machine, "vbd2"), 2);
    assert_eq!(share(&machine, "vif0"), 1);
}

#[test]
fn events_find_their_device() {
    let mut machine = Machine::new(&["device/vbd/51712", "device/vbd/51728"]);
    machine.notes();
    machine.event(device_tag(VBD, 7), StoreEvent::Reply(Ok(Vec::new())));
    machine.call(|bus, cx| {
        bus.host_kick(cx, HostPort(Port(51728)));
        bus.guest_store_changed(cx, "/local/domain/1/device/vbd/51712/state");
        bus.guest_store_changed(cx, "/local/domain/1/device/vbd/5171");
        bus.guest_store_changed(cx, "/local/domain/1/data/x");
    });
    assert_eq!(
        machine.notes(),
        [
            "vbd51712 store 7",
            "vbd51728 host kick",
            "vbd51712 /local/domain/1/device/vbd/51712/state",
        ]
    );
    machine.call(|bus, cx| bus.guest_store_changed(cx, "/local/domain/1/device"));
    assert_eq!(
        machine.notes(),
        [
            "vbd51712 /local/domain/1/device/vbd/51712",
            "vbd51728 /local/domain/1/device/vbd/51728",
        ]
    );
}

#[test]
fn a_move_keeps_the_devices_and_forgets_the_ports() {
    let mut machine = Machine::new(&["device/vbd/51712"]);
    machine.notes();
    machine.list.devices.clear();
    machine.call(|bus, cx| bus.reattach(cx));
    assert_eq!(
        machine.bus.attached(),
        Ok(Progress::Waiting),
        "not looked yet"
    );
    // The old host's watch still has something to say.
    machine.changed("device/vbd/51712", 1);
    machine.call(|bus, cx| {
        bus.host_kick(cx, HostPort(Port(51712)));
        bus.host_kick(cx, HostPort(Port(51812)));
        bus.resume(cx);
    });
    assert_eq!(
        machine.notes(),
        [
            "vbd51712 reattach device/vbd/51712",
            "vbd51712 host kick",
            "vbd51712 resume",
        ],
        "a device that the new host lacks is not unplugged"
    );
    assert_eq!(machine.bus.attached(), Ok(Progress::Done));
}

#[test]
fn a_device_that_the_guest_was_not_told_of_goes_if_the_next_host_lacks_it() {
    let mut machine = Machine::new(&["device/vbd/51712"]);
    *machine.shown.borrow_mut() = false;
    machine.notes();
    machine.list.devices.clear();
    machine.call(|bus, cx| bus.reattach(cx));
    machine.serve();
    let expected = ["vbd51712 reattach device/vbd/51712", "vbd51712 unplug"];
    assert_eq!(machine.notes(), expected);
    assert_eq!(machine.bus.attached(), Ok(Progress::Done));
}
