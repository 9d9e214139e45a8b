//! What an interface can do: as this host's backend offers it, as the guest was told once and for
//! all, and as the guest's driver asked for when it connected.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use xen_abi::netif::gso_type;

use crate::points::GuestStore;
use crate::points::device::Features;
use crate::points::xenbus::{GuestLink, Nodes};

/// The backend's nodes that describe the interface.
pub(super) const OFFER_KEYS: &[&str] = &[
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-ipv6-csum-offload",
    "feature-rx-copy",
    "feature-multicast-control",
    "feature-split-event-channels",
];

/// What this host's backend offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Packets of several parts.
    pub sg: bool,
    /// Packets to be cut up as TCP over IPv4.
    pub gso_tcpv4: bool,
    /// The same over IPv6.
    pub gso_tcpv6: bool,
    /// Packets over IPv6 with blank checksums; over IPv4 everybody takes them.
    pub ipv6_csum: bool,
    /// Received packets are copied into the frontend's frames; else frames would change hands,
    /// which is not done any more.
    pub rx_copy: bool,
    /// Filters multicast packets.
    pub multicast: bool,
    /// Takes a port for each ring.
    pub split_ports: bool,
}

impl Offer {
    /// Reads what a backend published.
    pub fn read(nodes: &Nodes) -> Self {
        Self {
            sg: nodes.flag("feature-sg"),
            gso_tcpv4: nodes.flag("feature-gso-tcpv4"),
            gso_tcpv6: nodes.flag("feature-gso-tcpv6"),
            ipv6_csum: nodes.flag("feature-ipv6-csum-offload"),
            rx_copy: nodes.flag("feature-rx-copy"),
            multicast: nodes.flag("feature-multicast-control"),
            split_ports: nodes.flag("feature-split-event-channels"),
        }
    }
}

/// What the guest was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    sg: bool,
    gso_tcpv4: bool,
    gso_tcpv6: bool,
    ipv6_csum: bool,
    multicast: bool,
}

impl Shown {
    /// Whether a packet may have several parts.
    pub fn has_sg(&self) -> bool {
        self.sg
    }

    /// Whether a packet may be one that is to be cut up by these rules.
    pub fn has_gso(&self, kind: u8) -> bool {
        match kind {
            gso_type::TCPV4 => self.gso_tcpv4,
            gso_type::TCPV6 => self.gso_tcpv6,
            _ => false,
        }
    }

    /// Whether the guest may ask for multicast addresses.
    pub fn has_multicast(&self) -> bool {
        self.multicast
    }
}

impl Features for Shown {
    type Offer = Offer;

    fn parse(nodes: &Nodes) -> Result<Offer, String> {
        Ok(Offer::read(nodes))
    }

    fn fix(offer: &Offer) -> Self {
        Self {
            sg: offer.sg,
            gso_tcpv4: offer.gso_tcpv4,
            gso_tcpv6: offer.gso_tcpv6,
            ipv6_csum: offer.ipv6_csum,
            multicast: offer.multicast,
        }
    }

    fn refuses(&self, offer: &Offer) -> Option<String> {
        let lacks = [
            (true, offer.rx_copy, "feature-rx-copy"),
            (self.sg, offer.sg, "feature-sg"),
            (self.gso_tcpv4, offer.gso_tcpv4, "feature-gso-tcpv4"),
            (self.gso_tcpv6, offer.gso_tcpv6, "feature-gso-tcpv6"),
            (self.ipv6_csum, offer.ipv6_csum, "feature-ipv6-csum-offload"),
        ]
        .iter()
        .filter(|(needed, offered, _)| *needed && !offered)
        .fold(String::new(), |list, (.., key)| list + " " + key);
        (!lacks.is_empty()).then(|| "it lacks what the guest was told:".to_owned() + &lacks)
    }

    fn nodes(&self) -> Vec<(&'static str, String)> {
        let yes = |is: bool| u32::from(is).to_string();
        Vec::from([
            ("feature-sg", yes(self.sg)),
            ("feature-gso-tcpv4", yes(self.gso_tcpv4)),
            ("feature-gso-tcpv6", yes(self.gso_tcpv6)),
            ("feature-ipv6-csum-offload", yes(self.ipv6_csum)),
            ("feature-rx-copy", yes(true)),
            ("feature-rx-flip", yes(false)),
            ("feature-multicast-control", yes(self.multicast)),
            // Ours, whatever the host's backend does.
            ("feature-split-event-channels", yes(true)),
        ])
    }
}

/// What the guest's driver can receive, and how it behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    sg: bool,
    gso_tcpv4: bool,
    gso_tcpv6: bool,
    no_csum: bool,
    ipv6_csum: bool,
    /// It notifies the backend of new buffers.
    pub rx_notify: bool,
}

impl Wishes {
    /// Reads what the driver wrote, or says why it can not be served.
    pub fn read(link: &GuestLink, store: &dyn GuestStore) -> Result<Self, &'static str> {
        let flag = |key| {
            link.number::<u64>(store, key)
                .is_some_and(|value| value != 0)
        };
        // Page flipping would have frames of the guest change hands, which no backend does any
        // more.
        if !flag("request-rx-copy") {
            return Err("it does not want packets copied");
        }
        if link
            .number::<u64>(store, "multi-queue-num-queues")
            .is_some_and(|queues| queues != 1)
        {
            return Err("it wants several queues, which were not offered");
        }
        Ok(Self {
            sg: flag("feature-sg"),
            gso_tcpv4: flag("feature-gso-tcpv4"),
            gso_tcpv6: flag("feature-gso-tcpv6"),
            no_csum: flag("feature-no-csum-offload"),
            ipv6_csum: flag("feature-ipv6-csum-offload"),
            rx_notify: flag("feature-rx-notify"),
        })
    }

    /// Whether it can receive packets that are to be cut up by these rules.
    pub fn has_gso(&self, kind: u8) -> bool {
        match kind {
            gso_type::TCPV4 => self.gso_tcpv4,
            gso_type::TCPV6 => self.gso_tcpv6,
            _ => false,
        }
    }

    /// The nodes of the host-facing frontend.
    pub fn nodes(&self) -> [(&'static str, bool); 7] {
        [
            ("request-rx-copy", true),
            // Ours, whatever the guest's driver does.
            ("feature-rx-notify", true),
            ("feature-sg", self.sg),
            ("feature-gso-tcpv4", self.gso_tcpv4),
            ("feature-gso-tcpv6", self.gso_tcpv6),
            ("feature-no-csum-offload", self.no_csum),
            ("feature-ipv6-csum-offload", self.ipv6_csum),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::{Offer, Shown};
    use crate::points::device::Features;
    use crate::points::xenbus::Nodes;

    const ALL: &[(&str, &str)] = &[
        ("feature-sg", "1"),
        ("feature-gso-tcpv4", "1"),
        ("feature-gso-tcpv6", "1"),
        ("feature-ipv6-csum-offload", "1"),
        ("feature-rx-copy", "1"),
    ];

    fn offer(pairs: &[(&'static str, &str)]) -> Offer {
        Offer::read(&Nodes::from_pairs(pairs))
    }

    #[test]
    fn a_host_that_lacks_what_the_guest_was_told_is_refused_by_name() {
        let shown = Shown::fix(&offer(ALL));
        assert_eq!(shown.refuses(&offer(ALL)), None);
        for left_out in 0..ALL.len() {
            let mut less = ALL.to_vec();
            let (key, _) = less.remove(left_out);
            let why = shown.refuses(&offer(&less)).expect("refused");
            assert!(why.ends_with(key), "{why}");
        }
    }

    #[test]
    fn a_host_that_offers_more_changes_nothing() {
        let shown = Shown::fix(&offer(&[("feature-rx-copy", "1")]));
        assert_eq!(shown.refuses(&offer(ALL)), None);
        assert!(!shown.has_sg() && !shown.has_gso(1) && !shown.has_gso(2) && !shown.has_gso(7));
    }
}
