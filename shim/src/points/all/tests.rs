//! All points of a guest together, against a host whose xenstored is our own store once more: the
//! same protocol at both ends of the shim.

mod grants;
mod heap;
mod world;

use xen_abi::Port;
use xen_abi::xs_wire::{MsgType, ring};

use self::world::{GUEST_PAGES, World, toolstack};
use super::StartError;
use crate::host::{Arrival, HostEvent, HostPort, Xen};
use crate::mem::Frames;
use crate::points::{Points, Progress, Request};
use crate::testing::{Bench, FakeHost};

#[test]
fn the_guests_store_begins_with_the_hosts_under_its_own_names() {
    let world = World::started();
    assert_eq!(world.guest("name").as_deref(), Some("g"));
    assert_eq!(world.guest("domid").as_deref(), Some("1"));
    let pages = (GUEST_PAGES * 4).to_string();
    assert_eq!(world.guest("memory/target"), Some(pages.clone()));
    assert_eq!(world.guest("memory/static-max"), Some(pages));
    assert!(world.points.bus.is_settled());
}

#[test]
fn a_host_whose_store_is_silent_is_waited_for_and_then_given_up() {
    let mut world = World::new();
    let before = world.bench.guest.host.now_ns();
    let started = world.with(|points, outside| points.start(outside));
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
    world.host_writes("memory/target", "131072");
    let shim = 262_144 - GUEST_PAGES * 4;
    assert_eq!(
        world.guest("memory/target"),
        Some((131_072 - shim).to_string())
    );
    world.with(|points, outside| points.report(outside, "state", "running"));
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
    assert_eq!(world.request(), None);

    world.host_writes("control/shutdown", "suspend");
    assert_eq!(world.host("control/shutdown").as_deref(), Some(""), "taken");
    assert_eq!(
        world.guest("control/shutdown").as_deref(),
        Some(""),
        "hidden"
    );
    assert_eq!(world.request(), Some(Request::Suspend));
    assert_eq!(world.request(), None, "once");
}

#[test]
fn a_suspend_may_come_by_an_event() {
    let mut world = World::started();
    let port = world
        .host("device/suspend/event-channel")
        .expect("published");
    assert_eq!(
        world.guest("device/suspend/event-channel").as_deref(),
        Some("")
    );
    world.event(HostEvent::Port(HostPort(Port(
        port.parse().expect("a port"),
    ))));
    assert_eq!(world.request(), Some(Request::Suspend));
}

#[test]
fn a_new_host_hears_what_the_old_one_was_told_and_the_guest_nothing() {
    let mut world = World::started();
    world.guest_asks(MsgType::WRITE, b"attr/answer\x0042");
    world.guest_asks(MsgType::WATCH, b"memory/target\0t\0");
    world.with(|points, outside| points.report(outside, "moves", "1"));
    world.with(Points::flush);
    world.pump();
    let quiet = world.with(|points, outside| points.quiesce(outside));
    assert_eq!(quiet, Progress::Done);

    let frames = world.bench.guest.host.frames.clone();
    world.real = toolstack(&frames);
    let m = &world.bench.guest.m;
    let heard = m.load32(Bench::STORE, ring::RSP_PROD);
    m.store32(Bench::STORE, ring::RSP_CONS, heard);
    let _ = world.bench.guest.host.ports.split_off(&0);
    world.with(|points, outside| points.reattach(outside, Arrival::NewDomain));
    world.pump();
    let attached = world.with(|points, outside| points.attached(outside));
    assert_eq!(attached, Ok(Progress::Done));
    world.with(|points, outside| points.resume(outside, true));
    world.pump();
    assert_eq!(world.host("attr/answer").as_deref(), Some("42"));
    assert_eq!(world.host("data/unmoved/moves").as_deref(), Some("1"));
    let port = world.host("device/suspend/event-channel").expect("there");
    assert!(
        world
            .bench
            .guest
            .host
            .ports
            .contains(&port.parse().expect("a port"))
    );
    let now = world.bench.guest.m.load32(Bench::STORE, ring::RSP_PROD);
    assert_eq!(now, heard, "nothing that the guest sees has changed");
    assert_eq!(world.request(), None);
}

#[test]
fn a_daemon_that_breaks_the_ring_is_a_reason_not_to_go_on_there() {
    let mut world = World::started();
    let frames = world.bench.guest.host.frames.clone();
    frames.store32(FakeHost::STORE_RING, ring::RSP_PROD, 0x8000_0000);
    world.event(HostEvent::Store);
    let attached = world.with(|points, outside| points.attached(outside));
    assert!(attached.is_err_and(|why| why.contains("xenstore")));
}
