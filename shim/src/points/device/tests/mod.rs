//! What every device does alike, tried with each class: plugging, moves, drivers that come and go.

mod stages;

use super::ConnectionStage;
use super::model::{Peer, World};
use crate::points::{Device, Progress};
use crate::testing::FakeFrames;

/// What a class has to bring besides the model of its backend.
pub(in crate::points) trait Class: Peer {
    /// A model of the guest's driver.
    type Guest;

    /// A backend that offers everything.
    fn good() -> Self;
    /// One that can not stand in for a good one.
    fn poor() -> Self;
    /// Writes nonsense to its rings.
    fn lie(&self, mem: &FakeFrames);
    /// Connects a driver.
    fn join(world: &mut World<Self>) -> Self::Guest;
    /// The driver asks for something, without notifying anybody.
    fn ask(world: &mut World<Self>, guest: &mut Self::Guest);
    /// Lets everything that was asked be done and answered, and returns how much of it has failed since the
    /// driver was connected.
    fn settle(world: &mut World<Self>, guest: &mut Self::Guest) -> usize;
}

/// Makes a test for each class of each function.
macro_rules! for_each_class {
    ($($test:ident)*) => {
        mod disk {
            $(#[test] fn $test() { super::$test::<crate::points::disk::model::Backend>(); })*
        }
        mod net {
            $(#[test] fn $test() { super::$test::<crate::points::net::model::Backend>(); })*
        }
    };
}
use for_each_class;

for_each_class! {
    a_device_that_is_missing_after_a_move_is_waited_for
    a_device_moves_at_every_step_of_being_plugged
    a_device_that_the_guest_was_not_told_of_may_be_missing_after_a_move
    a_kernel_that_takes_over_without_a_word_is_served
    a_driver_that_comes_while_the_backend_is_broken_is_served_by_the_next
    a_backend_that_broke_is_not_unplugged_and_lets_go
    a_backend_left_connected_is_led_around
    a_device_that_no_driver_wanted_is_unplugged
    a_device_on_its_way_out_leaves_nothing_on_a_host_that_does_not_have_it
    a_host_that_can_not_stand_in_is_refused_and_requests_wait
    rings_that_the_backend_has_mapped_are_not_used_anew_in_the_same_domain
}

/// A world with a connected driver.
fn connected<B: Class>() -> (World<B>, B::Guest) {
    let mut world = World::new(B::good());
    world.handshake();
    let guest = B::join(&mut world);
    world.handshake();
    assert_eq!(world.attached(), Ok(Progress::Done));
    assert_eq!(world.back("state"), Some("4"));
    (world, guest)
}

fn rings_that_the_backend_has_mapped_are_not_used_anew_in_the_same_domain<B: Class>() {
    let (mut world, mut guest) = connected::<B>();
    while world.quiesce() == Progress::Waiting {
        world.retry();
    }
    let free = world.pool.clone();
    world.resume_in_place();
    assert_eq!(world.pool, free, "the backend still writes into the others");
    for _ in 0..3 {
        world.handshake();
        world.retry();
    }
    assert_eq!(world.attached(), Ok(Progress::Done));
    world.resume();
    B::ask(&mut world, &mut guest);
    assert_eq!(B::settle(&mut world, &mut guest), 0);
    // Nothing is lost.
    world.tear_down();
}

/// The driver leaves, whatever it had come to, and another one is connected.
fn restart<B: Class>(world: &mut World<B>) -> B::Guest {
    for state in [5, 6] {
        world.guest_state(state);
        world.handshake();
    }
    for _ in 0..3 {
        world.handshake();
        world.backend.serve(&world.mem);
        world.host_kick();
        world.backend.let_go(&world.mem);
        world.retry();
    }
    assert_eq!(world.back("state"), Some("6"), "{:?}", world.device);
    assert!(world.ledger.holds.is_empty());
    world.guest_state(1);
    assert_eq!(world.back("state"), Some("2"));
    world.forget_driver();
    let guest = B::join(world);
    world.handshake();
    guest
}

fn a_device_that_is_missing_after_a_move_is_waited_for<B: Class>() {
    let (mut world, mut guest) = connected::<B>();
    let before = world.guest_view();
    for dies in [false, true] {
        B::ask(&mut world, &mut guest);
        assert_eq!(B::settle(&mut world, &mut guest), 0);
        while world.quiesce() == Progress::Waiting {
            world.backend.serve(&world.mem);
            world.host_kick();
            world.retry();
        }
        // Asked for while nobody is there to take it.
        B::ask(&mut world, &mut guest);
        if dies {
            world.migrate_to_dying(B::good());
            assert_eq!(world.attached(), Err("the backend is gone".to_owned()));
            world.backend_returns();
        } else {
            world.migrate_to_nothing(B::good());
            let why = world.attached().expect_err("there is none");
            let missing = format!("this host has no {}/", B::host_front());
            assert!(why.starts_with(&missing), "{why}");
            world.appear();
        }
        assert_eq!(world.attached(), Ok(Progress::Done));
        world.resume();
        assert_eq!(B::settle(&mut world, &mut guest), 0);
        assert_eq!(world.guest_view(), before, "the guest learned of it");
    }
    world.tear_down();
}

fn a_device_moves_at_every_step_of_being_plugged<B: Class>() {
    for has_driver in [false, true] {
        for steps in 0.. {
            let mut world = World::new(B::good());
            let mut guest = None;
            if has_driver {
                world.handshake();
                guest = Some(B::join(&mut world));
            }
            let is_over = (0..steps).any(|_| !world.step());
            assert_eq!(world.quiesce(), Progress::Done);
            world.migrate(B::good());
            let attached = world.attached();
            assert_eq!(attached, Ok(Progress::Done), "{has_driver}, {steps} steps");
            world.resume();
            let mut guest = guest.unwrap_or_else(|| B::join(&mut world));
            world.handshake();
            assert_eq!(world.back("state"), Some("4"));
            B::ask(&mut world, &mut guest);
            assert_eq!(B::settle(&mut world, &mut guest), 0);
            world.tear_down();
            if is_over {
                break;
            }
        }
    }
}

fn a_device_that_the_guest_was_not_told_of_may_be_missing_after_a_move<B: Class>() {
    let mut steps = 0;
    loop {
        let mut world = World::new(B::good());
        (0..steps).for_each(|_| assert!(world.step()));
        assert_eq!(world.quiesce(), Progress::Done);
        world.migrate_to_nothing(B::good());
        assert!(world.attached().is_err(), "there is none");
        if world.device.is_shown() {
            break;
        }
        world.unplug();
        world.resume();
        world.handshake();
        world.retry();
        world.assert_nothing_left();
        let left = &world.real.nodes;
        assert!(left.is_empty(), "a directory came to be: {left:?}");
        steps += 1;
    }
    assert!(steps > 5, "it was shown after {steps} steps");
}

fn a_kernel_that_takes_over_without_a_word_is_served<B: Class>() {
    let (mut world, mut guest) = connected::<B>();
    B::ask(&mut world, &mut guest);
    world.guest_kick();
    world.guest_state(1);
    // What the old one had asked for is done, or given up by the backend.
    for _ in 0..3 {
        world.handshake();
        world.backend.serve(&world.mem);
        world.host_kick();
        world.retry();
    }
    assert_eq!(world.back("state"), Some("2"), "{:?}", world.device);
    assert!(world.ledger.holds.is_empty());
    world.forget_driver();
    let mut guest = B::join(&mut world);
    world.handshake();
    assert_eq!(world.back("state"), Some("4"));
    B::ask(&mut world, &mut guest);
    assert_eq!(B::settle(&mut world, &mut guest), 0);
    world.tear_down();
}

fn a_driver_that_comes_while_the_backend_is_broken_is_served_by_the_next<B: Class>() {
    let (mut world, _) = connected::<B>();
    world.backend.lie(&world.mem);
    world.host_kick();
    assert!(world.attached().is_err());
    let mut guest = restart(&mut world);
    assert_eq!(world.back("state"), Some("4"), "as if nothing was wrong");
    B::ask(&mut world, &mut guest);
    assert_eq!(B::settle(&mut world, &mut guest), 1);
    world.quiesce();
    world.migrate(B::good());
    world.resume();
    assert_eq!(world.attached(), Ok(Progress::Done));
    B::ask(&mut world, &mut guest);
    assert_eq!(B::settle(&mut world, &mut guest), 1, "and no more");
    world.tear_down();
}

fn a_backend_that_broke_is_not_unplugged_and_lets_go<B: Class>() {
    let (mut world, mut guest) = connected::<B>();
    let before = world.guest_view();
    B::ask(&mut world, &mut guest);
    world.guest_kick();
    world.backend.lie(&world.mem);
    world.host_kick();
    for _ in 0..3 {
        world.handshake();
        world.retry();
    }
    assert!(!world.backend.is_attached(), "it was led to its end");
    assert_eq!(world.host_table.outstanding(), 0, "and has let go of all");
    assert_eq!(world.guest_view(), before, "nobody took the device away");
    assert_eq!(B::settle(&mut world, &mut guest), 1);
    world.tear_down();
}

fn a_backend_left_connected_is_led_around<B: Class>() {
    let mut world = World::new(B::good());
    world.backend_state(4);
    world.handshake();
    assert_eq!(world.attached(), Ok(Progress::Done));
    world.finish_unplug();
}

fn a_device_that_no_driver_wanted_is_unplugged<B: Class>() {
    let mut world = World::new(B::good());
    world.finish_unplug();
    let mut world = World::new(B::good());
    world.handshake();
    world.finish_unplug();
}

fn a_device_on_its_way_out_leaves_nothing_on_a_host_that_does_not_have_it<B: Class>() {
    let (mut world, _) = connected::<B>();
    world.unplug();
    world.guest_state(5);
    world.guest_state(6);
    assert!(!world.device.is_gone(), "the backend has its rings still");
    assert_eq!(world.quiesce(), Progress::Done);
    world.migrate_to_nothing(B::good());
    world.resume();
    world.handshake();
    world.assert_nothing_left();
    let left = &world.real.nodes;
    assert!(left.is_empty(), "a directory came to be: {left:?}");
}

fn a_host_that_can_not_stand_in_is_refused_and_requests_wait<B: Class>() {
    let (mut world, mut guest) = connected::<B>();
    assert_eq!(world.quiesce(), Progress::Done);
    let before = world.guest_view();
    world.migrate(B::poor());
    assert!(matches!(
        world.device.shell.host.stage,
        ConnectionStage::Refused(_)
    ));
    world.resume();
    B::ask(&mut world, &mut guest);
    world.guest_kick();
    assert_eq!(world.device.in_flight(), 0);
    world.migrate(B::good());
    world.resume();
    assert_eq!(B::settle(&mut world, &mut guest), 0);
    assert_eq!(world.guest_view(), before);
    world.tear_down();
}
