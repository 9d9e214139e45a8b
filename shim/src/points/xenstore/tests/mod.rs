//! The whole store through its doors: literal bytes over the guest's ring.

mod guest;
mod heap;
mod stream;

use xen_abi::DomId;
use xen_abi::xs_wire::MsgType;

use self::guest::{GUEST, Guest};
use crate::points::GuestStore as _;

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
