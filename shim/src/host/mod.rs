//! The shim's own connection to the Xen underneath, as the migration points know it.
//!
//! A point never makes a hypercall itself: it is given these traits, which the bare-metal image
//! implements with real hypercalls and the tests with fakes.  Everything behind them is lost at a
//! migration and built anew by `reattach`.

pub mod grants;
pub mod store;

use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::sched::ShutdownReason;
use xen_abi::{DomId, Errno, Mfn, Port};

use crate::points::time::HostTime;

/// A port of the *real* domain: a name that changes with every migration, never shown to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort(pub Port);

/// A grant reference of the *real* grant table, never shown to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostRef(pub u32);

/// What a backend may do with a granted frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The backend reads (a disk write, a packet to send).
    ReadOnly,
    /// The backend reads and writes.
    ReadWrite,
}

/// Event channels and clocks of the Xen underneath.
pub trait Xen {
    /// Makes a port that `remote` may bind to.
    fn alloc_unbound(&mut self, remote: DomId) -> Result<HostPort, Errno>;
    /// Closes a port; closing one that is gone is harmless.
    fn close(&mut self, port: HostPort);
    /// Signals the other end of a port.
    fn notify(&mut self, port: HostPort);
    /// Returns the host's system time in nanoseconds; it continues, but not at the same value,
    /// after a migration.
    fn now_ns(&self) -> u64;
}

/// Everything else that the vCPU loop needs of the host.
pub trait Host: Xen {
    /// Returns the page and the port that lead to one of the host's daemons.
    ///
    /// # Errors
    /// What the host answered when it was asked for the domain's parameters.
    fn ring(&self, ring: Ring) -> Result<(Mfn, HostPort), Errno>;
    /// Returns the host's time info for this vCPU, consistently read.
    fn time(&self) -> HostTime;
    /// Returns the version of that time info, which changes with every update.
    fn time_version(&self) -> u32;
    /// Returns the wall time at the host's system time 0, nanoseconds since 1970.
    fn wall_clock_at_zero_ns(&self) -> u64;
    /// Asks for an event at a host time, instead of the one asked for before.
    fn arm_timer(&mut self, deadline_ns: u64);
    /// Whether the host has announced events that were not taken.
    fn has_events(&self) -> bool;
    /// Takes the next port that has an event.
    fn take_event(&mut self) -> Option<HostEvent>;
    /// Waits until there is an event or the host's time is `until_ns`.
    fn wait(&mut self, until_ns: Option<u64>);
    /// Gives the rest of the time slice away.
    fn yield_now(&mut self);
    /// Gives a frame back to the host.
    fn release_frame(&mut self, frame: Mfn) -> Result<(), Errno>;
    /// Asks the host for memory behind a frame that was given back before.  A host that records
    /// writes may know nothing of it, nor of what is written to it, until
    /// [`write_frame`](Self::write_frame).
    fn populate_frame(&mut self, frame: Mfn) -> Result<(), Errno>;
    /// Makes the host itself write something into a frame, which it records if it records writes.
    fn write_frame(&mut self, frame: Mfn) -> Result<(), Errno>;
    /// Stops the domain.  Returns only from a suspend: 1 when it was cancelled, 0 when the domain
    /// is a new one.
    fn shutdown(&mut self, reason: ShutdownReason) -> u64;
    /// Connects to the host anew after a suspend that was not cancelled: shared info, events,
    /// timer.  Every port that was made before is gone afterwards.
    fn reconnect(&mut self) -> Result<Arrival, Errno>;
}

/// Where a domain finds itself after a suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// In a domain that was made for it, here or on another host.
    NewDomain,
    /// In its old domain, whose toolstack took the suspend back without saying so.
    SameDomain,
}

/// The daemons that the toolstack connects a domain to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// xenstored.
    Store,
    /// The console daemon.
    Console,
}

/// What the host raised an event about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// The deadline of [`Host::arm_timer`] has come.
    Timer,
    /// xenstored answered or has an event.
    Store,
    /// The console daemon read or wrote.
    Console,
    /// A backend notified a port that a device made.
    Port(HostPort),
}

/// The real grant table.
pub trait HostGrants {
    /// Lets `to` access `frame`; `None` when the table is full.
    fn grant(&mut self, to: DomId, frame: Mfn, access: Access) -> Option<HostRef>;
    /// Takes a grant back; `false` when the backend still has it in use, in which case the
    /// reference stays taken and the call is to be repeated later.
    fn end(&mut self, grant: HostRef) -> bool;
    /// Whether a grant from before a suspend is still in use, since the domain is the same and its backend has not
    /// let go yet.  To be asked before anything else is granted.
    fn is_stuck(&self, grant: HostRef) -> bool;
}

/// One request to the real xenstored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreOp {
    /// Reads a node.
    Read(String),
    /// Lists a node's children.
    Directory(String),
    /// Writes a node, creating it and its parents.
    Write(String, Vec<u8>),
    /// Removes a node and everything below it.
    Remove(String),
    /// Watches a path; events come with `tag` of the submission, for ever or until `Unwatch`.
    Watch(String),
    /// Ends the watch that was submitted with the same path and tag.
    Unwatch(String),
}

/// Identifies a submission to its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// What comes back from the real xenstored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// The answer to a `Read` (the value), a `Directory` (children, each ending in NUL) or any
    /// other operation (empty).
    Reply(Result<Vec<u8>, Errno>),
    /// A watched path, or something below it, may have changed.
    Changed(String),
}

/// An asynchronous client of the real xenstored: nothing in the shim waits for it while the guest
/// runs.  Replies of one client come in the order of submission.
pub trait StoreClient {
    /// Queues a request; its reply (or events) will be delivered under `tag`.
    fn submit(&mut self, tag: Tag, op: StoreOp);
}
