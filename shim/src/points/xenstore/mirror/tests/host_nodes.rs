//! What the host makes readable for the domain comes in.

use xen_abi::xs_wire::MsgType;

use super::world::{FakeHost, World};
use crate::points::xenstore::mirror::hidden::{AT_HOME, BELOW_VM};
use crate::points::xenstore::seed::REPORTS;

#[test]
fn what_the_host_writes_appears_changes_and_vanishes() {
    let mut world = World::new();
    world.ask(MsgType::WATCH, "vm-data\0t\0");
    world.guest_is_told();
    world.host.set("vm-data/role", "web");
    world.settle();
    assert_eq!(world.guest_has("vm-data/role").as_deref(), Some("web"));
    assert!(world.guest_is_told());
    world.host.fire("vm-data/role");
    world.settle();
    assert!(!world.guest_is_told(), "the same again is no news");
    world.host.set("vm-data/role", "mail");
    world.settle();
    assert_eq!(world.guest_has("vm-data/role").as_deref(), Some("mail"));
    assert!(world.guest_is_told());
    world.host.unset("vm-data");
    world.settle();
    assert_eq!(world.guest_has("vm-data/role"), None);
    assert_eq!(world.guest_has("vm-data"), None);
    assert!(world.guest_is_told());
    // In the guest's own directories, too.
    world.host.set("attr/from-host", "1");
    world.host.set("/vm/1-2/tag", "blue");
    world.settle();
    assert_eq!(world.guest_has("attr/from-host").as_deref(), Some("1"));
    assert_eq!(world.guest_has("/vm/1-2/tag").as_deref(), Some("blue"));
}

#[test]
fn what_there_was_before_the_boot_is_there() {
    let mut host = FakeHost::fresh();
    for (path, value) in [
        ("vm-data/a/b/c", "1"),
        ("vm-data/a", ""),
        ("vm-data/a/b", ""),
        ("vm-data", ""),
        ("notes", "2"),
        ("platform/acpi", "1"),
        ("/vm/1-2/rtc/timeoffset", "0"),
    ] {
        host.nodes.insert(path.into(), value.into());
    }
    let world = World::on(host);
    assert_eq!(world.guest_has("vm-data/a/b/c").as_deref(), Some("1"));
    assert_eq!(world.guest_has("notes").as_deref(), Some("2"));
    assert_eq!(world.guest_has("platform/acpi"), None);
    assert_eq!(world.guest_has("/vm/1-2/rtc"), None);
    let vm = |leaf: &str| world.guest_has(&format!("/vm/1-2/{leaf}"));
    assert_eq!(vm("uuid").as_deref(), Some("1-2"));
    assert_eq!(vm("name").as_deref(), Some("g"));
    assert_eq!(vm("start_time").as_deref(), Some("1700000000.00"));
    assert_eq!(vm("image/ostype").as_deref(), Some("linux"));
    assert!(world.mirror.is_up_to_date());
}

#[test]
fn what_must_not_come_in_does_not() {
    let mut world = World::new();
    let before = world.everything();
    for (name, _) in AT_HOME {
        world.host.set(&format!("{name}/forged"), "1");
        let is_request = ["control", "cpu", "memory"].contains(&name);
        if !is_request && name != REPORTS {
            world.host.set(name, "forged");
        }
    }
    for (name, _) in BELOW_VM {
        world.host.set(&format!("/vm/1-2/{name}"), "forged");
    }
    world.host.set("/vm/other/uuid", "3");
    world.host.secret.insert("secret".into());
    world.host.set("secret/key", "x");
    world.settle();
    assert_eq!(world.everything(), before);
    assert!(AT_HOME.iter().any(|(name, _)| *name == REPORTS));
}

#[test]
fn what_is_not_for_the_guest_any_more_goes() {
    let mut world = World::new();
    world.host.set("vm-data/key", "x");
    world.settle();
    world.host.fire("vm-data/key");
    // The permissions have changed; the event was still for us.
    world.host.secret.insert("vm-data/key".into());
    world.settle();
    assert_eq!(world.guest_has("vm-data/key"), None);
}

#[test]
fn a_move_shows_the_guest_nothing_and_what_comes_later_it_does() {
    let mut world = World::new();
    world.host.set("vm-data/role", "web");
    world.host.set("vm-data/zone", "a");
    world.settle();
    world.ask(MsgType::WATCH, "/\0t\0");
    world.guest_is_told();
    let before = world.everything();
    // The next host has something else, or nothing.
    let mut fresh = FakeHost::fresh();
    for (path, value) in [
        ("vm-data/zone", "b"),
        ("domid", "7"),
        ("name", "g--incoming"),
        ("/vm/1-2/start_time", "1800000000.00"),
        ("later", "1"),
    ] {
        fresh.nodes.insert(path.into(), value.into());
    }
    world.arrive(fresh);
    world.release();
    assert_eq!(world.everything(), before);
    assert!(!world.guest_is_told());
    world.host.set("vm-data/role", "mail");
    world.settle();
    assert_eq!(world.guest_has("vm-data/role").as_deref(), Some("mail"));
    world.host.unset("vm-data/zone");
    world.settle();
    assert_eq!(world.guest_has("vm-data/zone"), None);
}

#[test]
fn a_host_that_writes_without_end_is_bounded_and_does_not_delay_a_suspend() {
    let mut world = World::new();
    let before = world.everything().len();
    for number in 0..5000 {
        world
            .host
            .set(&format!("vm-data/{number}"), &"v".repeat(number % 3000));
        if number == 4000 {
            world.host.set("control/shutdown", "suspend");
        }
        // As the shim does it: everything that the host has said, and then its answers.
        while world.deliver() {}
        if number % 3 == 0 {
            world.host.step();
        }
        assert!(world.host.jobs.len() <= 12);
        if number == 4030 {
            assert!(
                world.mirror.suspend.take().is_some(),
                "it is answered, and due"
            );
        }
    }
    world.settle();
    let more = world.everything().len() - before;
    assert!((20..=256).contains(&more), "{more} nodes");
}

#[test]
fn what_was_missed_in_a_flood_is_read_later() {
    let mut world = World::new();
    // More names at once than are kept, and then no more than there may be.
    for number in 0..3000 {
        world.host.set(&format!("vm-data/{number}"), "v");
    }
    for number in 100..3000 {
        world.host.unset(&format!("vm-data/{number}"));
    }
    world.settle();
    for number in 0..100 {
        let path = format!("vm-data/{number}");
        assert_eq!(world.guest_has(&path).as_deref(), Some("v"), "{path}");
    }
    assert_eq!(world.guest_has("vm-data/100"), None);
}

/// The operator's guide lists what does not come in.
#[test]
fn the_guide_tells_what_does_not_come_in() {
    let guide = include_str!("../../../../../../docs/operators-guide.md");
    for (name, _) in AT_HOME.iter().chain(&BELOW_VM) {
        assert!(guide.contains(&format!("`{name}`")), "{name}");
    }
}
