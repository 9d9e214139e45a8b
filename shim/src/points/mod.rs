//! The migration points: one module for each thing that a migration changes and the guest must not
//! see change.
//!
//! Every point has a guest-facing half, plain data in the shim's RAM that migrates as memory, and a
//! host-facing half that is thrown away and built anew from what the new host says.

pub mod assembled;
pub mod bus;
pub mod console;
pub(crate) mod device;
pub mod disk;
pub mod evtchn;
pub mod grant;
pub mod identity;
pub mod net;
pub mod ring;
pub mod suspend;
mod tag;
pub mod time;
pub mod xenbus;
pub mod xenstore;

use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::{DomId, Mfn, Port};

use crate::cpu::{Machine, Vcpu};
use crate::mm::{Ledger, ShimSlots};

use crate::host::{Host, HostGrants, HostPort, StoreClient, StoreEvent, Xen};
use crate::mem::{FramePool, Frames};

pub use assembled::Points;
use evtchn::EventChannels;
pub use tag::{TagOwner, device_tag};
use time::Time;

/// What lies outside of the points: the machine, the host, and the rest of the guest.
pub struct Environment<'a, M: Machine, H: Host> {
    /// The machine.
    pub m: &'a M,
    /// The Xen underneath.
    pub host: &'a mut H,
    /// Owner and use of every frame.
    pub ledger: &'a mut Ledger,
    /// The shim's own L4 entries.
    pub slots: &'a ShimSlots,
    /// The guest's ports.
    pub channels: &'a mut EventChannels,
    /// The vCPUs.
    pub vcpus: &'a mut [Vcpu],
    /// The guest's time.
    pub time: &'a mut Time,
    /// The guest's shared info page.
    pub shared_info: Mfn,
}

/// The guest's own event channel ports, as a device sees them.
pub trait GuestPorts {
    /// Connects the unbound port that the guest made for `device`; afterwards the guest's
    /// notifications arrive at [`Device::guest_kick`].  `false` when there is no such port or
    /// the guest made it for another domain than the backend's virtual one.
    fn connect(&mut self, port: Port, device: DeviceId) -> bool;
    /// Raises the port in the guest.
    fn raise(&mut self, port: Port);
    /// Ends the connection: the port is unbound again.
    fn disconnect(&mut self, port: Port);
}

/// The guest's own grant table (version 1), as a device sees it.
///
/// A frame in use is *held*: until it is released it stays the guest's, and one held for writing
/// can not become a page table meanwhile.  Without that a guest could have a backend, or a
/// response in a ring, write entries behind the ledger's back.
pub trait GuestGrants {
    /// Looks a reference up, takes a hold of the frame and returns it, or why not.  The reference
    /// must have been granted to the backend's virtual domain, and for `write` not be read-only.
    fn acquire(
        &mut self,
        frames: &dyn Frames,
        reference: u32,
        write: bool,
    ) -> Result<Mfn, BadGrant>;
    /// Ends one hold that [`acquire`](Self::acquire) took with the same `write`.
    fn release(&mut self, frame: Mfn, write: bool);
}

/// Why a grant reference of the guest can not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadGrant {
    /// The reference lies outside the table.
    OutOfRange,
    /// The entry grants nothing, or grants to another domain.
    NotGranted,
    /// The entry is read-only and a writable one was needed.
    ReadOnly,
    /// The entry names a frame that is not the guest's, or one that can not be written now
    /// because it is a page table.
    BadFrame,
}

/// The shim's own, privileged view of the virtual xenstore that the guest sees.  Paths are absolute.
pub trait GuestStore {
    /// Reads a node.
    fn read(&self, path: &str) -> Option<Vec<u8>>;
    /// Lists a node's children; empty when there is none or no such node.
    fn list(&self, path: &str) -> Vec<String>;
    /// Writes a node as its owner-to-be `owner`, readable by the guest; fires the guest's watches.
    fn write(&mut self, path: &str, value: &[u8], owner: DomId);
    /// Removes a node and all below it; fires the guest's watches.
    fn remove(&mut self, path: &str);
}

/// Names one device of one class, for ever: class and the index that the guest's configuration
/// gives it (`51712` of `vbd`, `0` of `vif`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// The class.
    pub class: DeviceClass,
    /// The index within the class, the same in the guest's and the host's store.
    pub index: u32,
}

/// A class of devices that the shim carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceClass {
    /// A block device.
    Vbd,
    /// A network interface.
    Vif,
}

impl DeviceClass {
    /// Returns the class's name in xenstore paths.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vbd => "vbd",
            Self::Vif => "vif",
        }
    }

    /// Returns the class of that name, if the shim carries it.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Vbd, Self::Vif]
            .into_iter()
            .find(|class| class.name() == name)
    }
}

impl DeviceId {
    /// The largest index: those of disks reach 2^28 (extended numbers).
    pub const MAX_INDEX: u32 = 0x1fff_ffff;
}

/// Everything a device may use while it handles one event.
pub struct Cx<'a> {
    /// All memory.
    pub frames: &'a dyn Frames,
    /// Frames for rings and for the shim's own buffers.
    pub pool: &'a mut dyn FramePool,
    /// Event channels and clock of the host.
    pub xen: &'a mut dyn Xen,
    /// The host's grant table.
    pub host_grants: &'a mut dyn HostGrants,
    /// The host's xenstore; submissions carry tags made with [`device_tag`].
    pub host_store: &'a mut dyn StoreClient,
    /// The guest's xenstore.
    pub store: &'a mut dyn GuestStore,
    /// The guest's ports.
    pub ports: &'a mut dyn GuestPorts,
    /// The guest's grant table.
    pub grants: &'a mut dyn GuestGrants,
    /// What the guest believes its own domain id to be.
    pub guest_domid: DomId,
    /// What the guest believes the backends' domain id to be.
    pub backend_domid: DomId,
}

/// How far a bounded step has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left to do.
    Done,
    /// Something outside has to happen first; ask again after the next event.
    Waiting,
}

/// One device: a backend towards the guest and a frontend towards the host.
///
/// No method waits.  Each is called on the only vCPU, which is out of the guest, and returns soon.
pub trait Device {
    /// Something below the device's frontend or backend directory in the *guest's* store was
    /// changed by the guest (`path` is absolute).
    fn guest_store_changed(&mut self, cx: &mut Cx<'_>, path: &str);
    /// A reply or watch event of the *real* store, submitted with `detail`.
    fn host_store_event(&mut self, cx: &mut Cx<'_>, detail: u32, event: StoreEvent);
    /// The guest notified one of the device's ports.
    fn guest_kick(&mut self, cx: &mut Cx<'_>, port: Port);
    /// The host's backend notified one of the device's ports.
    fn host_kick(&mut self, cx: &mut Cx<'_>, port: HostPort);
    /// Stops taking new work from the guest and says whether the suspend may go on: everything in
    /// flight has been answered, or the class does not wait for it any longer.
    /// Called again after every event until `Done`; undone by [`resume`](Self::resume).
    fn quiesce(&mut self, cx: &mut Cx<'_>) -> Progress;
    /// How many requests are in flight at the host, for reports.
    fn in_flight(&self) -> usize;
    /// Says how many devices of its class the guest has, this one among them: they share what the
    /// class may have in flight at the host.
    fn share(&mut self, _devices: usize) {}
    /// The host-facing half is gone (a new domain): begins to build it anew at `host_frontend`,
    /// the device's frontend directory in the real store.
    fn reattach(&mut self, cx: &mut Cx<'_>, host_frontend: &str);
    /// The host may have the device (again), at `host_frontend`: begins to connect if no backend was there.
    fn begin_if_absent(&mut self, cx: &mut Cx<'_>, host_frontend: &str);
    /// Whether the guest was told what the device is like, and so may count on it.
    fn is_shown(&self) -> bool;
    /// Whether the host-facing half is connected (again), or the reason why it is not and will not
    /// be before somebody does something about it on the host.
    fn attached(&self) -> Result<Progress, String>;
    /// Takes work again.  After a [`reattach`](Self::reattach) the guest's ports are raised once,
    /// so that no notification is lost.
    fn resume(&mut self, cx: &mut Cx<'_>);
    /// Whether the device waits for something that gives no event of its own: a free reference, or
    /// a backend that still has a page in use.
    fn wants_retry(&self) -> bool {
        false
    }
    /// Tries again what [`wants_retry`](Self::wants_retry) is about; called every few milliseconds
    /// while that is true.
    fn retry(&mut self, _cx: &mut Cx<'_>) {}
    /// The host removes the device (hot unplug): closes both halves in an orderly way.
    fn unplug(&mut self, cx: &mut Cx<'_>);
    /// Whether both halves have closed, after which the device is dropped.
    fn is_gone(&self) -> bool;
    /// The real ports that the device listens to.
    fn host_ports(&self) -> Vec<HostPort>;
}
