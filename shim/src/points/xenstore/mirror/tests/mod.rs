//! The mirror between a guest's store and a fake real one that runs one request at a time.

mod host_nodes;
mod room;
mod world;

use xen_abi::xs_wire::MsgType;

use self::world::{FakeHost, Job, World};
use super::outward::is_public;

#[test]
fn the_rules_say_what_goes_out() {
    for path in [
        "data",
        "data/a",
        "attr/eth0/ip",
        "error/device/vif/0",
        "drivers/x",
        "control/feature-balloon",
    ] {
        assert!(is_public(path), "{path}");
    }
    for path in [
        "device/suspend/event-channel",
        "data/unmoved",
        "data/unmoved/x",
        "control/shutdown",
        "control/feature-",
        "control/feature-x/y",
        "database",
        "name",
        "device/vif/0/state",
        "memory/target",
        "",
    ] {
        assert!(!is_public(path), "{path}");
    }
    assert!(!is_public(&format!("data/{}", "x".repeat(252))));
}

#[test]
fn the_guest_s_changes_go_out() {
    let mut world = World::new();
    assert_eq!(
        world.host.writes, 0,
        "nothing is published before the guest says something"
    );
    world.write("data/a/b", "1");
    world.write("attr/eth0/ip", "10.0.0.1");
    world.write("control/feature-reboot", "1");
    world.write("device/suspend/event-channel", "9");
    world.write("data/unmoved/state", "forged");
    world.settle();
    assert_eq!(world.host.get("data/a/b"), Some("1"));
    assert_eq!(world.host.get("attr/eth0/ip"), Some("10.0.0.1"));
    assert_eq!(world.host.get("device/suspend/event-channel"), Some(""));
    assert_eq!(world.host.get("data/unmoved/state"), None);
    world.ask(MsgType::RM, "data/a\0");
    world.settle();
    assert_eq!(world.host.get("data/a/b"), None);
    world.ask(MsgType::RM, "data\0");
    world.settle();
    assert_eq!(
        world.host.get("data"),
        Some(""),
        "the directory could not be made again"
    );
}

#[test]
fn the_host_s_requests_come_in_and_are_cleared_by_the_guest() {
    let mut world = World::new();
    world.ask(MsgType::WATCH, "control\0t\0");
    world.guest_is_told();
    for request in ["poweroff", "reboot", "halt"] {
        world.host.set("control/shutdown", request);
        world.settle();
        assert!(world.guest_is_told());
        assert_eq!(
            world.guest_has("control/shutdown").as_deref(),
            Some(request)
        );
        world.write("control/shutdown", "");
        world.settle();
        assert_eq!(world.host.get("control/shutdown"), Some(""));
    }
    world.host.set("control/sysrq", "s");
    world.settle();
    assert_eq!(world.guest_has("control/sysrq").as_deref(), Some("s"));
    world.write("control/sysrq", "");
    world.settle();
    assert_eq!(world.host.get("control/sysrq"), Some(""));
    world.guest_is_told();
    world.host.set("control/shutdown", "crash");
    world.settle();
    assert!(!world.guest_is_told());
    // The guest can not ask the host for anything through this node.
    world.write("control/shutdown", "suspend");
    world.settle();
    assert_eq!(world.host.get("control/shutdown"), Some("crash"));
}

#[test]
fn the_guest_s_answer_does_not_clear_a_later_request() {
    let mut world = World::new();
    world.host.set("control/shutdown", "poweroff");
    world.settle();
    world.write("control/shutdown", "");
    world.host.set("control/shutdown", "suspend");
    while world.host.step() {}
    assert_eq!(world.host.get("control/shutdown"), Some("suspend"));
    world.settle();
    assert!(world.mirror.suspend.take().is_some());
}

#[test]
fn a_suspend_is_the_shim_s_alone() {
    let mut world = World::new();
    world.ask(MsgType::WATCH, "control\0t\0");
    world.guest_is_told();
    for _ in 0..2 {
        world.host.set("control/shutdown", "suspend");
        world.host.fire("control/shutdown");
        assert!(!world.mirror.suspend.is_due(), "not before it is answered");
        world.settle();
        assert_eq!(world.host.get("control/shutdown"), Some(""));
        assert!(world.mirror.suspend.take().is_some());
        assert_eq!(world.mirror.suspend.take(), None, "once");
        assert_eq!(world.guest_has("control/shutdown").as_deref(), Some(""));
        assert!(!world.guest_is_told());
    }
}

#[test]
fn a_withdrawn_suspend_is_not_acknowledged() {
    let mut world = World::new();
    // Withdrawn, or replaced by another, while the acknowledgement is on its way.
    for instead in ["", "reboot"] {
        world.host.set("control/shutdown", "suspend");
        let is_under_way = |world: &World| {
            let mut jobs = world.host.jobs.iter();
            jobs.any(|(_, job)| matches!(job, Job::Replace(..)))
        };
        while !is_under_way(&world) {
            assert!(world.deliver() || world.host.step(), "never answered");
        }
        let node = "control/shutdown".to_owned();
        world.host.nodes.insert(node, instead.into());
        world.settle();
        assert_eq!(world.host.get("control/shutdown"), Some(instead));
        assert!(!world.mirror.suspend.is_due());
    }
    assert_eq!(
        world.guest_has("control/shutdown").as_deref(),
        Some("reboot")
    );
}

#[test]
fn memory_cpus_and_data_come_in() {
    let mut world = World::new();
    assert_eq!(world.guest_has("memory/target").as_deref(), Some("130048"));
    world.host.set("memory/target", "65536");
    world.host.set("cpu/1/availability", "online");
    world.host.set("cpu/0/availability", "nonsense");
    world.host.set("cpu/7/availability", "online");
    world.host.set("data/k", "v");
    world.host.set("data/unmoved/k", "v");
    world.settle();
    assert_eq!(world.guest_has("memory/target").as_deref(), Some("64512"));
    assert_eq!(
        world.guest_has("cpu/1/availability").as_deref(),
        Some("online")
    );
    assert_eq!(
        world.guest_has("cpu/0/availability").as_deref(),
        Some("online")
    );
    assert_eq!(world.guest_has("cpu/7/availability"), None);
    assert_eq!(world.guest_has("data/k").as_deref(), Some("v"));
    assert_eq!(world.guest_has("data/unmoved/k"), None);
    world.host.unset("data/k");
    world.settle();
    assert_eq!(world.guest_has("data/k"), None);
}

#[test]
fn an_old_echo_does_not_undo_what_the_guest_wrote_since() {
    let mut world = World::new();
    world.write("data/k", "1");
    // The write reaches the host; the watch's event is read, and its answer is on its way …
    assert!(world.host.step());
    while world.deliver() {}
    assert!(world.host.step());
    // … when the guest writes again.
    world.write("data/k", "2");
    world.settle();
    assert_eq!(world.guest_has("data/k").as_deref(), Some("2"));
    assert_eq!(world.host.get("data/k"), Some("2"));
}

#[test]
fn after_a_migration_the_guest_is_told_nothing_and_the_host_everything() {
    let mut world = World::new();
    world.write("data/a", "1");
    world.write("attr/os", "linux");
    world.host.set("data/host", "x");
    let (mirror, mut stores) = world.stores();
    mirror.report(&mut stores, "state", b"running");
    world.settle();
    world.ask(MsgType::WATCH, "/local/domain/1\0t\0");
    world.guest_is_told();
    world.migrate();
    assert!(!world.guest_is_told());
    assert_eq!(world.host.get("data/a"), Some("1"));
    assert_eq!(world.host.get("attr/os"), Some("linux"));
    assert_eq!(world.host.get("data/unmoved/state"), Some("running"));
    assert_eq!(world.guest_has("data/host").as_deref(), Some("x"));
    // The watches work in the new place, and what was asked before they were set is not lost.
    world.host.set("control/shutdown", "poweroff");
    world.settle();
    assert!(world.guest_is_told());
    let mut fresh = FakeHost::fresh();
    fresh
        .nodes
        .insert("control/shutdown".into(), b"suspend".to_vec());
    world.host = fresh;
    world.attach();
    world.settle();
    assert!(world.mirror.suspend.take().is_some());
}

#[test]
fn what_had_not_had_its_turn_before_a_migration_has_it_after() {
    let mut world = World::new();
    let names = || (0..50).map(|number| format!("data/{number}"));
    names().for_each(|name| world.write(&name, "v"));
    world.host.step();
    world.migrate();
    let missing: Vec<_> = names()
        .filter(|name| world.host.get(name).is_none())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_guest_that_writes_in_a_loop_is_bounded() {
    let mut world = World::new();
    for number in 0..20_000 {
        world.write(&format!("data/{}", number % 3000), "v");
        world.ask(MsgType::RM, &format!("data/{}\0", number % 3000));
        world.write("data/k", &number.to_string());
        if number % 100 == 0 {
            world.deliver();
            world.host.step();
        }
        assert!(world.host.jobs.len() <= 12, "{}", world.host.jobs.len());
        assert!(world.mirror.outward_waiting() <= 4096);
    }
    world.settle();
    assert_eq!(world.host.get("data/k"), Some("19999"));
    assert_eq!(
        world
            .host
            .nodes
            .keys()
            .filter(|name| name.starts_with("data/"))
            .count(),
        1
    );
}

#[test]
fn too_much_at_once_ends_in_the_same_place() {
    let mut world = World::new();
    for number in 0..900 {
        world.write(&format!("data/{number}"), "v");
    }
    world.settle();
    for number in 0..900 {
        world.ask(MsgType::RM, &format!("data/{number}\0"));
    }
    world.write("data/last", "v");
    let (mirror, mut stores) = world.stores();
    mirror.guest_changed(&mut stores, &["/".into()]);
    world.settle();
    let left: Vec<_> = world
        .host
        .nodes
        .keys()
        .filter(|name| name.starts_with("data/"))
        .collect();
    assert_eq!(left, ["data/last"]);
}

/// What the host says of a directory that the guest has removed and made again is old news.
#[test]
fn a_directory_made_again_is_not_removed_by_its_own_echo() {
    // However far the exchange has come when the guest makes it again.
    for steps in 0..60u32 {
        for order in 0..64u32 {
            let mut world = World::new();
            world.ask(MsgType::MKDIR, "data/t/own\0");
            world.write("data/t/own/a", "1");
            world.settle();
            world.ask(MsgType::RM, "data/t\0");
            for step in 0..steps {
                let _ = match order >> (step % 6) & 1 {
                    0 => world.host.step() || world.deliver(),
                    _ => world.deliver() || world.host.step(),
                };
            }
            world.ask(MsgType::MKDIR, "data/t/own\0");
            world.settle();
            assert!(world.guest_has("data/t/own").is_some(), "{steps} {order:b}");
            assert!(world.host.get("data/t/own").is_some(), "{steps} {order:b}");
        }
    }
}
