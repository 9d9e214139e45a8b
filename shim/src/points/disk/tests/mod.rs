//! The disk against models of everything around it.

mod guest;

mod bounds;
mod cases;
mod ends;
mod moves;
mod properties;

use self::guest::Guest;
use crate::points::disk::model::backend::Backend;
use crate::points::disk::model::world::World;
use crate::points::{Device, Progress};

const GOOD: &[(&str, &str)] = &[
    ("feature-flush-cache", "1"),
    ("feature-barrier", "1"),
    ("feature-discard", "1"),
    ("feature-max-indirect-segments", "256"),
];

const POOR: &[(&str, &str)] = &[("feature-flush-cache", "1")];

fn connected(features: &[(&'static str, &str)], order: u32) -> (World, Guest) {
    let mut world = World::new(Backend::new(4, features));
    world.handshake();
    assert_eq!(world.attached(), Ok(Progress::Done));
    let guest = Guest::connect(&mut world, order);
    assert_eq!(world.back("state"), Some("4"));
    (world, guest)
}

/// Lets everything that was asked be done and answered.
fn settle(world: &mut World, guest: &mut Guest) {
    if guest.push(world) {
        world.guest_kick();
    }
    for _ in 0..10_000 {
        world.backend.take(&world.mem);
        let mut kick = false;
        while !world.backend.taken.is_empty() {
            kick |= world.backend.finish(&world.mem, 0);
        }
        world.backend.let_go(&world.mem);
        if kick {
            world.host_kick();
        }
        world.retry();
        guest.reap(world);
        if guest.waiting() == 0 {
            return;
        }
        if guest.push(world) {
            world.guest_kick();
        }
    }
    panic!(
        "{} requests are never answered: {:?}",
        guest.waiting(),
        world.vbd
    );
}

/// Closes and unplugs the disk in an orderly way.
fn tear_down(mut world: World) {
    world.guest_state(5);
    assert_eq!(world.back("state"), Some("5"));
    world.guest_state(6);
    assert!(world.vbd.is_gone() || world.back("state") == Some("6"));
    finish_unplug(&mut world);
}

fn finish_unplug(world: &mut World) {
    world.unplug();
    world.handshake();
    // The backend lets go of the ring only when it has closed.
    world.retry();
    world.assert_nothing_leaked();
}
