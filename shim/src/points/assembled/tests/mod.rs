//! All points of a guest together, against a host whose xenstored is our own store once more: the
//! same protocol at both ends of the shim.

mod grants;
mod heap;
mod world;

use xen_abi::DomId;
use xen_abi::xs_wire::{MsgType, ring};

use self::world::{REAL, World};
use super::{Points, StartError};
use crate::host::{HostEvent, Xen};
use crate::mem::Frames;
use crate::points::xenstore::perms::Perms;
use crate::points::{GuestStore as _, Progress};
use crate::testing::{Bench, FakeHost};

#[test]
fn the_guests_store_begins_with_the_hosts_under_its_own_names() {
    let world = World::started();
    assert_eq!(world.guest("name").as_deref(), Some("g"));
    assert_eq!(world.guest("domid").as_deref(), Some("1"));
    let pages = (world.bench.guest.max_pages * 4).to_string();
    assert_eq!(world.guest("memory/target"), Some(pages.clone()));
    assert_eq!(world.guest("memory/static-max"), Some(pages));
    assert!(world.bench.guest.points.bus.is_settled());
}

#[test]
fn a_host_whose_store_is_silent_is_waited_for_and_then_given_up() {
    let mut world = World::new();
    world.bench.guest.host.dom0.is_silent = true;
    let before = world.bench.guest.host.now_ns();
    let started = world.with(|points, env| points.start(env));
    assert_eq!(started, Err(StartError::NoStore));
    assert!(world.bench.guest.host.now_ns() - before >= 60_000_000_000);
}

#[test]
fn what_either_side_writes_reaches_the_other() {
    let mut world = World::started();
    world.host_writes("data/note", "hello");
    assert_eq!(world.guest("data/note").as_deref(), Some("hello"));
    world.guest_asks(MsgType::WRITE, b"attr/answer\x0042");
    assert_eq!(world.host("attr/answer").as_deref(), Some("42"));
    world.host_writes("memory/target", "6144");
    let shim = FakeHost::MEMORY_KIB - world.bench.guest.max_pages * 4;
    assert_eq!(
        world.guest("memory/target"),
        Some((6144 - shim).to_string())
    );
    world.bench.guest.points.report("state", "running");
    world.with(Points::flush);
    world.pump();
    assert_eq!(world.host("data/unmoved/state").as_deref(), Some("running"));
    assert_eq!(world.guest("data/unmoved/state"), None, "not the guest's");
}

#[test]
fn a_shutdown_is_the_guests_and_a_suspend_the_shims() {
    let mut world = World::started();
    world.host_writes("control/shutdown", "poweroff");
    assert_eq!(world.guest("control/shutdown").as_deref(), Some("poweroff"));
    world.guest_asks(MsgType::WRITE, b"control/shutdown\0");
    assert_eq!(world.host("control/shutdown").as_deref(), Some(""));
    assert_eq!(world.takes_suspend(), None);

    world.host_writes("control/shutdown", "suspend");
    assert_eq!(world.host("control/shutdown").as_deref(), Some(""), "taken");
    assert_eq!(
        world.guest("control/shutdown").as_deref(),
        Some(""),
        "hidden"
    );
    assert_eq!(world.takes_suspend(), Some(world.bench.guest.host.now_ns()));
    assert_eq!(world.takes_suspend(), None, "once");
}

/// An event cannot be withdrawn: without a port the toolstack asks in the store.
#[test]
fn no_port_is_offered_for_a_suspend() {
    let world = World::started();
    let node = "device/suspend/event-channel";
    assert_eq!(world.host(node).as_deref(), Some(""));
    assert_eq!(world.guest(node).as_deref(), Some(""));
}

#[test]
fn a_new_host_hears_what_the_old_one_was_told_and_the_guest_nothing() {
    let mut world = World::started();
    world.guest_asks(MsgType::WRITE, b"attr/answer\x0042");
    world.guest_asks(MsgType::WATCH, b"memory/target\0t\0");
    world.bench.guest.points.report("moves", "1");
    world.with(Points::flush);
    world.pump();
    let quiet = world.with(|points, env| points.quiesce(env));
    assert_eq!(quiet, Progress::Done);

    let heard = world.guest_hears();
    world.arrive();
    world.pump();
    let attached = world.bench.guest.points.attached();
    assert_eq!(attached, Ok(Progress::Done));
    world.with(Points::resume);
    world.pump();
    assert_eq!(world.host("attr/answer").as_deref(), Some("42"));
    assert_eq!(world.host("data/unmoved/moves").as_deref(), Some("1"));
    let now = world.bench.guest.m.load32(Bench::STORE, ring::RSP_PROD);
    assert_eq!(now, heard, "nothing that the guest sees has changed");
    assert_eq!(world.takes_suspend(), None);
}

#[test]
fn a_daemon_that_breaks_the_ring_is_a_reason_not_to_go_on_there() {
    let mut world = World::started();
    let frames = world.bench.guest.host.frames.clone();
    frames.store32(FakeHost::STORE_RING, ring::RSP_PROD, 0x8000_0000);
    world.event(HostEvent::Store);
    let attached = world.bench.guest.points.attached();
    assert!(attached.is_err_and(|why| why.contains("xenstore")));
}

/// The host has a disk for the domain, and a backend in this state.
fn plug(world: &mut World, backend_state: &str) {
    let back = "/local/domain/0/backend/vbd/7/51712";
    let to_domain = Perms::new(DomId(0), Some(REAL));
    world.real().put(back, b"", &to_domain);
    for (key, value) in [
        ("sectors", "2048"),
        ("sector-size", "512"),
        ("info", "0"),
        ("feature-flush-cache", "1"),
        ("max-ring-page-order", "1"),
        ("state", backend_state),
    ] {
        world
            .real()
            .write_as_host(&format!("{back}/{key}"), value.as_bytes());
    }
    let front = "/local/domain/7/device/vbd/51712";
    let of_domain = Perms::new(REAL, Some(DomId(0)));
    world.real().put("/local/domain/7/device", b"", &to_domain);
    world.real().put(front, b"", &of_domain);
    for (key, value) in [
        ("backend-id", "0"),
        ("virtual-device", "51712"),
        ("device-type", "disk"),
        ("state", "1"),
        ("backend", back),
    ] {
        world
            .real()
            .write_as_host(&format!("{front}/{key}"), value.as_bytes());
    }
    world.pump();
}

fn backend_says(world: &mut World, state: &str) {
    let node = "/local/domain/0/backend/vbd/7/51712/state";
    world.real().write_as_host(node, state.as_bytes());
    world.pump();
}

/// xenstored lets a domain own 1,000 nodes: what the guest has there must not keep its devices from
/// connecting where it comes to.
#[test]
fn a_guest_that_fills_its_store_connects_to_a_slow_backend() {
    let mut world = World::started();
    plug(&mut world, "2");
    assert_eq!(world.host("device/vbd/51712/state").as_deref(), Some("3"));
    backend_says(&mut world, "4");
    assert_eq!(world.host("device/vbd/51712/state").as_deref(), Some("4"));
    for number in 0..1000 {
        let message = format!("attr/{number}\0v");
        world.guest_asks(MsgType::WRITE, message.as_bytes());
    }
    assert_eq!(world.host("attr/0").as_deref(), Some("v"));
    assert_eq!(
        world.with(|points, env| points.quiesce(env)),
        Progress::Done
    );

    world.arrive();
    plug(&mut world, "1");
    let attached = world.bench.guest.points.attached();
    assert_eq!(attached, Ok(Progress::Waiting), "its backend is slow");
    backend_says(&mut world, "2");
    assert!(world.host("device/vbd/51712/ring-ref1").is_some());
    assert_eq!(world.host("device/vbd/51712/state").as_deref(), Some("3"));
    backend_says(&mut world, "4");
    let attached = world.bench.guest.points.attached();
    assert_eq!(attached, Ok(Progress::Done));
    assert_eq!(world.host("attr/0"), None, "devices come first");
    world.with(Points::resume);
    world.pump();
    assert_eq!(world.host("attr/0").as_deref(), Some("v"));
}

/// A store that is full for another reason: the guest's nodes make way, and the disk begins again.
#[test]
fn a_device_that_finds_the_store_full_begins_again() {
    // A directory has room for the names of some 500.
    let node = |number: i32| format!("attr/{}/{number}", number / 100);
    let mut world = World::started();
    for number in 0..600 {
        let message = format!("{}\0v", node(number));
        world.guest_asks(MsgType::WRITE, message.as_bytes());
    }
    // Somebody else uses the rest up: nodes of the domain's that nobody has reckoned with.
    let of_domain = Perms::new(REAL, None);
    for number in 0..389 {
        let other = format!("/local/domain/7/device/other/0/{number}");
        world.real().put(&other, b"", &of_domain);
    }
    world.pump();
    plug(&mut world, "2");
    for _ in 0..100 {
        world.bench.guest.host.clock.pass(100_000_000);
        world.with(Points::tick);
        world.pump();
        if world.host("device/vbd/51712/ring-ref1").is_some() {
            break;
        }
    }
    assert!(world.host("device/vbd/51712/ring-ref1").is_some());
    assert_eq!(world.host("device/vbd/51712/state").as_deref(), Some("3"));
    let has = |number: &i32| world.guest(&node(*number)).is_some();
    let lost: Vec<i32> = (0..600).filter(|number| !has(number)).collect();
    assert!(lost.is_empty(), "the guest lost {lost:?}");
}

#[test]
fn what_the_host_makes_readable_is_read_before_the_guest_starts() {
    let mut world = World::new();
    for (path, value) in [("vm-data/role", "web"), ("vm-data/zone/name", "a")] {
        world
            .real()
            .write_as_host(&format!("/local/domain/7/{path}"), value.as_bytes());
    }
    let to_nobody = Perms::new(DomId(0), None);
    world
        .real()
        .put("/local/domain/7/vm-data/secret", b"x", &to_nobody);
    world
        .with(|points, env| points.begin(env))
        .expect("there is memory");
    world.pump();
    assert!(world.bench.guest.points.mirror.is_up_to_date());
    assert_eq!(world.guest("vm-data/role").as_deref(), Some("web"));
    assert_eq!(world.guest("vm-data/zone/name").as_deref(), Some("a"));
    assert_eq!(world.guest("vm-data/secret"), None);
    world.host_writes("vm-data/role", "mail");
    assert_eq!(world.guest("vm-data/role").as_deref(), Some("mail"));
    world.real().remove("/local/domain/7/vm-data");
    world.pump();
    assert_eq!(world.guest("vm-data/role"), None);
}
