//! The network device protocol (`xen/include/public/io/netif.h`).
//!
//! A transmit ring has slots of [`TX_SLOT`] bytes, a receive ring of [`RX_SLOT`]; both have
//! [`RING_ENTRIES`] of them in one page.  A packet takes a request (or response) for each of its
//! parts, and between the first and the second of them as many [`Extra`]s as the flags announce.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a slot of the transmit ring.
pub const TX_SLOT: usize = size_of::<TxRequest>();
/// Bytes of a slot of the receive ring.
pub const RX_SLOT: usize = size_of::<RxRequest>();
/// Slots of either ring.
pub const RING_ENTRIES: usize = 256;
/// Parts of a packet that every backend takes (`XEN_NETIF_NR_SLOTS_MIN`).
pub const MIN_SLOTS: usize = 18;
/// Bytes of an Ethernet header, which no packet goes without.
pub const ETHERNET_HEADER: u16 = 14;

/// Flags of a [`TxRequest`] (`NETTXF_*`).
pub mod tx_flags {
    /// The protocol's checksum is not filled in.
    pub const CSUM_BLANK: u16 = 1;
    /// The data is known to be good.
    pub const DATA_VALIDATED: u16 = 2;
    /// The packet goes on in the next request.
    pub const MORE_DATA: u16 = 4;
    /// An [`Extra`](super::Extra) follows.
    pub const EXTRA_INFO: u16 = 8;
}

/// Flags of an [`RxResponse`] (`NETRXF_*`), whose first two are the other way round.
pub mod rx_flags {
    /// The data is known to be good.
    pub const DATA_VALIDATED: u16 = 1;
    /// The protocol's checksum is not filled in.
    pub const CSUM_BLANK: u16 = 2;
    /// The packet goes on in the next response.
    pub const MORE_DATA: u16 = 4;
    /// An [`Extra`](super::Extra) follows.
    pub const EXTRA_INFO: u16 = 8;
}

/// What a response says (`NETIF_RSP_*`); of a received part, everything not negative is a length.
pub mod status {
    /// Thrown away.
    pub const DROPPED: i16 = -2;
    /// Failed.
    pub const ERROR: i16 = -1;
    /// Done.
    pub const OKAY: i16 = 0;
    /// No response at all: stands for an [`Extra`](super::Extra).
    pub const NULL: i16 = 1;
}

/// Kinds of [`Extra`]s (`XEN_NETIF_EXTRA_TYPE_*`).
pub mod extra_type {
    /// The packet is to be cut up.
    pub const GSO: u8 = 1;
    /// Not a packet: lets a multicast address through.
    pub const MCAST_ADD: u8 = 2;
    /// Not a packet: lets it through no more.
    pub const MCAST_DEL: u8 = 3;
}

/// Another [`Extra`] follows (`XEN_NETIF_EXTRA_FLAG_MORE`).
pub const EXTRA_MORE: u8 = 1;

/// How a packet is to be cut up (`XEN_NETIF_GSO_TYPE_*`).
pub mod gso_type {
    /// As TCP over IPv4.
    pub const TCPV4: u8 = 1;
    /// As TCP over IPv6.
    pub const TCPV6: u8 = 2;
}

/// A part of a packet to send (`netif_tx_request_t`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TxRequest {
    /// The frame's grant reference.
    pub gref: u32,
    /// Where in the frame the part begins.
    pub offset: u16,
    /// Of [`tx_flags`].
    pub flags: u16,
    /// The sender's own name for the request, returned in the response.
    pub id: u16,
    /// Bytes of the part; in a packet's first request, bytes of the whole packet.
    pub size: u16,
}

/// `netif_tx_response_t`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TxResponse {
    /// The request's.
    pub id: u16,
    /// One of [`status`].
    pub status: i16,
}

/// A buffer to receive into (`netif_rx_request_t`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RxRequest {
    /// The receiver's own name for the buffer, returned in the response.
    pub id: u16,
    /// Padding.
    pub pad: u16,
    /// The frame's grant reference.
    pub gref: u32,
}

/// A part of a received packet (`netif_rx_response_t`).  It lies in the slot of the request that it
/// answers: many frontends rely on that and not on the `id`, which an [`Extra`] does not have.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RxResponse {
    /// The request's.
    pub id: u16,
    /// Where in the frame the part begins.
    pub offset: u16,
    /// Of [`rx_flags`].
    pub flags: u16,
    /// Bytes of the part, or one of [`status`] if negative.
    pub status: i16,
}

/// What else there is to know about a packet (`netif_extra_info_t`); fills a slot of either ring.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Extra {
    /// One of [`extra_type`].
    pub kind: u8,
    /// [`EXTRA_MORE`] or 0.
    pub flags: u8,
    /// What it says, depending on the kind.
    pub data: [u8; 6],
}

impl Extra {
    /// Makes the description of a packet that is to be cut into parts with `size` bytes of payload,
    /// by the rules of `gso` ([`gso_type`]).
    pub const fn segments(size: u16, gso: u8) -> Self {
        let [low, high] = size.to_le_bytes();
        Self {
            kind: extra_type::GSO,
            flags: 0,
            data: [low, high, gso, 0, 0, 0],
        }
    }

    /// Bytes of payload of each part, if the kind is [`extra_type::GSO`].
    pub const fn gso_size(&self) -> u16 {
        u16::from_le_bytes([self.data[0], self.data[1]])
    }

    /// One of [`gso_type`], if the kind is [`extra_type::GSO`].
    pub const fn gso_type(&self) -> u8 {
        self.data[2]
    }
}

const _: () = {
    assert!(TX_SLOT == 12 && RX_SLOT == 8);
    assert!(offset_of!(TxRequest, offset) == 4 && offset_of!(TxRequest, flags) == 6);
    assert!(offset_of!(TxRequest, id) == 8 && offset_of!(TxRequest, size) == 10);
    assert!(size_of::<TxResponse>() == 4 && offset_of!(TxResponse, status) == 2);
    assert!(offset_of!(RxRequest, gref) == 4);
    assert!(size_of::<RxResponse>() == RX_SLOT && offset_of!(RxResponse, offset) == 2);
    assert!(offset_of!(RxResponse, flags) == 4 && offset_of!(RxResponse, status) == 6);
    assert!(size_of::<Extra>() == RX_SLOT && offset_of!(Extra, data) == 2);
};
