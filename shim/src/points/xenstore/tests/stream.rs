//! The ring as a stream of bytes, in pieces, in floods and broken.

use xen_abi::xs_wire::{MsgType, ring};

use super::guest::{Guest, PAGE, message, parse};
use crate::mem::Frames as _;

#[test]
fn messages_may_come_and_go_a_byte_at_a_time() {
    let mut guest = Guest::new();
    guest
        .store
        .write_as_host("/local/domain/1/data/big", &[b'x'; 3000]);
    let request = message(MsgType::READ, 5, 0, b"data/big\0");
    for byte in &request[..request.len() - 1] {
        guest.put(&[*byte]);
        guest.store.service(&guest.frames);
        assert!(guest.take(9999).is_empty());
    }
    guest.put(b"\0");
    let mut got = Vec::new();
    while guest.store.service(&guest.frames).notify {
        got.extend(guest.take(77));
        assert!(got.len() < 4000);
    }
    while got.len() < 3016 {
        got.extend(guest.take(100));
        guest.store.service(&guest.frames);
    }
    assert_eq!(parse(&got), [(2, 5, 0, vec![b'x'; 3000])]);
}

#[test]
fn a_broken_ring_is_given_up() {
    for (offset, value) in [
        (ring::REQ_PROD, 1025),
        (ring::REQ_PROD, 0x8000_0000),
        (ring::REQ_CONS, 1),
        (ring::RSP_CONS, 0xffff_0000),
    ] {
        let mut guest = Guest::new();
        guest.ask(MsgType::WATCH, 0, b"data\0t\0");
        guest.frames.store32(PAGE, offset, 0);
        guest.frames.store32(PAGE, offset ^ 4, 0);
        guest.store.write_as_host("/local/domain/1/data", b"");
        guest.frames.store32(PAGE, offset, value);
        guest.store.service(&guest.frames);
        assert_eq!(guest.frames.load32(PAGE, ring::ERROR), ring::ERROR_RINGIDX);
        assert!(!guest.store.has_output());
        guest.frames.store32(PAGE, offset, 0);
        guest.put(&message(MsgType::READ, 1, 0, b"data\0"));
        assert_eq!(
            guest.store.service(&guest.frames),
            crate::points::xenstore::Serviced::default()
        );
    }
    let mut guest = Guest::new();
    guest.put(b"\x02\0\0\0\x07\0\0\0\0\0\0\0\x01\x10\0\0");
    guest.store.service(&guest.frames);
    assert_eq!(guest.frames.load32(PAGE, ring::ERROR), ring::ERROR_PROTO);
}

#[test]
fn a_guest_that_does_not_read_is_not_read_from() {
    let mut guest = Guest::new();
    let mut taken = 0;
    for _ in 0..10_000 {
        taken += guest.put(&message(MsgType::GET_DOMAIN_PATH, 1, 0, b"1\0"));
        guest.store.service(&guest.frames);
    }
    // A ring of answers, twenty that wait, and a ring of questions.
    assert!(taken <= 1024 + 18 * (1024 / 32 + 20), "{taken}");
    let mut answers = 0;
    loop {
        let got = guest.take(1024);
        if got.is_empty() {
            break;
        }
        answers += got.len();
        guest.store.service(&guest.frames);
    }
    assert_eq!(answers / 32, taken / 18);
}

#[test]
fn a_flood_gets_its_turn_and_no_more() {
    let mut guest = Guest::new();
    guest.store.service(&guest.frames);
    guest.put(&message(MsgType::RESET_WATCHES, 1, 0, b"").repeat(64));
    let serviced = guest.store.service(&guest.frames);
    assert!(serviced.again);
    assert!(guest.frames.load32(PAGE, ring::REQ_CONS) < 1024);
}
