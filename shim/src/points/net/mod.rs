//! Network interfaces: a netif backend towards the guest, a netif frontend towards the host, and
//! between them the translation of each slot, without touching a packet.
//!
//! For every slot the guest's reference is looked up and its frame granted to the real backend
//! under a real reference.  Slots to send keep a [`shadow`] until they are answered; buffers to
//! receive into are posted to the host one for one and in order, because frontends rely on it that
//! a response lies in the slot of its request ([`rx`]).
//!
//! What the guest's driver can receive (large packets, blank checksums) is its own choice and has
//! to reach the host's backend, which looks at it once when it connects.  Therefore the host half
//! connects when the guest's driver does, and is closed and opened again with it.  The features
//! that the guest is *offered* are fixed when the first host describes them ([`features`]); a
//! later host that lacks one of them is a reason why the guest can not go on there.
//!
//! At a migration sent packets in flight are drained for a moment only, for the network may lose
//! packets anyway.  Buffers to receive into are in flight all the time: they are posted again to
//! the next host.  What the old host's backend still writes into them, or into its rings, after
//! the machine was suspended is not looked at, for nobody can say which of it was there when the
//! memory was copied.
//!
//! The rest is what every device does ([`device`](super::device)).
//!
//! | file | does |
//! |---|---|
//! | `features` | what the host offers, what the guest was told, what its driver wants |
//! | `guest` | the rings of the guest's driver |
//! | `host` | the rings of the host's backend |
//! | `packet` | makes sense of the slots of a packet to send |
//! | `tx` | sends packets |
//! | `shadow` | knows what was sent and is not answered |
//! | `rx` | posts buffers and passes received packets on |
//! | `incoming` | makes sense of the slots of a received packet |
//! | `announce` | tells the switches where the guest is now |

mod announce;
mod features;
mod guest;
mod host;
mod incoming;
#[cfg(any(test, feature = "testing"))]
pub mod model;
mod packet;
mod rx;
mod shadow;
#[cfg(test)]
mod tests;
mod tx;

use alloc::string::String;

use xen_abi::Mfn;
use xen_abi::xenbus::XenbusState;

use self::announce::Announcer;
use self::features::{OFFER_KEYS, Offer, Shown};
use self::guest::Driver;
use self::host::Rings;
use self::shadow::Shadow;
use super::device::{Carrier, Cut, Joining, Offering, Protocol, Shell};
use super::{Cx, DeviceClass};

/// A virtual network interface.
pub type Vif = Carrier<Net>;

/// What is in flight between a guest's interface and the host's.
#[derive(Debug, Default)]
pub struct Net {
    tx: Shadow,
    rx: rx::Buffers,
    announcer: Announcer,
    /// A page of ours for packets that would go where the guest may not have them written.
    trash: Option<Mfn>,
}

impl Protocol for Net {
    const CLASS: DeviceClass = DeviceClass::Vif;
    const FRONT_KEYS: &'static [&'static str] = &["handle", "mac", "mtu", "trusted"];
    const BACK_KEYS: &'static [&'static str] = &["handle", "mac"];
    const BACK_NODES: &'static [(&'static str, &'static str)] = &[("hotplug-status", "connected")];
    const TERMS: &'static [&'static str] = OFFER_KEYS;
    const DETAILS: &'static [&'static str] = &[];
    const CHANGES: &'static [&'static str] = &[];
    const GIVEN: XenbusState = XenbusState::CONNECTED;
    const READY: &'static [XenbusState] = &[XenbusState::CONNECTED];
    const FOLLOWS_DRIVER: bool = true;
    // The network may lose packets anyway.
    const DRAIN_NS: Option<u64> = Some(50_000_000);

    type Offer = Offer;
    type Shown = Shown;
    type Driver = Driver;
    type Rings = Rings;

    fn join(with: &mut Joining<'_, '_>) -> Result<Driver, String> {
        Driver::join(with)
    }

    fn offer(&self, with: &mut Offering<'_, '_>, driver: Option<&Driver>) -> Result<Rings, String> {
        let wishes = driver.map(|driver| driver.wishes).unwrap_or_default();
        Rings::offer(with, &wishes)
    }

    fn pump(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        self.announce(shell, cx);
        self.send_packets(shell, cx);
        self.post_buffers(shell, cx);
        if let Some(rings) = &mut shell.host.rings {
            rings.push(cx);
        }
        if let Some(driver) = &mut shell.guest.driver {
            driver.push(cx);
        }
    }

    fn take_answers(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) -> Result<(), String> {
        while let Some(slot) = Self::next_sent(shell, cx)? {
            self.take_sent_slot(shell, cx, &slot)?;
        }
        while self.take_received_part(shell, cx)? {}
        Ok(())
    }

    fn retry_ending(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        self.settle_sent(shell, cx);
        self.end_withdrawn(shell, cx);
    }

    fn cut(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>, why: Cut) {
        match why {
            Cut::Broken => {
                self.fail_sent(shell, cx);
                self.withdraw_buffers(shell, cx);
            }
            // Nothing is sent to a backend before it is connected.
            Cut::Absent => self.withdraw_buffers(shell, cx),
            Cut::Moved => {
                self.forget_sent(shell, cx);
                self.rewind_buffers(shell, cx);
                self.announcer.stop();
            }
            Cut::DriverGone => {
                self.drop_sent(shell, cx);
                self.drop_buffers(shell, cx);
            }
            Cut::Over => self
                .trash
                .take()
                .into_iter()
                .chain(self.announcer.page())
                .for_each(|page| cx.pool.give_back(page)),
        }
    }

    fn in_flight(&self) -> usize {
        self.tx.in_flight()
    }

    fn arrived(&mut self, shell: &Shell<Self>, cx: &mut Cx<'_>) {
        let mac = shell.guest.link.own_text(cx.store, "mac");
        self.announcer.start(mac.as_deref(), cx.xen.now_ns());
    }

    fn wants_retry(&self, shell: &Shell<Self>) -> bool {
        self.has_to_announce(shell) || self.has_to_poll(shell)
    }
}
