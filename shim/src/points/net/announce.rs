//! After a move the switches still send the guest's packets to the old place.  They learn the new
//! one from any packet that comes from there with the guest's address, so one is sent on the
//! guest's behalf that asks nothing of anybody: a RARP request, as other hypervisors send it.  It
//! needs no knowledge of the guest's IP addresses.  It is repeated, because a bridge may not let
//! packets through right after a port has come up.

use xen_abi::{Mfn, PAGE_SIZE};

use super::{Net, Shell};
use crate::points::Cx;
use crate::points::device::ConnectionStage;

/// Pauses after each announcement but the last, in nanoseconds.
const PAUSES: [u64; 4] = [50_000_000, 150_000_000, 300_000_000, 500_000_000];
/// Bytes of the packet: the least that an Ethernet has.
const SIZE: usize = 60;

/// When to announce.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    mac: Option<[u8; 6]>,
    page: Option<Mfn>,
    /// Announcements still to be made.
    left: usize,
    next_ns: u64,
}

impl Announcer {
    /// Begins to announce the address, which is the same for ever.
    pub fn start(&mut self, mac: Option<&str>, now: u64) {
        self.mac = mac.and_then(parse_mac);
        if self.mac.is_some() {
            self.left = PAUSES.len() + 1;
            self.next_ns = now;
        }
    }

    /// Announces no more.
    pub fn stop(&mut self) {
        self.left = 0;
    }

    /// Gives up its page, for good.
    pub fn page(&mut self) -> Option<Mfn> {
        self.page.take()
    }
}

impl Net {
    /// Whether an announcement is to be made soon.
    pub(super) fn has_to_announce(&self, shell: &Shell<Self>) -> bool {
        self.announcer.left > 0
            && *shell.host.stage() == ConnectionStage::Connected
            && !shell.is_quiescing()
    }

    /// Makes an announcement if it is time.
    pub(super) fn announce(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) {
        if !self.has_to_announce(shell) {
            return;
        }
        let now = cx.xen.now_ns();
        if now < self.announcer.next_ns {
            return;
        }
        let Some(mac) = self.announcer.mac else {
            return;
        };
        let Some(page) = self.announcer.page.or_else(|| cx.pool.take()) else {
            return;
        };
        self.announcer.page = Some(page);
        const { assert!(SIZE <= PAGE_SIZE) };
        cx.frames.write(page, 0, &rarp(mac));
        // One that finds no room is not counted, and is made at the next retry.
        if self.send_own(shell, cx, page, SIZE as u16) {
            let done = PAUSES.len() + 1 - self.announcer.left;
            self.announcer.left -= 1;
            self.announcer.next_ns = now.saturating_add(PAUSES.get(done).copied().unwrap_or(0));
        }
    }
}

/// Reads an address written as six hexadecimal numbers with colons between them.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next()?;
        if part.len() > 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// The packet: who has an IP address for `mac`, asks `mac` itself (RFC 903).
fn rarp(mac: [u8; 6]) -> [u8; SIZE] {
    let mut packet = [0; SIZE];
    let mut at = 0;
    for part in [
        &[0xff; 6][..],
        &mac,
        // EtherType; Ethernet, IPv4, lengths of their addresses; "request reverse".
        &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3],
        &mac,
        &[0; 4],
        &mac,
    ] {
        packet[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::{parse_mac, rarp};

    #[test]
    fn addresses_are_read_as_toolstacks_write_them() {
        let mac = [0, 0x16, 0x3e, 0xab, 0xcd, 0xef];
        assert_eq!(parse_mac("00:16:3e:AB:cd:ef"), Some(mac));
        assert_eq!(parse_mac("0:16:3e:ab:cd:ef"), Some(mac));
        for bad in [
            "",
            "00:16:3e:ab:cd",
            "00:16:3e:ab:cd:ef:01",
            "00:16:3e:ab:cd:g0",
            "+1:2:3:4:5:6",
            "::::::",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_announcement_is_a_reverse_request_about_oneself() {
        let packet = rarp([2, 3, 4, 5, 6, 7]);
        assert_eq!(
            packet[..14],
            [255, 255, 255, 255, 255, 255, 2, 3, 4, 5, 6, 7, 0x80, 0x35]
        );
        assert_eq!(packet[14..22], [0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(packet[22..28], packet[32..38]);
        assert_eq!(packet[38..], [0; 22]);
    }
}
