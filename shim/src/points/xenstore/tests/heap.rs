//! A guest at its quotas, and a heap that is full at every allocation in turn.

use xen_abi::xs_wire::MsgType;

use super::guest::Guest;
use crate::boot::share::HEAP_BYTES;
use crate::points::GuestStore as _;
use crate::testing::heap::SmallHeap;

const SIZE: usize = HEAP_BYTES as usize;

/// Asks, and returns whether it was granted; nothing but the heap or a quota is a reason if not.
fn asks(guest: &mut Guest, kind: MsgType, tx: u32, payload: &[u8]) -> bool {
    let all = guest.ask(kind, tx, payload);
    let mut answers = all
        .iter()
        .filter(|(kind, ..)| *kind != MsgType::WATCH_EVENT.0);
    let (.., bytes) = answers.next_back().expect("an answer");
    let answer = String::from_utf8_lossy(bytes);
    let is_full = ["ENOMEM\0", "ENOSPC\0", "E2BIG\0"].contains(&&*answer);
    assert!(
        is_full || !answer.starts_with('E') || answer == "ENOENT\0",
        "{answer}"
    );
    !is_full
}

fn write(guest: &mut Guest, tx: u32, path: &str, value: &[u8]) -> bool {
    let payload = [path.as_bytes(), &[0], value].concat();
    asks(guest, MsgType::WRITE, tx, &payload)
}

/// Writes as many nodes as it may, each almost as large as a node can be; returns how many.
fn fill(guest: &mut Guest) -> usize {
    let value = [b'x'; 1980];
    let paths = (0..1100).map(|nr| format!("data/t/d{}/n{nr}", nr / 64));
    paths.filter(|path| write(guest, 0, path, &value)).count()
}

fn start(guest: &mut Guest) -> Option<u32> {
    let id = guest.answer(MsgType::TRANSACTION_START, 0, b"\0");
    id.trim_end_matches('\0').parse().ok()
}

#[test]
fn a_guest_at_every_quota_leaves_what_is_set_aside_alone() {
    let used = SmallHeap::with(SIZE, u64::MAX, || {
        let mut guest = Guest::new();
        let nodes = fill(&mut guest);
        assert!(nodes > 900, "about what the quota of nodes allows: {nodes}");
        let ids: Vec<u32> = (0..12).map_while(|_| start(&mut guest)).collect();
        assert_eq!(ids.len(), 11);
        for &id in &ids {
            for nr in 0..1024 {
                asks(
                    &mut guest,
                    MsgType::READ,
                    id,
                    format!("no/{nr}\0").as_bytes(),
                );
            }
        }
        for nr in 0..140 {
            asks(
                &mut guest,
                MsgType::WATCH,
                0,
                format!("data\0{nr}\0").as_bytes(),
            );
        }
        let (core, _) = guest.store.core_mut();
        let counted = core.memory();
        let held = SmallHeap::now().ordinary;
        assert!(counted < core.limits.memory);
        // The rest is the map of what the ring and the shim's own nodes need.
        assert!(
            held < counted + (64 << 10),
            "{held} held, {counted} counted"
        );
        assert!(guest.answer(MsgType::RM, 0, b"data/t\0") == "OK\0");
    });
    assert_eq!((used.most_aside, used.failures), (0, 0));
}

#[test]
fn look_ups_of_what_is_not_there_are_counted() {
    let mut guest = Guest::new();
    let id = start(&mut guest).expect("the first");
    let before = guest.store.core_mut().0.memory();
    for nr in 0..1000 {
        asks(
            &mut guest,
            MsgType::READ,
            id,
            format!("no/{nr}\0").as_bytes(),
        );
    }
    assert!(guest.store.core_mut().0.memory() - before > 200_000);
}

/// Everything that a guest can make its store hold, with a look at whether it does.
fn script(guest: &mut Guest) {
    let value = [b'v'; 100];
    let mut there = Vec::new();
    for nr in 0..3 {
        asks(
            guest,
            MsgType::WATCH,
            0,
            format!("data/t/a{nr}\0tok\0").as_bytes(),
        );
        let path = format!("data/t/a{nr}/b/c");
        if write(guest, 0, &path, &value) {
            there.push(path);
        }
    }
    if let Some(id) = start(guest) {
        let written: Vec<String> = (0..3)
            .map(|nr| format!("data/t/t{nr}/u"))
            .filter(|path| write(guest, id, path, &value))
            .collect();
        asks(guest, MsgType::READ, id, b"data/t/a0/b/c\0");
        asks(guest, MsgType::RM, id, b"data/t/a0\0");
        let committed = guest.answer(MsgType::TRANSACTION_END, id, b"T\0");
        if committed == "OK\0" {
            there.retain(|path| !path.starts_with("data/t/a0/"));
            there.extend(written);
        } else {
            assert_eq!(committed, "ENOMEM\0");
        }
    }
    asks(guest, MsgType::MKDIR, 0, b"data/t/m\0");
    asks(guest, MsgType::SET_PERMS, 0, b"data/t/m\0n1\0r0\0");
    // What was granted is there, and what was not has left nothing.
    for path in &there {
        let found = guest.store.read(&format!("/local/domain/1/{path}"));
        assert_eq!(found.as_deref(), Some(&value[..]), "{path}");
    }
    for nr in 0..3 {
        for path in [format!("data/t/a{nr}/b/c"), format!("data/t/t{nr}/u")] {
            let found = guest.store.read(&format!("/local/domain/1/{path}"));
            assert_eq!(found.is_some(), there.contains(&path), "{path}");
        }
    }
    // What frees memory needs no room; all there is to be missing is the node above.
    let removed = guest.answer(MsgType::RM, 0, b"data/t/a1\0");
    assert!(removed == "OK\0" || removed == "ENOENT\0", "{removed}");
    assert_eq!(guest.store.read("/local/domain/1/data/t/a1"), None);
    let _ = guest.store.take_guest_changes();
}

#[test]
fn a_heap_that_is_full_at_any_allocation_is_an_error_to_the_guest() {
    let all = SmallHeap::with(SIZE, u64::MAX, || script(&mut Guest::new())).allocations;
    assert!(all > 300, "{all}");
    for full_from in 0..all {
        let used = SmallHeap::with(SIZE, full_from, || {
            let mut guest = SmallHeap::outside(Guest::new);
            script(&mut guest);
            // Once there is room again, all is as ever.
            SmallHeap::set_full(false);
            guest.answer(MsgType::RESET_WATCHES, 0, b"\0");
            assert_eq!(guest.answer(MsgType::RM, 0, b"data/t\0"), "OK\0");
            assert!(crate::heap::has_room(), "what was borrowed is back");
            script(&mut guest);
        });
        assert_eq!(used.failures, 0, "full from {full_from} on");
        // Less than an answer of the greatest length to each request.
        assert!(
            used.most_aside < 64 << 10,
            "{full_from}: {}",
            used.most_aside
        );
    }
}

#[test]
fn a_full_heap_lets_a_guest_remove_a_tree_of_any_size() {
    let used = SmallHeap::with(SIZE, u64::MAX, || {
        let mut guest = Guest::new();
        assert!(fill(&mut guest) > 900);
        for nr in 0..17 {
            asks(
                &mut guest,
                MsgType::WATCH,
                0,
                format!("data/t/d{nr}/n{}\0t\0", nr * 64).as_bytes(),
            );
        }
        SmallHeap::set_full(true);
        assert_eq!(
            guest.answer(MsgType::WRITE, 0, b"data/t/d0/n1\0y"),
            "ENOMEM\0"
        );
        assert_eq!(guest.answer(MsgType::RM, 0, b"data/t\0"), "OK\0");
        assert_eq!(guest.store.read("/local/domain/1/data/t/d0"), None);
    });
    assert_eq!(used.failures, 0);
    assert!(used.most_aside < 32 << 10, "{}", used.most_aside);
}
