//! A packet to send: from the slots in the guest's ring to something that was checked.
//!
//! Whatever Linux's backend would take as an attack, and close the interface for, is found here
//! first and answered with an error: one bad packet must not cost the guest its network.

use xen_abi::PAGE_SIZE;
use xen_abi::netif::{
    ETHERNET_HEADER, EXTRA_MORE, Extra, MIN_SLOTS, RING_ENTRIES, TX_SLOT, TxRequest, extra_type,
    tx_flags,
};
use zerocopy::FromBytes;

use super::features::Shown;

/// Parts that a packet may have: the first besides those that every backend takes.
pub(super) const MAX_PARTS: usize = MIN_SLOTS + 1;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Data to send.
    Data,
    /// A request about a multicast address, and no data.
    Multicast { add: bool, address: [u8; 6] },
    /// Something that can not be sent.
    Bad(&'static str),
}

/// A packet as the guest's slots describe it.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub kind: Kind,
    /// The first parts, as many as a good packet may have.
    parts: [TxRequest; MAX_PARTS],
    /// The names of all parts.
    ids: [u16; RING_ENTRIES],
    count: usize,
    /// How it is to be cut up.
    pub gso: Option<Extra>,
    /// Slots of the guest with extras.
    pub extras: u32,
}

impl Packet {
    /// Reads a packet from `slot(0)`, `slot(1)` and so on, each asked for once, of which there are
    /// `pending`, at least one and at most a ring full.  `None` if the packet goes on beyond them.
    pub fn read(
        mut slot: impl FnMut(u32) -> [u8; TX_SLOT],
        pending: u32,
        shown: &Shown,
    ) -> Option<Self> {
        let mut next = 0..pending.min(RING_ENTRIES as u32);
        let mut take = || next.next().map(&mut slot);
        let mut packet = Self {
            kind: Kind::Data,
            parts: [TxRequest::default(); MAX_PARTS],
            ids: [0; RING_ENTRIES],
            count: 0,
            gso: None,
            extras: 0,
        };
        let mut flags = packet.add(&take()?);
        let mut more = flags & tx_flags::EXTRA_INFO != 0;
        while more {
            more = packet.add_extra(&take()?, shown);
        }
        // Linux's netback takes no further slots for such a request either.
        if !matches!(packet.kind, Kind::Multicast { .. }) {
            while flags & tx_flags::MORE_DATA != 0 {
                flags = packet.add(&take()?);
            }
        }
        if packet.kind == Kind::Data
            && let Err(why) = packet.check(shown)
        {
            packet.kind = Kind::Bad(why);
        }
        Some(packet)
    }

    /// The parts of a good packet.
    pub fn parts(&self) -> &[TxRequest] {
        &self.parts[..self.count.min(MAX_PARTS)]
    }

    /// The names of all parts, of a bad packet too.
    pub fn ids(&self) -> &[u16] {
        &self.ids[..self.count]
    }

    /// Slots that it takes in the guest's ring.
    pub fn guest_slots(&self) -> u32 {
        self.count as u32 + self.extras
    }

    /// Slots that it takes in the host's ring.
    pub fn host_slots(&self) -> u32 {
        self.count as u32 + u32::from(self.gso.is_some())
    }

    /// Adds a part and returns its flags.
    fn add(&mut self, slot: &[u8; TX_SLOT]) -> u16 {
        let part = TxRequest::read_from_bytes(slot).expect("a slot has a request's size");
        if let Some(place) = self.parts.get_mut(self.count) {
            *place = part;
        }
        // In range: `read` takes at most a ring full.
        self.ids[self.count] = part.id;
        self.count += 1;
        part.flags
    }

    /// Adds an extra and says whether another follows.
    fn add_extra(&mut self, slot: &[u8; TX_SLOT], shown: &Shown) -> bool {
        let (extra, _) = Extra::read_from_prefix(slot).expect("a slot holds an extra");
        self.extras += 1;
        match extra.kind {
            extra_type::GSO if self.gso.is_some() => self.spoil("two kinds of segments"),
            extra_type::GSO if extra.gso_size() == 0 => self.spoil("segments without size"),
            extra_type::GSO if !shown.has_gso(extra.gso_type()) => {
                self.spoil("segments of a kind that was not offered");
            }
            extra_type::GSO => self.gso = Some(Extra { flags: 0, ..extra }),
            extra_type::MCAST_ADD | extra_type::MCAST_DEL if shown.has_multicast() => {
                if self.kind == Kind::Data {
                    self.kind = Kind::Multicast {
                        add: extra.kind == extra_type::MCAST_ADD,
                        address: extra.data,
                    };
                }
            }
            _ => self.spoil("an extra of a kind that was not offered"),
        }
        extra.flags & EXTRA_MORE != 0
    }

    fn spoil(&mut self, why: &'static str) {
        if self.kind == Kind::Data {
            self.kind = Kind::Bad(why);
        }
    }

    /// Checks the sizes: the first part says how long the whole packet is.
    fn check(&self, shown: &Shown) -> Result<(), &'static str> {
        if self.count > MAX_PARTS {
            return Err("too many parts");
        }
        if self.count > 1 && !shown.has_sg() {
            return Err("several parts, which was not offered");
        }
        let (first, rest) = self.parts().split_first().ok_or("no part")?;
        let mut own = first.size;
        for part in rest {
            own = own
                .checked_sub(part.size)
                .ok_or("parts longer than the packet")?;
            within_page(part.offset, part.size)?;
        }
        if own < ETHERNET_HEADER {
            return Err("no room for a header");
        }
        within_page(first.offset, own)
    }
}

fn within_page(offset: u16, size: u16) -> Result<(), &'static str> {
    match usize::from(offset) + usize::from(size) <= PAGE_SIZE {
        true => Ok(()),
        false => Err("a part that leaves its page"),
    }
}
