//! Which devices there are: makes and drops them as the host's store says, and brings every event
//! to the one that it is for.
//!
//! The list of the *real* store decides.  A device is made when it appears there, asked to close
//! when it goes, and dropped once it has closed.  After a migration the same devices are looked
//! for under the same names; one that the new host does not have is not taken from the guest, but
//! is a reason why the machine can not go on there ([`Bus::attached`]).  Only a device that was
//! being plugged when the guest moved, and that the guest was told nothing of, goes like any that
//! the host takes away.  [`list`] reads the list.

mod list;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::Port;

use self::list::Scan;
use super::{Cx, Device, DeviceClass, DeviceId, Progress};
use crate::host::{HostPort, StoreEvent};

/// The real directory with one directory for each class.
const ROOT: &str = "device";

/// Makes devices.
pub trait DeviceFactory {
    /// Makes the device and begins to connect it at `host_frontend`.
    fn make(&mut self, cx: &mut Cx<'_>, id: DeviceId, host_frontend: &str) -> Box<dyn Device>;
}

struct Slot {
    device: Box<dyn Device>,
    /// Whether this host's list had it, so that its absence from a later list means something.
    was_listed: bool,
    /// Whether the host has taken it away.
    is_leaving: bool,
}

impl Slot {
    /// Whether the device goes when the list does not have it.
    fn may_go(&self) -> bool {
        self.was_listed || !self.device.is_shown()
    }
}

/// All devices of the guest.
pub struct Bus {
    factory: Box<dyn DeviceFactory>,
    devices: BTreeMap<DeviceId, Slot>,
    ports: BTreeMap<HostPort, DeviceId>,
    scan: Scan,
    /// Counts hosts, to tell answers of an earlier one apart.
    generation: u8,
    hidden: BTreeSet<String>,
}

impl Bus {
    /// Makes an empty bus; nothing is asked of anybody.
    pub fn new(factory: Box<dyn DeviceFactory>) -> Self {
        Self {
            factory,
            devices: BTreeMap::new(),
            ports: BTreeMap::new(),
            scan: Scan::default(),
            generation: 0,
            hidden: BTreeSet::new(),
        }
    }

    /// Number of devices.
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether there is no device.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Number of real ports that the devices have.
    pub fn ports(&self) -> usize {
        self.ports.len()
    }

    /// Names of the classes that the host has given the guest and the shim does not carry.
    pub fn hidden(&self) -> impl Iterator<Item = &str> {
        self.hidden.iter().map(String::as_str)
    }

    /// Takes what came from the real store for a device.
    pub fn host_store_event(
        &mut self,
        cx: &mut Cx<'_>,
        id: DeviceId,
        detail: u32,
        event: StoreEvent,
    ) {
        self.with(cx, id, |device, cx| {
            device.host_store_event(cx, detail, event);
        });
    }

    /// The guest has changed `path` (absolute) in its own store.
    pub fn guest_store_changed(&mut self, cx: &mut Cx<'_>, path: &str) {
        let root = format!("/local/domain/{}/device", cx.guest_domid.0);
        let ids: Vec<DeviceId> = self.devices.keys().copied().collect();
        for id in ids {
            let frontend = format!("{root}/{}/{}", id.class.name(), id.index);
            // What is above a device may have been removed with everything below it.
            let changed = match path.strip_prefix(frontend.as_str()) {
                Some(rest) => (rest.is_empty() || rest.starts_with('/')).then_some(path),
                None => is_above(path, &frontend).then_some(frontend.as_str()),
            };
            if let Some(path) = changed {
                self.with(cx, id, |device, cx| device.guest_store_changed(cx, path));
            }
        }
    }

    /// The guest has notified a port that is connected to `device`.
    pub fn guest_kick(&mut self, cx: &mut Cx<'_>, device: DeviceId, port: Port) {
        self.kick(cx, device, |device, cx| device.guest_kick(cx, port));
    }

    /// A real port was notified.
    pub fn host_kick(&mut self, cx: &mut Cx<'_>, port: HostPort) {
        if let Some(&id) = self.ports.get(&port) {
            self.kick(cx, id, |device, cx| device.host_kick(cx, port));
        }
    }

    /// Whether [`retry`](Self::retry) should be called in a few milliseconds.
    pub fn wants_retry(&self) -> bool {
        self.devices.values().any(|slot| slot.device.wants_retry())
    }

    /// Lets the devices try again that wait for something that gives no event.
    pub fn retry(&mut self, cx: &mut Cx<'_>) {
        self.for_each(cx, |device, cx| {
            if device.wants_retry() {
                device.retry(cx);
            }
        });
    }

    /// Stops taking work from the guest; see [`Device::quiesce`].
    pub fn quiesce(&mut self, cx: &mut Cx<'_>) -> Progress {
        let mut all = Progress::Done;
        self.for_each(cx, |device, cx| {
            if device.quiesce(cx) == Progress::Waiting {
                all = Progress::Waiting;
            }
        });
        all
    }

    /// Requests in flight at the host, of all devices.
    pub fn in_flight(&self) -> usize {
        self.devices
            .values()
            .map(|slot| slot.device.in_flight())
            .sum()
    }

    /// The host is another one: connects every device there.
    pub fn reattach(&mut self, cx: &mut Cx<'_>) {
        self.ports.clear();
        for (id, slot) in &mut self.devices {
            slot.was_listed = false;
            slot.device.reattach(cx, &host_frontend(*id));
        }
        self.refresh_all(cx);
        self.start(cx);
    }

    /// Learns the devices' ports anew, and drops devices that are gone: some only waited for their old backend.
    fn refresh_all(&mut self, cx: &mut Cx<'_>) {
        // `with` does both after each call of a device.
        self.for_each(cx, |_, _| {});
    }

    /// Lets the devices that have no working backend begin again.
    pub fn begin_again(&mut self, cx: &mut Cx<'_>) {
        let ids: Vec<DeviceId> = self.devices.keys().copied().collect();
        for id in ids {
            self.with(cx, id, |device, cx| {
                device.begin_if_absent(cx, &host_frontend(id));
            });
        }
    }

    /// Whether every device is connected, or which one waits for somebody to act on the host, and why.
    pub fn attached(&self) -> Result<Progress, String> {
        let mut all = match self.scan.was_done {
            true => Progress::Done,
            false => Progress::Waiting,
        };
        // A device that the host takes away may never connect again, and nobody waits for it.
        for (id, slot) in self.devices.iter().filter(|(_, slot)| !slot.is_leaving) {
            match slot.device.attached() {
                Ok(Progress::Done) => {}
                Ok(Progress::Waiting) => all = Progress::Waiting,
                Err(why) => return Err(format!("{}/{}: {why}", id.class.name(), id.index)),
            }
        }
        Ok(all)
    }

    /// The devices whose backends are not ready yet, in words.
    pub fn awaited(&self) -> String {
        let waiting = |slot: &Slot| slot.device.attached() == Ok(Progress::Waiting);
        let names: Vec<String> = self
            .devices
            .iter()
            .filter(|(_, slot)| !slot.is_leaving && waiting(slot))
            .map(|(id, _)| format!("{}/{}", id.class.name(), id.index))
            .collect();
        match names.is_empty() {
            true => String::from("xenstore has not listed the devices yet"),
            false => format!("{}: the backend is not ready yet", names.join(", ")),
        }
    }

    /// Whether it is known of each device whether it is connected: none is still on its way.
    pub fn is_settled(&self) -> bool {
        let is_waiting = |slot: &Slot| slot.device.attached() == Ok(Progress::Waiting);
        self.scan.was_done && self.scan.waiting == 0 && !self.devices.values().any(is_waiting)
    }

    /// Takes work again; see [`Device::resume`].
    pub fn resume(&mut self, cx: &mut Cx<'_>) {
        self.for_each(cx, |device, cx| device.resume(cx));
    }

    fn for_each(&mut self, cx: &mut Cx<'_>, mut act: impl FnMut(&mut dyn Device, &mut Cx<'_>)) {
        // Collected first: a device may be dropped by what it does.
        let ids: Vec<DeviceId> = self.devices.keys().copied().collect();
        for id in ids {
            self.with(cx, id, &mut act);
        }
    }

    /// Lets a device do something, and notes what has become of it.
    fn with(
        &mut self,
        cx: &mut Cx<'_>,
        id: DeviceId,
        act: impl FnOnce(&mut dyn Device, &mut Cx<'_>),
    ) {
        if let Some(slot) = self.devices.get_mut(&id) {
            act(&mut *slot.device, cx);
            self.refresh(cx, id);
        }
    }

    /// Like [`with`](Self::with), for what happens at each batch of requests: no port is made then,
    /// and one that was closed is not notified any more.
    fn kick(
        &mut self,
        cx: &mut Cx<'_>,
        id: DeviceId,
        act: impl FnOnce(&mut dyn Device, &mut Cx<'_>),
    ) {
        if let Some(slot) = self.devices.get_mut(&id) {
            act(&mut *slot.device, cx);
            if slot.device.is_gone() {
                self.refresh(cx, id);
            }
        }
    }

    /// Tells the devices of a class how many they are.
    fn share(&mut self, class: DeviceClass) {
        let of_class = |id: &DeviceId| id.class == class;
        let count = self.devices.keys().filter(|id| of_class(id)).count();
        for (_, slot) in self.devices.iter_mut().filter(|(id, _)| of_class(id)) {
            slot.device.share(count);
        }
    }

    /// Learns a device's ports, and drops it if it is gone.
    fn refresh(&mut self, cx: &mut Cx<'_>, id: DeviceId) {
        let Some(slot) = self.devices.get(&id) else {
            return;
        };
        self.ports.retain(|_, owner| *owner != id);
        if slot.device.is_gone() {
            self.devices.remove(&id);
            self.share(id.class);
            // It may have been made anew meanwhile.
            self.begin_scan(cx);
        } else {
            let ports = slot.device.host_ports();
            self.ports.extend(ports.into_iter().map(|port| (port, id)));
        }
    }
}

fn host_frontend(id: DeviceId) -> String {
    format!("{ROOT}/{}/{}", id.class.name(), id.index)
}

/// Whether `path` names a directory that `below` lies in.
fn is_above(path: &str, below: &str) -> bool {
    let path = path.trim_end_matches('/');
    below
        .strip_prefix(path)
        .is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests;
