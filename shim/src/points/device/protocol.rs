//! What a class of devices has to bring so that the shell can carry it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Debug;

use xen_abi::xenbus::XenbusState;

use super::{Joining, Offering, Shell};
use crate::points::xenbus::Nodes;
use crate::points::{Cx, DeviceClass};

/// Why what is in flight can not go on as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The backend lied or is gone.  Whatever it was asked for fails, as soon as it can no longer touch the
    /// guest's pages.
    Broken,
    /// The backend went before it was connected, where the guest has only just come to.  It is to touch nothing
    /// any more, and nothing fails.
    Absent,
    /// The host is another one.  References and rings of the last one are void, and whoever had them can not
    /// touch anything.
    Moved,
    /// The guest's driver is gone with its rings: nobody waits for an answer, and nothing new is asked for it.
    DriverGone,
    /// The device is gone.  Pages that were kept for later go back.
    Over,
}

/// What the guest was told about a device, once and for all.
pub trait Features: Debug + Sized {
    /// What a host's backend offers.
    type Offer: Debug;

    /// Reads what a backend published.
    ///
    /// # Errors
    /// What makes no sense in it.
    fn parse(nodes: &Nodes) -> Result<Self::Offer, String>;
    /// Decides what the guest will see, for ever, of a device that the first host offers like this.
    fn fix(offer: &Self::Offer) -> Self;
    /// Says why a backend that offers this can not stand behind what the guest was told, or `None` if it can.
    fn refuses(&self, offer: &Self::Offer) -> Option<String>;
    /// The nodes of the guest-facing backend.
    fn nodes(&self) -> Vec<(&'static str, String)>;
    /// Takes up what of it may change; returns the node that has changed.
    ///
    /// # Errors
    /// What makes no sense in `nodes`.
    fn follow(&mut self, _nodes: &Nodes) -> Result<Option<(&'static str, String)>, String> {
        Ok(None)
    }
}

/// A class of devices: its rings, and what becomes of the requests in them.
///
/// Nothing here waits, and nothing here changes a stage of the shell.  What is kept per queue lies in `Driver`,
/// `Rings` and the protocol itself, of which the shell does not know how many queues they have.
pub trait Protocol: Debug + Default + Sized {
    /// The class.
    const CLASS: DeviceClass;
    /// The frontend's nodes that the guest is shown as the real frontend directory has them.
    const FRONT_KEYS: &'static [&'static str];
    /// Those of them that the guest finds in the backend's directory, too.
    const BACK_KEYS: &'static [&'static str];
    /// What else is in the guest-facing backend's directory from the beginning.
    const BACK_NODES: &'static [(&'static str, &'static str)];
    /// What a backend is asked before it is given rings.
    const TERMS: &'static [&'static str];
    /// What a backend is asked when it has taken the rings.  Where this is nothing, its terms tell all.
    const DETAILS: &'static [&'static str];
    /// What a backend is asked when it says that something has changed.
    const CHANGES: &'static [&'static str];
    /// The state that the backend is told when it is given rings.
    const GIVEN: XenbusState;
    /// The states at which a driver of the guest has published its rings.
    const READY: &'static [XenbusState];
    /// Whether the host's backend is given rings only when the guest has a driver, and others with each driver,
    /// because it is told then what the driver wants.
    const FOLLOWS_DRIVER: bool;
    /// For how long a suspend waits for what is in flight; `None` if it may not go on without.
    const DRAIN_NS: Option<u64>;

    /// What a host's backend offers.
    type Offer: Debug;
    /// What the guest was told.
    type Shown: Features<Offer = Self::Offer>;
    /// The rings of the guest's driver.
    type Driver: Debug;
    /// The rings that the host's backend was given.
    type Rings: Debug;

    /// Attaches to the rings that a driver of the guest has published.
    ///
    /// # Errors
    /// Why they make no sense.
    fn join(with: &mut Joining<'_, '_>) -> Result<Self::Driver, String>;
    /// Makes rings for the host's backend, and publishes them.
    ///
    /// # Errors
    /// What there is too little of.
    fn offer(
        &self,
        with: &mut Offering<'_, '_>,
        driver: Option<&Self::Driver>,
    ) -> Result<Self::Rings, String>;
    /// Moves whatever can be moved between guest and host, and tells both.
    fn pump(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>);
    /// Takes what the host has to say.
    ///
    /// # Errors
    /// What makes no sense in it.
    fn take_answers(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) -> Result<(), String>;
    /// Tries again to end what the backend still had in use.
    fn retry_ending(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>);
    /// Deals with the loss of one end.
    fn cut(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>, why: Cut);
    /// How many requests are in flight at the host.  The shell waits for them before it lets a driver of the
    /// guest go.
    fn in_flight(&self) -> usize;

    /// The guest runs again, on another host.
    fn arrived(&mut self, _shell: &Shell<Self>, _cx: &mut Cx<'_>) {}
    /// Whether there is something to do that gives no event.
    fn wants_retry(&self, _shell: &Shell<Self>) -> bool {
        false
    }
    /// The guest has this many devices of the class.
    fn share(&mut self, _devices: usize) {}
}
