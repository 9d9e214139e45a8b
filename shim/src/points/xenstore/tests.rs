//! The whole store through its doors: literal bytes over the guest's ring.

use xen_abi::xs_wire::{Header, MsgType, ring};
use xen_abi::{DomId, Mfn};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Limits, VirtualStore};
use crate::mem::{FakeFrames, Frames as _};
use crate::points::GuestStore as _;

const PAGE: Mfn = Mfn(0);
const GUEST: DomId = DomId(1);

/// A guest with a ring and no driver: it puts bytes in and takes bytes out.
struct Guest {
    frames: FakeFrames,
    store: VirtualStore,
}

/// A message as the guest sees it: type, request id, transaction, payload.
type Message = (u32, u32, u32, Vec<u8>);

impl Guest {
    fn new() -> Self {
        let frames = FakeFrames::new(1);
        let mut store = VirtualStore::new(GUEST, Limits::default());
        store.put(
            "/local/domain/1",
            b"",
            &super::perms::Perms::new(DomId(0), Some(GUEST)),
        );
        store.put(
            "/local/domain/1/data",
            b"",
            &super::perms::Perms::new(GUEST, None),
        );
        store.connect(&frames, PAGE);
        Self { frames, store }
    }

    /// Puts as much as fits into the ring.
    fn put(&self, bytes: &[u8]) -> usize {
        let prod = self.frames.load32(PAGE, ring::REQ_PROD);
        let free = 1024 - (prod - self.frames.load32(PAGE, ring::REQ_CONS)) as usize;
        let count = bytes.len().min(free);
        for (index, byte) in bytes[..count].iter().enumerate() {
            self.frames
                .store8(PAGE, (prod as usize + index) % 1024, *byte);
        }
        self.frames
            .store32(PAGE, ring::REQ_PROD, prod + count as u32);
        count
    }

    /// Takes everything that waits, up to `most` bytes.
    fn take(&self, most: usize) -> Vec<u8> {
        let cons = self.frames.load32(PAGE, ring::RSP_CONS);
        let there = (self.frames.load32(PAGE, ring::RSP_PROD) - cons) as usize;
        let count = there.min(most);
        self.frames
            .store32(PAGE, ring::RSP_CONS, cons + count as u32);
        (0..count)
            .map(|index| {
                self.frames
                    .load8(PAGE, 1024 + (cons as usize + index) % 1024)
            })
            .collect()
    }

    /// Sends bytes and reads until nothing more comes.
    fn exchange(&mut self, mut bytes: &[u8]) -> Vec<Message> {
        let mut got = Vec::new();
        loop {
            let put = self.put(bytes);
            bytes = &bytes[put..];
            let serviced = self.store.service(&self.frames);
            let taken = self.take(1024);
            assert!(serviced.notify || (put == 0 && taken.is_empty()));
            got.extend_from_slice(&taken);
            if !serviced.notify && bytes.is_empty() {
                return parse(&got);
            }
        }
    }

    fn ask(&mut self, kind: MsgType, tx: u32, payload: &[u8]) -> Vec<Message> {
        self.exchange(&message(kind, 42, tx, payload))
    }

    /// Asks and returns the answer's payload, or the error's name.
    fn answer(&mut self, kind: MsgType, tx: u32, payload: &[u8]) -> String {
        let all = self.ask(kind, tx, payload);
        let (got, req_id, tx_id, bytes) = all.last().expect("an answer");
        assert!(*got == kind.0 || *got == MsgType::ERROR.0);
        assert_eq!((*req_id, *tx_id), (42, tx));
        String::from_utf8_lossy(bytes).into_owned()
    }
}

fn message(kind: MsgType, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        kind: kind.0,
        req_id,
        tx_id,
        len: payload.len() as u32,
    };
    [header.as_bytes(), payload].concat()
}

fn parse(mut bytes: &[u8]) -> Vec<Message> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (header, rest) = Header::read_from_prefix(bytes).expect("a whole header");
        let (payload, rest) = rest.split_at(header.len as usize);
        all.push((header.kind, header.req_id, header.tx_id, payload.to_vec()));
        bytes = rest;
    }
    all
}

#[test]
fn a_read_in_literal_bytes() {
    let mut guest = Guest::new();
    guest.store.write_as_host("/local/domain/1/name", b"me");
    guest.put(b"\x02\0\0\0\x07\0\0\0\0\0\0\0\x05\0\0\0name\0");
    let serviced = guest.store.service(&guest.frames);
    assert!(serviced.notify && !serviced.again);
    assert_eq!(
        guest.take(1024),
        b"\x02\0\0\0\x07\0\0\0\0\0\0\0\x02\0\0\0me"
    );
    guest.put(b"\x02\0\0\0\x08\0\0\0\0\0\0\0\x05\0\0\0nome\0");
    guest.store.service(&guest.frames);
    assert_eq!(
        guest.take(1024),
        b"\x10\0\0\0\x08\0\0\0\0\0\0\0\x07\0\0\0ENOENT\0"
    );
    assert!(!guest.store.service(&guest.frames).notify);
}

#[test]
fn a_write_tells_the_watch_before_it_is_acknowledged() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.ask(MsgType::WATCH, 0, b"data\0tok\0"),
        [
            (4, 42, 0, b"OK\0".to_vec()),
            (15, 0, 0, b"data\0tok\0".to_vec())
        ]
    );
    assert_eq!(
        guest.ask(MsgType::WRITE, 0, b"/local/domain/1/data/a/b\0v\0w"),
        [
            (15, 0, 0, b"data/a/b\0tok\0".to_vec()),
            (11, 42, 0, b"OK\0".to_vec())
        ]
    );
    assert_eq!(guest.answer(MsgType::READ, 0, b"data/a/b\0"), "v\0w");
    assert_eq!(guest.answer(MsgType::GET_PERMS, 0, b"data/a\0"), "n1\0");
    assert_eq!(
        guest.store.take_guest_changes(),
        ["/local/domain/1/data/a/b"]
    );
    assert_eq!(guest.store.take_guest_changes(), [""; 0]);
}

#[test]
fn types_are_checked_before_privilege_before_transactions() {
    let mut guest = Guest::new();
    for kind in [15, 16, 20, 23, 26, 0xffff, u32::MAX] {
        assert_eq!(
            guest.ask(MsgType(kind), 99, b"x\0")[0].3,
            b"ENOSYS\0",
            "{kind}"
        );
    }
    for kind in [0, 8, 9, 17, 18, 19] {
        assert_eq!(guest.answer(MsgType(kind), 99, b""), "EACCES\0", "{kind}");
    }
    for kind in [1, 2, 3, 6, 7, 10, 11, 12, 13, 14, 21, 22] {
        assert_eq!(guest.answer(MsgType(kind), 99, b""), "ENOENT\0", "{kind}");
    }
    for kind in [1, 2, 3, 4, 5, 7, 10, 11, 12, 13, 14, 22] {
        assert_eq!(guest.answer(MsgType(kind), 0, b""), "EINVAL\0", "{kind}");
    }
    assert_eq!(
        guest.answer(MsgType::WATCH, 99, b"data\0t\0data2\0"),
        "EINVAL\0"
    );
    assert_eq!(
        guest.answer(MsgType::GET_DOMAIN_PATH, 0, b"1\0"),
        "/local/domain/1\0"
    );
    assert_eq!(
        guest.answer(MsgType::GET_DOMAIN_PATH, 0, b"-1\0"),
        "/local/domain/4294967295\0"
    );
}

#[test]
fn what_the_guest_may_not_know_is_not_told() {
    let mut guest = Guest::new();
    guest.store.write_as_host("/tool/x", b"");
    for path in [
        "/",
        "/tool",
        "/tool/x",
        "/nothing",
        "/local/domain",
        "/local/domain/0/y",
    ] {
        let payload = format!("{path}\0");
        assert_eq!(
            guest.answer(MsgType::READ, 0, payload.as_bytes()),
            "EACCES\0",
            "{path}"
        );
        assert_eq!(
            guest.answer(MsgType::RM, 0, payload.as_bytes()),
            "EACCES\0",
            "{path}"
        );
    }
    assert_eq!(guest.answer(MsgType::READ, 0, b"nothing\0"), "ENOENT\0");
    assert_eq!(guest.answer(MsgType::WRITE, 0, b"name\0x"), "EACCES\0");
    assert_eq!(guest.answer(MsgType::RM, 0, b"name\0"), "EACCES\0");
    assert_eq!(guest.answer(MsgType::RM, 0, b"data/a/b\0"), "ENOENT\0");
    assert_eq!(guest.answer(MsgType::RM, 0, b"data/a\0"), "OK\0");
    assert_eq!(
        guest.answer(MsgType::SET_PERMS, 0, b"data\0n0\0"),
        "EPERM\0"
    );
    assert_eq!(
        guest.answer(MsgType::SET_PERMS, 0, b"data\0n7\0"),
        "ENOENT\0"
    );
    assert_eq!(
        guest.answer(MsgType::SET_PERMS, 0, b"@releaseDomain\0n1\0"),
        "EACCES\0"
    );
    assert_eq!(
        guest.answer(MsgType::SET_PERMS, 0, b"@other\0n1\0"),
        "EINVAL\0"
    );
    assert_eq!(
        guest.answer(MsgType::SET_PERMS, 0, b"data\0b1\0r7\0"),
        "OK\0"
    );
    let answer = guest.ask(MsgType::WATCH, 0, b"@releaseDomain\0t\0");
    assert_eq!(answer[1].3, b"@releaseDomain\0t\0");
}

#[test]
fn a_transaction_conflicts_with_the_shim_s_own_write() {
    let mut guest = Guest::new();
    guest.store.write_as_host("/local/domain/1/data/a", b"1");
    assert_eq!(guest.answer(MsgType::TRANSACTION_START, 0, b"\0"), "1\0");
    assert_eq!(
        guest.answer(MsgType::TRANSACTION_START, 1, b"\0"),
        "EBUSY\0"
    );
    assert_eq!(guest.answer(MsgType::READ, 1, b"data/a\0"), "1");
    assert_eq!(guest.answer(MsgType::WRITE, 1, b"data/b\0x"), "OK\0");
    assert_eq!(guest.answer(MsgType::READ, 0, b"data/b\0"), "ENOENT\0");
    guest.store.write_as_host("/local/domain/1/data/a", b"2");
    assert_eq!(guest.answer(MsgType::READ, 1, b"data/a\0"), "1");
    assert_eq!(
        guest.answer(MsgType::TRANSACTION_END, 1, b"T\0"),
        "EAGAIN\0"
    );
    assert_eq!(
        guest.answer(MsgType::TRANSACTION_END, 1, b"T\0"),
        "ENOENT\0"
    );
    assert_eq!(guest.answer(MsgType::TRANSACTION_START, 0, b"\0"), "2\0");
    assert_eq!(guest.answer(MsgType::WRITE, 2, b"data/b\0x"), "OK\0");
    assert!(guest.store.take_guest_changes().is_empty());
    assert_eq!(guest.answer(MsgType::TRANSACTION_END, 2, b"T\0"), "OK\0");
    assert_eq!(guest.store.take_guest_changes(), ["/local/domain/1/data/b"]);
    for id in 3..14 {
        assert_eq!(
            guest.answer(MsgType::TRANSACTION_START, 0, b"\0"),
            format!("{id}\0")
        );
    }
    assert_eq!(
        guest.answer(MsgType::TRANSACTION_START, 0, b"\0"),
        "ENOSPC\0"
    );
    assert_eq!(guest.answer(MsgType::RESET_WATCHES, 0, b"\0"), "OK\0");
    assert_eq!(guest.answer(MsgType::TRANSACTION_START, 0, b"\0"), "14\0");
}

#[test]
fn a_commit_tells_what_was_written_before_it_was_removed() {
    let mut guest = Guest::new();
    guest.ask(MsgType::WATCH, 0, b"data\0t\0");
    for (write, expected) in [
        (false, &[&b"data/a\0t\0"[..]][..]),
        (true, &[b"data/a/b\0t\0", b"data/a\0t\0"]),
    ] {
        guest.store.write_as_host("/local/domain/1/data/a/b", b"1");
        guest.exchange(b"");
        let id = guest.answer(MsgType::TRANSACTION_START, 0, b"\0");
        let id = id.trim_end_matches('\0').parse().expect("a number");
        if write {
            guest.ask(MsgType::WRITE, id, b"data/a/b\x002");
        }
        assert_eq!(guest.answer(MsgType::RM, id, b"data/a\0"), "OK\0");
        let answers = guest.ask(MsgType::TRANSACTION_END, id, b"T\0");
        let events: Vec<_> = answers.iter().filter(|answer| answer.0 == 15).collect();
        let events: Vec<_> = events.iter().map(|event| &event.3[..]).collect();
        assert_eq!(events, expected);
    }
}

#[test]
fn quotas_stop_where_the_daemon_s_do() {
    let mut guest = Guest::new();
    let mut made = 1;
    let error = loop {
        let path = format!("data/{}/{}\0", made % 20, made);
        let answer = guest.answer(MsgType::MKDIR, 0, path.as_bytes());
        if answer != "OK\0" {
            break answer;
        }
        made += 1;
    };
    // data, 20 directories, and what is in them.
    assert_eq!((error.as_str(), made + 20), ("ENOSPC\0", 1000));
    for watch in 0..129 {
        let payload = format!("data\0{watch}\0");
        assert_eq!(
            guest.ask(MsgType::WATCH, 0, payload.as_bytes())[0].3,
            b"OK\0"
        );
    }
    assert_eq!(guest.answer(MsgType::WATCH, 0, b"data\0more\0"), "E2BIG\0");
    assert_eq!(guest.answer(MsgType::WATCH, 0, b"data\x000\0"), "EEXIST\0");
    assert_eq!(
        guest.answer(MsgType::UNWATCH, 0, b"data\0more\0"),
        "ENOENT\0"
    );
    assert_eq!(guest.answer(MsgType::RESET_WATCHES, 0, b"\0"), "OK\0");
    // 24 bytes of header, 8 of one permission.
    let value = |len: usize| [&b"data/1/1\0"[..], &vec![b'v'; len]].concat();
    assert_eq!(
        guest.answer(MsgType::WRITE, 0, &value(2048 - 32 - 1)),
        "OK\0"
    );
    assert_eq!(
        guest.answer(MsgType::WRITE, 0, &value(2048 - 32)),
        "ENOSPC\0"
    );
}

#[test]
fn transactions_can_not_fill_the_heap() {
    let mut guest = Guest::new();
    let deep = format!("data{}\0", "/a".repeat(1000));
    let mut answers = Vec::new();
    for id in 1..=11 {
        guest.ask(MsgType::TRANSACTION_START, 0, b"\0");
        answers.push(guest.answer(MsgType::READ, id, deep.as_bytes()));
        let (daemon, _) = guest.store.core_mut();
        assert!(daemon.memory() < daemon.limits.memory);
    }
    assert_eq!(
        answers
            .iter()
            .filter(|answer| *answer == "ENOENT\0")
            .count(),
        2
    );
    assert_eq!(answers[10], "ENOMEM\0");
    assert_eq!(
        guest.answer(MsgType::TRANSACTION_END, 11, b"T\0"),
        "ENOMEM\0"
    );
    assert_eq!(guest.answer(MsgType::READ, 0, b"data\0"), "");
}

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
            super::Serviced::default()
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

#[test]
fn too_many_changes_become_one() {
    let mut guest = Guest::new();
    for number in 0..3000 {
        let name = format!("data/{number}\0");
        guest.ask(MsgType::MKDIR, 0, name.as_bytes());
        guest.ask(MsgType::RM, 0, name.as_bytes());
    }
    assert_eq!(guest.store.take_guest_changes(), ["/"]);
    assert!(guest.store.take_guest_changes().is_empty());
}

#[test]
fn device_directories_get_the_owner_s_permissions() {
    let mut guest = Guest::new();
    let store = &mut guest.store;
    store.write("/local/domain/1/device/vbd/51712/backend", b"x", GUEST);
    store.write("/local/domain/1/device/vbd/51712/state", b"1", GUEST);
    store.write("/local/domain/0/backend/vbd/1/51712/state", b"2", DomId(0));
    for (path, perms) in [
        ("/local/domain/1/device/vbd", &b"n0\0r1\0"[..]),
        ("/local/domain/1/device/vbd/51712", b"n1\0r0\0"),
        ("/local/domain/1/device/vbd/51712/state", b"n1\0r0\0"),
        ("/local/domain/0/backend/vbd/1", b"n0\0"),
        ("/local/domain/0/backend/vbd/1/51712", b"n0\0r1\0"),
        ("/local/domain/0/backend/vbd/1/51712/state", b"n0\0r1\0"),
    ] {
        assert_eq!(store.perms(path).as_deref(), Some(perms), "{path}");
    }
    store.write("/local/domain/1/device/vif/0", b"", GUEST);
    assert_eq!(
        store.perms("/local/domain/1/device/vif").as_deref(),
        Some(&b"n0\0r1\0"[..])
    );
    assert_eq!(
        guest.answer(MsgType::WRITE, 0, b"device/vbd/51712/state\x003"),
        "OK\0"
    );
    assert_eq!(
        guest.answer(MsgType::MKDIR, 0, b"device/vbd/9\0"),
        "EACCES\0"
    );
    guest.ask(
        MsgType::WATCH,
        0,
        b"/local/domain/0/backend/vbd/1/51712/state\0t\0",
    );
    guest.store.remove("/local/domain/0/backend/vbd/1/51712");
    assert!(guest.store.has_output());
    let events = guest.exchange(b"");
    assert_eq!(
        events[0].3,
        b"/local/domain/0/backend/vbd/1/51712/state\0t\0"
    );
    assert_eq!(guest.store.list("/local/domain/0/backend/vbd/1"), [""; 0]);
}
