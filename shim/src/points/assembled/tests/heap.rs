//! A move of a guest that has filled the heap, and a heap that is full at any allocation.

use xen_abi::evtchn::{self, AllocUnbound};
use xen_abi::hypercall::{EVENT_CHANNEL_OP, MEMORY_OP};
use xen_abi::memory::{Reservation, op};
use xen_abi::xs_wire::{MsgType, ring};
use xen_abi::{DomId, Errno};

use super::world::World;
use crate::boot::share::HEAP_BYTES;
use crate::heap;
use crate::mem::Frames;
use crate::points::{Points, Progress};
use crate::testing::Bench;
use crate::testing::heap::SmallHeap;

const SIZE: usize = HEAP_BYTES as usize;

/// Moves the guest to a host that has never heard of it.
fn travel(world: &mut World) {
    world.with(Points::flush);
    world.pump();
    let quiet = world.with(|points, env| points.quiesce(env));
    assert_eq!(quiet, Progress::Done);
    world.guest_hears();
    world.arrive();
    world.pump();
    let attached = world.bench.guest.points.attached();
    assert_eq!(attached, Ok(Progress::Done));
    world.with(Points::resume);
    world.pump();
}

#[test]
fn a_guest_within_its_store_quota_moves_whatever_it_wrote() {
    const NODES: usize = 600;
    // Names as long as are published, values as long as the ring takes in one piece.
    let dir = format!("data/{}", "t".repeat(220));
    let value = [b'x'; 700];
    let path = |nr: usize| format!("{dir}/d{}/n{nr}", nr / 60);
    let mut world = World::started();
    let used = SmallHeap::with(SIZE, u64::MAX, || {
        for nr in 0..NODES {
            let payload = [path(nr).as_bytes(), &[0], &value].concat();
            world.guest_asks(MsgType::WRITE, &payload);
        }
        // Not a byte is left of what is not set aside.
        SmallHeap::set_full(true);
        travel(&mut world);
        let has_arrived = |nr: &usize| {
            let seen = world.host(&path(*nr));
            seen.is_some_and(|seen| seen.len() == value.len())
        };
        let arrived = (0..NODES).filter(has_arrived).count();
        assert!(arrived > 500, "{arrived} nodes");
        drop(world);
    });
    assert_eq!(used.failures, 0);
    let most = used.most_aside;
    assert!(most < heap::SET_ASIDE * 2 / 3, "a move took {most} bytes");
}

/// What a guest does at the other doors to its memory.
fn live(world: &mut World) {
    let value = world.bench.guest.m.load32(Bench::STORE, ring::REQ_PROD);
    world.guest_asks(MsgType::WRITE, format!("data/x\0{value}").as_bytes());
    world.guest_asks(MsgType::WATCH, b"data\0tok\0");
    for _ in 0..6 {
        let alloc = AllocUnbound {
            dom: DomId::SELF.0,
            remote_dom: 0,
            port: 0,
        };
        let bench = &mut world.bench;
        let arg = bench.arg(&alloc);
        let made = bench.call(EVENT_CHANNEL_OP, &[evtchn::op::ALLOC_UNBOUND, arg]);
        assert!(made.is_ok() || made == Err(Errno::ENOMEM), "{made:?}");
    }
}

#[test]
fn a_heap_that_is_full_at_any_allocation_is_no_reason_not_to_move() {
    let lived = || {
        let mut world = World::started();
        // The fakes' own pages are there afterwards.
        live(&mut world);
        world
    };
    let mut world = lived();
    let all = SmallHeap::with(SIZE, u64::MAX, || {
        live(&mut world);
        travel(&mut world);
        drop(world);
    });
    let all = all.allocations;
    // Each stride meets every kind of step, and all together most of the allocations.
    for full_from in (0..all).step_by(1 + all as usize / 120) {
        let mut world = lived();
        let used = SmallHeap::with(SIZE, full_from, || {
            live(&mut world);
            travel(&mut world);
            let written = world.guest("data/x");
            assert_eq!(world.host("data/x"), written, "full from {full_from} on");
            drop(world);
        });
        assert_eq!(used.failures, 0, "full from {full_from} on");
    }
}

#[test]
fn giving_up_memory_allocates_none() {
    let mut bench = Bench::new();
    let list = bench.page(3);
    let frames: Vec<u64> = (0..101)
        .map(|nr| bench.mfn(Bench::UNMAPPED + nr).0)
        .collect();
    bench.put(list, &frames[..]);
    // The fake keeps its own books.
    bench.guest.host.keeps_frames = true;
    let allocations = [1, 100].map(|count| {
        let _ = bench.guest.m.take_flushes();
        let arg = bench.arg(&Reservation {
            extent_start: list,
            nr_extents: count,
            domid: DomId::SELF.0,
            ..Reservation::default()
        });
        let mut done = Ok(0);
        let used = SmallHeap::with(SIZE, u64::MAX, || {
            done = bench.call(MEMORY_OP, &[op::DECREASE_RESERVATION, arg]);
        });
        assert_eq!(done, Ok(count));
        bench.put(list, &frames[1..]);
        used.allocations
    });
    assert_eq!(allocations[0], allocations[1]);
}
