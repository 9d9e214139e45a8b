//! Reading the list of devices in the real store, and making and dropping devices by it.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;

use xen_abi::Errno;

use super::{Bus, ROOT, Slot, host_frontend};
use crate::host::{StoreEvent, StoreOp};
use crate::points::{Cx, DeviceClass, DeviceId, TagOwner};

/// Devices that a guest may have.
const MAX_DEVICES: usize = 256;
/// Classes of the store that are no devices of the guest.
const NO_DEVICES: [&str; 1] = ["suspend"];

/// How far the reading of the list is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scan {
    /// Answers that are still to come.
    pub waiting: u32,
    /// The list was changed meanwhile.
    is_stale: bool,
    /// The list of this host was read at least once.
    pub was_done: bool,
}

/// What the bus asks the store, told apart in the tag's detail.
mod ask {
    pub const WATCH: u8 = 0;
    pub const CLASSES: u8 = 1;
    pub const VBDS: u8 = 2;
    pub const VIFS: u8 = 3;
}

impl Bus {
    /// Begins to look for devices.
    pub fn start(&mut self, cx: &mut Cx<'_>) {
        self.generation = self.generation.wrapping_add(1);
        // The watch is answered with an event, which begins the first scan.
        self.scan = Scan::default();
        self.submit(cx, ask::WATCH, StoreOp::Watch(ROOT.to_owned()));
    }

    /// Handles what the store says about the list.
    pub fn own_event(&mut self, cx: &mut Cx<'_>, detail: u32, event: StoreEvent) {
        let [what, generation, ..] = detail.to_le_bytes();
        // An answer that another host still owed.
        if generation != self.generation {
            return;
        }
        match event {
            StoreEvent::Changed(path) if what == ask::WATCH && self.is_about_the_list(&path) => {
                self.begin_scan(cx);
            }
            StoreEvent::Reply(reply) if what != ask::WATCH => {
                self.listed(cx, what, reply);
                self.scan.waiting = self.scan.waiting.saturating_sub(1);
                if self.scan.waiting == 0 {
                    self.scan.was_done = true;
                    if core::mem::take(&mut self.scan.is_stale) {
                        self.begin_scan(cx);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether a change may mean that a device came or went.  Each node of each device is below
    /// the watched directory, and most of them are written by ourselves.
    fn is_about_the_list(&self, path: &str) -> bool {
        let mut parts = path.split('/').skip_while(|part| *part != ROOT).skip(1);
        let (class, index, below) = (parts.next(), parts.next(), parts.next());
        let id = class
            .and_then(DeviceClass::named)
            .zip(index.and_then(|index| index.parse().ok()))
            .map(|(class, index)| DeviceId { class, index });
        match (id, below) {
            (Some(id), Some(_)) => !self.devices.contains_key(&id),
            _ => true,
        }
    }

    /// Asks what is in the list, or notes that the answers under way are out of date.
    pub(super) fn begin_scan(&mut self, cx: &mut Cx<'_>) {
        if self.scan.waiting > 0 {
            self.scan.is_stale = true;
            return;
        }
        self.scan.waiting = 3;
        for (what, directory) in [
            (ask::CLASSES, ROOT.to_owned()),
            (ask::VBDS, format!("{ROOT}/vbd")),
            (ask::VIFS, format!("{ROOT}/vif")),
        ] {
            self.submit(cx, what, StoreOp::Directory(directory));
        }
    }

    fn listed(&mut self, cx: &mut Cx<'_>, what: u8, reply: Result<Vec<u8>, Errno>) {
        let bytes = match reply {
            Ok(bytes) => bytes,
            Err(Errno::ENOENT) => Vec::new(),
            // Nothing is known, so nothing is done; the next change asks again.
            Err(error) => return log::warn!("the list of devices can not be read: {error}"),
        };
        let names = bytes
            .split(|byte| *byte == 0)
            .filter_map(|name| core::str::from_utf8(name).ok())
            .filter(|name| !name.is_empty());
        let class = match what {
            ask::VBDS => DeviceClass::Vbd,
            ask::VIFS => DeviceClass::Vif,
            _ => return self.classes_listed(names),
        };
        let listed: BTreeSet<DeviceId> = names
            .filter_map(|name| name.parse().ok())
            .filter(|index| *index <= DeviceId::MAX_INDEX)
            .map(|index| DeviceId { class, index })
            .collect();
        self.devices_listed(cx, class, &listed);
    }

    fn classes_listed<'n>(&mut self, names: impl Iterator<Item = &'n str>) {
        for name in names {
            // Bounded, for the host may go on making names.
            if DeviceClass::named(name).is_none()
                && !NO_DEVICES.contains(&name)
                && self.hidden.len() < MAX_DEVICES
                && self.hidden.insert(name.to_owned())
            {
                log::warn!("devices of class {name:?} are not carried and not shown to the guest");
            }
        }
    }

    fn devices_listed(&mut self, cx: &mut Cx<'_>, class: DeviceClass, listed: &BTreeSet<DeviceId>) {
        for &id in listed {
            if let Some(slot) = self.devices.get_mut(&id) {
                if !core::mem::replace(&mut slot.was_listed, true) {
                    self.with(cx, id, |device, cx| {
                        device.begin_if_absent(cx, &host_frontend(id));
                    });
                }
            } else if self.devices.len() < MAX_DEVICES {
                let device = self.factory.make(cx, id, &host_frontend(id));
                let slot = Slot {
                    device,
                    was_listed: true,
                    is_leaving: false,
                };
                self.devices.insert(id, slot);
                self.share(class);
                self.refresh(cx, id);
            } else {
                log::warn!("{}/{} is one device too many", class.name(), id.index);
            }
        }
        let gone: Vec<DeviceId> = self
            .devices
            .iter()
            .filter(|(id, slot)| id.class == class && slot.may_go() && !listed.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            if let Some(slot) = self.devices.get_mut(&id) {
                slot.is_leaving = true;
            }
            self.with(cx, id, |device, cx| device.unplug(cx));
        }
    }

    fn submit(&self, cx: &mut Cx<'_>, what: u8, op: StoreOp) {
        let detail = u32::from_le_bytes([what, self.generation, 0, 0]);
        cx.host_store.submit(TagOwner::Bus(detail).tag(), op);
    }
}
