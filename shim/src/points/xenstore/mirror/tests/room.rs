//! What the real store lets a domain own is shared between the shim's reports, the devices and the
//! guest, in this order.

use xen_abi::xs_wire::MsgType;

use super::world::{FakeHost, World};
use crate::points::xenstore::mirror::outward::{HOST_NODES, room_beside};

/// The guest writes as many nodes as its own store takes; returns how many it has.
fn fill(world: &mut World, area: &str) -> usize {
    for number in 0..1000 {
        // Some levels, for those count as well.
        world.write(&format!("{area}/{}/{number}", number % 30), "v");
        if number % 50 == 0 {
            while world.deliver() || world.host.step() {}
        }
    }
    world.settle();
    let has = |number: &i32| {
        world
            .guest_has(&format!("{area}/{}/{number}", number % 30))
            .is_some()
    };
    (0..1000).filter(has).count()
}

/// Writes what a disk with a ring of eight frames takes.
fn plug(host: &mut FakeHost, device: usize) -> bool {
    let dir = format!("device/vbd/{device}");
    host.nodes.insert("device/vbd".into(), Vec::new());
    host.nodes.insert(dir.clone(), Vec::new());
    for leaf in [
        "backend",
        "backend-id",
        "state",
        "virtual-device",
        "device-type",
    ] {
        host.nodes.insert(format!("{dir}/{leaf}"), "1".into());
    }
    let refs = (0..8).map(|frame| format!("ring-ref{frame}"));
    let others = [
        "ring-page-order",
        "event-channel",
        "protocol",
        "feature-persistent",
    ];
    refs.chain(others.map(String::from))
        .all(|leaf| host.write(&format!("{dir}/{leaf}"), b"9".to_vec()).is_ok())
}

#[test]
fn a_guest_that_fills_its_store_leaves_room_for_devices() {
    let mut world = World::new();
    world.leave_room(2);
    let has = fill(&mut world, "attr");
    assert!(has > 900, "{has}");
    let own = world.host.owned();
    assert!(
        (700..=HOST_NODES).contains(&own),
        "most of it is published: {own}"
    );
    assert!(
        (0..6).all(|device| plug(&mut world.host, device)),
        "{own} nodes"
    );

    // More devices come: what is published makes way, and the guest keeps it.
    world.leave_room(20);
    assert!((6..22).all(|device| plug(&mut world.host, device)));
    let again = fill(&mut world, "attr");
    assert_eq!(again, has, "the guest keeps all that it has");

    // They go, and there is room again.
    world
        .host
        .nodes
        .retain(|name, _| !name.starts_with("device/vbd"));
    world.leave_room(2);
    assert_eq!(world.host.owned(), own);
}

#[test]
fn after_a_move_the_devices_come_before_the_guests_nodes() {
    let mut world = World::new();
    world.leave_room(5);
    fill(&mut world, "data");
    let (mirror, mut stores) = world.stores();
    mirror.report(&mut stores, "state", b"running");
    world.settle();
    world.arrive(FakeHost::fresh());
    assert_eq!(
        world.host.log,
        ["data/unmoved/state"],
        "devices have not connected"
    );
    assert!((0..5).all(|device| plug(&mut world.host, device)));
    world.host.set("control/shutdown", "poweroff");
    while world.deliver() || world.host.step() {}
    assert_eq!(
        world.guest_has("control/shutdown").as_deref(),
        Some("poweroff")
    );
    world.release();
    assert!(world.host.owned() > 700);
}

#[test]
fn the_shims_own_words_go_first_and_the_guests_take_turns() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.write(&format!("attr/{name}"), "0");
    }
    world.settle();
    world.host.log.clear();
    for number in 0..200 {
        for name in ["a", "b", "c"] {
            world.write(&format!("attr/{name}"), &number.to_string());
        }
        if number == 20 {
            let (mirror, mut stores) = world.stores();
            mirror.report(&mut stores, "refusal", b"drain: 3 requests");
            world.write("data/z", "at last");
            world.host.log.clear();
        }
        // The host does one thing while the guest does three.
        world.host.step();
        while world.deliver() {}
    }
    let place = |name: &str| world.host.log.iter().position(|path| path == name);
    let first = place("data/unmoved/refusal").expect("it is told");
    assert!(first <= 8, "behind what was on its way: {first}");
    let turn = place("data/z").expect("it is published");
    assert!(turn <= 16, "behind each of the others once: {turn}");
}

#[test]
fn a_store_that_is_full_before_its_time_makes_way_for_the_shims_words() {
    let mut world = World::new();
    world.host.quota = 300;
    let has = fill(&mut world, "attr");
    assert!(has > 900);
    assert_eq!(world.host.owned(), 300);
    let (mirror, mut stores) = world.stores();
    mirror.report(&mut stores, "refusal", b"drain: 3 requests");
    world.settle();
    assert_eq!(
        world.host.get("data/unmoved/refusal"),
        Some("drain: 3 requests")
    );
    assert!(world.host.owned() < 300);
    // For a device as well.
    let (mirror, mut stores) = world.stores();
    assert!(mirror.make_way(&mut stores));
    world.settle();
    assert!(plug(&mut world.host, 1) && plug(&mut world.host, 2));
    let left = (0..1000).filter(|number| {
        let path = format!("attr/{}/{number}", number % 30);
        world.guest_has(&path).is_some()
    });
    assert_eq!(left.count(), has, "the guest has lost nothing");
}

#[test]
fn nothing_makes_way_where_nothing_is() {
    let mut world = World::new();
    let (mirror, mut stores) = world.stores();
    assert!(!mirror.make_way(&mut stores));
    assert_eq!(room_beside(100), 0);
    assert!(
        room_beside(27) > 100,
        "a guest with 27 disks still tells its address"
    );
}

#[test]
fn what_was_below_a_directory_that_is_made_again_goes() {
    let mut world = World::new();
    world.write("data/t/old", "1");
    world.settle();
    world.ask(MsgType::RM, "data/t\0");
    world.write("data/t/new", "2");
    world.settle();
    assert_eq!(world.host.get("data/t/old"), None);
    assert_eq!(world.host.get("data/t/new"), Some("2"));
}
