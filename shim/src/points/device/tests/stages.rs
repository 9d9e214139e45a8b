//! Every stage of the connection to the host meets everything that can happen to a device, and then everything
//! once more: nothing is random and nothing depends on time.
//!
//! After each event the guest must not have been told more than is true.  At the end either the device is taken
//! away and nothing of it is left, or the machine moves to a good host, where a new driver of the guest is served.

use std::collections::BTreeSet;

use super::{Class, ConnectionStage, World, for_each_class, restart};
use crate::points::{Device, Progress};

for_each_class! { whatever_happens_at_each_stage_a_device_goes_in_order_or_is_served_again }

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The stores and the backend get their turn once.
    Step,
    /// Nothing is left for them to do.
    Handshake,
    /// The backend, or the toolstack, writes a state.
    Backend(u32),
    /// The toolstack removes the backend's directory.
    Vanish,
    /// The backend writes nonsense to its rings.
    Lie,
    /// The backend does what it was asked.
    Serve,
    /// The guest's driver writes a state.
    Guest(u32),
    /// The guest's driver notifies us.
    Kick,
    /// Time passes.
    Retry,
    /// A suspend that comes to nothing.
    Cancel,
    /// The machine moves to a host ...
    Move,
    /// ... that can not stand in for the first ...
    MoveToPoor,
    /// ... or has no such device, and does not go on there yet.
    MoveToNothing,
    /// The host takes the device away.
    Unplug,
}

/// Everything.
fn events() -> Vec<Event> {
    let mut all = vec![
        Event::Step,
        Event::Handshake,
        Event::Vanish,
        Event::Lie,
        Event::Serve,
        Event::Kick,
        Event::Retry,
        Event::Cancel,
        Event::Move,
        Event::MoveToPoor,
        Event::MoveToNothing,
        Event::Unplug,
    ];
    all.extend((0..=8).map(Event::Backend));
    all.extend((0..=8).map(Event::Guest));
    all
}

/// What may follow: one of each kind, and the states that lead on.
const THEN: [Event; 8] = [
    Event::Handshake,
    Event::Backend(5),
    Event::Backend(6),
    Event::Vanish,
    Event::Guest(1),
    Event::Move,
    Event::MoveToNothing,
    Event::Unplug,
];

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    TakenAway,
    ServedElsewhere,
}

/// A stage's name.
fn name(stage: &ConnectionStage) -> &'static str {
    match stage {
        ConnectionStage::Waiting => "waiting",
        ConnectionStage::Negotiating => "negotiating",
        ConnectionStage::Offered => "offered",
        ConnectionStage::Given => "given",
        ConnectionStage::Describing => "describing",
        ConnectionStage::Connected => "connected",
        ConnectionStage::Reopening => "reopening",
        ConnectionStage::Absent(_) => "absent",
        ConnectionStage::Refused(_) => "refused",
        ConnectionStage::Broken(_) => "broken",
        ConnectionStage::Closed => "closed",
    }
}

fn stage<B: Class>(world: &World<B>) -> &'static str {
    name(&world.device.shell.host.stage)
}

/// Ways to the stages: what happens before, whether a driver is connected then and has asked for something, and
/// how many single steps follow.
fn ways() -> Vec<(bool, Vec<Event>, usize)> {
    let mut ways = Vec::new();
    for has_driver in [false, true] {
        let after = [
            vec![],
            vec![Event::Lie],
            vec![Event::MoveToNothing],
            vec![Event::MoveToPoor],
            vec![Event::Guest(6)],
            vec![Event::Unplug, Event::Guest(6)],
        ];
        for events in after {
            ways.push((has_driver, events, 0));
        }
    }
    // Being plugged, up to where a driver could come, and beyond where one has to.
    ways.extend((0..40).map(|steps| (false, vec![Event::Cancel], steps)));
    ways.extend((0..40).map(|steps| (true, vec![Event::Cancel], steps)));
    ways
}

/// A world to which this has happened.
fn begin<B: Class>((has_driver, events, steps): &(bool, Vec<Event>, usize)) -> World<B> {
    let mut world = World::new(B::good());
    let is_plugging = events == &[Event::Cancel];
    if !is_plugging || *has_driver {
        world.handshake();
    }
    if *has_driver {
        let mut guest = B::join(&mut world);
        if !is_plugging {
            world.handshake();
            B::ask(&mut world, &mut guest);
            world.guest_kick();
        }
    }
    events.iter().for_each(|event| happen(&mut world, *event));
    (0..*steps).for_each(|_| {
        world.step();
    });
    world
}

/// Lets something happen to a device that is not gone: one that is was dropped.
fn happen<B: Class>(world: &mut World<B>, event: Event) {
    if world.device.is_gone() || is_suspend(event) && suspends(world) {
        return;
    }
    match event {
        Event::Step => {
            world.step();
        }
        Event::Handshake => world.handshake(),
        Event::Backend(state) => {
            world.backend_state(state);
            world.handshake();
        }
        Event::Vanish => {
            world.backend.vanish(&mut world.real, &world.mem);
            world.handshake();
        }
        Event::Lie => {
            world.backend.lie(&world.mem);
            world.host_kick();
        }
        Event::Serve => serve(world),
        Event::Guest(state) => world.guest_state(state),
        Event::Kick => world.guest_kick(),
        Event::Retry => world.retry(),
        Event::Cancel => world.resume(),
        Event::Move | Event::MoveToPoor => {
            let next = match event {
                Event::Move => B::good(),
                _ => B::poor(),
            };
            world.migrate(next);
            world.resume();
        }
        Event::MoveToNothing => world.migrate_to_nothing(B::good()),
        Event::Unplug => world.unplug(),
    }
    check(world);
}

/// The backend does what it was asked.  What was withdrawn before it knew of it would be an error to a real one.
fn serve<B: Class>(world: &mut World<B>) {
    world.handshake();
    world.backend.serve(&world.mem);
    world.host_kick();
}

/// Whether the machine is suspended for it.
fn is_suspend(event: Event) -> bool {
    matches!(
        event,
        Event::Cancel | Event::Move | Event::MoveToPoor | Event::MoveToNothing
    )
}

/// Suspends, whatever is in flight; `true` if the device was on its way out and has gone.
fn suspends<B: Class>(world: &mut World<B>) -> bool {
    let _ = world.quiesce();
    world.device.is_gone()
}

/// What holds at any moment.
fn check<B: Class>(world: &World<B>) {
    let shell = &world.device.shell;
    let has_driver = shell.guest.driver.is_some();
    if world.back("state") == Some("6") {
        let holds = &world.ledger.holds;
        assert!(holds.is_empty(), "Closed, and {holds:?} are in use");
        assert!(!has_driver, "Closed to a driver that is connected");
    }
    assert_eq!(has_driver, !world.ports.connected.is_empty(), "guest ports");
    let has_rings = shell.host.rings.is_some();
    assert_eq!(has_rings, !world.xen.open.is_empty(), "host ports");
    let is_stuck = matches!(stage(world), "absent" | "refused" | "broken");
    assert_eq!(world.attached().is_err(), is_stuck);
    if matches!(stage(world), "absent" | "broken" | "reopening" | "closed") {
        assert!(!has_rings, "rings that nobody serves");
    }
    if world.device.is_gone() {
        world.assert_nothing_left();
    }
}

fn end<B: Class>(mut world: World<B>, end: End) {
    let shell = &world.device.shell;
    if end == End::TakenAway || shell.is_unplugging || shell.shown.is_none() {
        for state in [5, 6] {
            if !world.device.is_gone() {
                world.guest_state(state);
            }
        }
        world.unplug();
        for _ in 0..3 {
            serve(&mut world);
            world.backend.let_go(&world.mem);
            world.retry();
        }
        return world.assert_nothing_left();
    }
    assert!(!suspends(&mut world), "nobody took it away");
    world.migrate(B::good());
    assert_eq!(world.attached(), Ok(Progress::Done), "{:?}", world.device);
    world.resume();
    let mut guest = restart(&mut world);
    assert_eq!(world.back("state"), Some("4"), "{:?}", world.device);
    B::ask(&mut world, &mut guest);
    assert_eq!(B::settle(&mut world, &mut guest), 0);
    world.tear_down();
}

fn whatever_happens_at_each_stage_a_device_goes_in_order_or_is_served_again<B: Class>() {
    // One way to each stage, with a driver and without.
    let mut met = BTreeSet::new();
    let mut ways = ways();
    ways.retain(|way| {
        let world = begin::<B>(way);
        let shell = &world.device.shell;
        met.insert((
            stage(&world),
            shell.guest.driver.is_some(),
            shell.is_unplugging,
        ))
    });
    let mut expected = BTreeSet::from([
        "waiting",
        "negotiating",
        "given",
        "connected",
        "absent",
        "refused",
        "broken",
        "closed",
    ]);
    // Those that a class has by its nature.
    expected.extend(match B::LETS_GO_EARLY {
        true => &["offered", "reopening"][..],
        false => &["describing"],
    });
    let stages: BTreeSet<&str> = met.iter().map(|(stage, ..)| *stage).collect();
    assert_eq!(stages, expected);

    let mut cases = 0;
    for way in &ways {
        for first in events() {
            for then in THEN {
                for how in [End::TakenAway, End::ServedElsewhere] {
                    let case = (way, first, then, how);
                    let outcome = std::panic::catch_unwind(|| {
                        let mut world = begin::<B>(way);
                        happen(&mut world, first);
                        happen(&mut world, then);
                        end(world, how);
                    });
                    assert!(outcome.is_ok(), "in the case {case:?}");
                    cases += 1;
                }
            }
        }
    }
    println!("{} ways, {cases} cases", ways.len());
}
