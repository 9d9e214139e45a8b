//! A guest that writes noise into its ring, indexes, grants and states.

use xen_abi::Mfn;
use xen_abi::blkif::status;

use super::backend::Backend;
use crate::mem::Frames;
use crate::points::Progress;
use crate::points::device::model::{events, grant, put_entry};
use crate::points::disk::model::World;

const FEATURES: &[(&str, &str)] = &[
    ("feature-flush-cache", "1"),
    ("feature-barrier", "1"),
    ("feature-discard", "1"),
    ("feature-max-indirect-segments", "64"),
];

/// Lets a guest do what `noise` says, moving the machine now and then, and panics if anything is
/// harmed: if the disk lets a frame, reference or port go astray, or can not be drained.
pub fn hostile_guest(noise: &[u8]) {
    let mut world = World::new(Backend::new(1, FEATURES));
    world.handshake();
    (0..30).for_each(|frame| grant(&world, Mfn(frame), frame % 3 == 1));
    for (key, value) in [("ring-ref", "8"), ("event-channel", "9")] {
        world.front(key, value);
    }
    world.guest_state(3);
    assert_eq!(world.back("state"), Some("4"));

    for (kind, a, b) in events(noise) {
        happen(&mut world, kind, a, b);
    }

    let mut rounds = 0;
    while world.quiesce() == Progress::Waiting {
        backend_answers(&mut world);
        world.retry();
        rounds += 1;
        assert!(rounds < 5000, "not drained: {:?}", world.device);
    }
    world.guest_state(5);
    world.guest_state(6);
    world.unplug();
    world.handshake();
    world.retry();
    world.assert_nothing_left();
}

fn happen(world: &mut World, kind: u8, a: u32, b: u32) {
    let ring = Mfn(0);
    match kind % 16 {
        // Mostly plausible slots: a small operation, few segments, small references.
        0..6 => {
            let slot = 64 + (a % 32) as usize * 112;
            let head = (b % 7 + (((b >> 8) % 13) << 8)) as u16;
            world.mem.store16(ring, slot, head);
            world.mem.store64(ring, slot + 16, u64::from(a >> 8) % 2100);
            for segment in 0..11 {
                let at = slot + 24 + segment * 8;
                let reference = 8 + (a >> 5).wrapping_add(segment as u32 * 7) % 40;
                // An indirect request has its references four bytes on.
                let at = if b % 7 == 6 { at + 4 } else { at };
                world.mem.store32(ring, at, reference);
                world.mem.store16(ring, at + 4, (b >> 16) as u16 & 0x0703);
            }
        }
        6 => world.mem.store32(ring, (a as usize % 1024) * 4, b),
        7 => {
            let raw = u64::from(a % 256) << 32 | u64::from(b & 0xff);
            put_entry(world, a % 512, raw);
        }
        8..12 => {
            // The producer index, a little further on.
            let now = world.mem.load32(ring, 8);
            world.mem.store32(ring, 0, now.wrapping_add(a % 34));
            world.guest_kick();
        }
        12 => {
            world.guest_state(a % 9);
            if a.is_multiple_of(2) {
                // Back on its feet, with whatever the ring now holds.
                for state in [5, 6, 1, 3] {
                    world.guest_state(state);
                }
            }
        }
        13 => backend_answers(world),
        14 => {
            if world.quiesce() == Progress::Done || b.is_multiple_of(4) {
                world.migrate(Backend::new(b % 3, &FEATURES[..1 + (a % 4) as usize]));
            }
            world.resume();
        }
        _ => world.retry(),
    }
}

fn backend_answers(world: &mut World) {
    world.backend.take(&world.mem);
    while !world.backend.taken.is_empty() {
        world.backend.answer(&world.mem, 0, status::OKAY, false);
    }
    world.host_kick();
}
