//! Makes sense of what the host puts into the guest's buffers: slots that belong to one packet.

use alloc::vec::Vec;

use xen_abi::netif::{EXTRA_MORE, Extra, RX_SLOT, RxResponse, extra_type, rx_flags};
use xen_abi::{Mfn, PAGE_SIZE};
use zerocopy::FromBytes;

use super::features::Wishes;
use crate::host::HostRef;

/// A buffer of the guest.
#[derive(Debug)]
pub(super) struct Buffer {
    /// The guest's own name for it.
    pub id: u16,
    /// The host's name for it, once posted.
    pub host_id: u16,
    /// The frame, of which a hold was taken for writing; none if the guest's reference was bad.
    pub frame: Option<Mfn>,
    /// What the backend may use.
    pub grant: Option<HostRef>,
}

/// A packet that is being received.
#[derive(Debug, Default)]
pub(super) struct Packet {
    /// Names of its buffers, and what is to be answered if the packet turns out to be good.
    pub parts: Vec<(u16, [u8; RX_SLOT])>,
    /// The next slot is an extra.
    pub wants_extra: bool,
    /// There is more to come after this part.
    pub wants_data: bool,
    /// It fails as a whole.
    pub is_bad: bool,
}

impl Packet {
    /// Takes a part in; says what is wrong with it, if anything.
    pub fn add(
        &mut self,
        buffer: &Buffer,
        slot: [u8; RX_SLOT],
        wishes: &Wishes,
    ) -> Option<&'static str> {
        let (bytes, wrong) = if core::mem::take(&mut self.wants_extra) {
            self.add_extra(Extra::read_from_bytes(&slot).ok()?, wishes)
        } else {
            self.add_data(RxResponse::read_from_bytes(&slot).ok()?, buffer)
        };
        self.parts.push((buffer.id, bytes));
        self.is_bad |= wrong.is_some();
        wrong
    }

    fn add_extra(
        &mut self,
        extra: Extra,
        wishes: &Wishes,
    ) -> ([u8; RX_SLOT], Option<&'static str>) {
        let wrong = match extra.kind {
            extra_type::GSO if extra.gso_size() == 0 => Some("segments without size"),
            extra_type::GSO if wishes.has_gso(extra.gso_type()) => None,
            _ => Some("an extra that nobody asked for"),
        };
        let flags = extra.flags & EXTRA_MORE;
        self.wants_extra = flags != 0;
        let extra = Extra { flags, ..extra };
        (zerocopy::transmute!(extra), wrong)
    }

    fn add_data(
        &mut self,
        response: RxResponse,
        buffer: &Buffer,
    ) -> ([u8; RX_SLOT], Option<&'static str>) {
        let mut known = rx_flags::MORE_DATA;
        // These describe the whole packet, and are read in its first slot only.
        if self.parts.is_empty() {
            known |= rx_flags::DATA_VALIDATED | rx_flags::CSUM_BLANK | rx_flags::EXTRA_INFO;
        }
        let flags = response.flags & known;
        self.wants_extra = flags & rx_flags::EXTRA_INFO != 0;
        self.wants_data = flags & rx_flags::MORE_DATA != 0;
        let wrong = match usize::try_from(response.status) {
            // It has failed, or could not be kept; neither is a lie.
            Err(_) => {
                self.is_bad = true;
                None
            }
            Ok(_) if buffer.frame.is_none() => {
                self.is_bad = true;
                None
            }
            Ok(len) if usize::from(response.offset) + len > PAGE_SIZE => {
                Some("a part that leaves its page")
            }
            Ok(_) => None,
        };
        let response = RxResponse {
            id: buffer.id,
            flags,
            ..response
        };
        (zerocopy::transmute!(response), wrong)
    }

    /// Whether nothing of it is still to come.
    pub fn is_complete(&self) -> bool {
        !self.wants_extra && !self.wants_data
    }
}
