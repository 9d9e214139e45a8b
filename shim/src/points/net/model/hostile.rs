//! Those who write noise: a guest, and a backend.

use xen_abi::Mfn;
use xen_abi::netif::status;

use super::backend::Backend;
use crate::mem::Frames;
use crate::points::Progress;
use crate::points::device::model::{events, grant, put_entry, reference};
use crate::points::net::model::{PORTS, RX_RING, TX_RING, World};

const FEATURES: &[(&str, bool)] = &[
    ("feature-rx-copy", true),
    ("feature-sg", true),
    ("feature-gso-tcpv4", true),
    ("feature-gso-tcpv6", true),
    ("feature-multicast-control", true),
    ("feature-split-event-channels", true),
];
/// Offsets in a ring page.
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
const SLOTS: usize = 64;

/// A world with a connected driver, whose frames below 40 are granted.
fn connected() -> World {
    let mut world = World::new(Backend::new(FEATURES));
    world.handshake();
    (0..40).for_each(|frame| grant(&world, Mfn(frame), frame % 3 == 2));
    for (key, value) in [
        ("tx-ring-ref", reference(TX_RING)),
        ("rx-ring-ref", reference(RX_RING)),
        ("event-channel-tx", PORTS[0]),
        ("event-channel-rx", PORTS[1]),
        ("request-rx-copy", 1),
        ("feature-rx-notify", 1),
        ("feature-sg", 1),
        ("feature-gso-tcpv4", 1),
    ] {
        world.front(key, &value.to_string());
    }
    world.guest_state(4);
    world.handshake();
    assert_eq!(world.back("state"), Some("4"));
    world
}

/// Lets a guest do what `noise` says, moving the machine now and then, and panics if anything is
/// harmed: if the interface lets a frame, reference or port go astray, gives the backend what Linux's
/// would take as an attack, or can not be drained.
pub fn hostile_guest(noise: &[u8]) {
    let mut world = connected();
    for (kind, a, b) in events(noise) {
        guest_writes(&mut world, kind, a, b);
    }
    let mut rounds = 0;
    while world.quiesce() == Progress::Waiting {
        backend_answers(&mut world);
        world.retry();
        rounds += 1;
        assert!(rounds < 5000, "not drained: {:?}", world.device);
    }
    world.resume();
    world.tear_down();
}

fn guest_writes(world: &mut World, kind: u8, a: u32, b: u32) {
    match kind % 16 {
        // Mostly plausible slots to send: small references, sizes and flags.
        0..5 => {
            let at = SLOTS + (a % 256) as usize * 12;
            world.mem.store32(TX_RING, at, 8 + (a >> 8) % 44);
            world.mem.store32(TX_RING, at + 4, b & 0x000f_0fff);
            let size = (b >> 20) << 16 & 0x07ff_0000;
            world.mem.store32(TX_RING, at + 8, size | a >> 16);
        }
        // Extras, which look like this.
        5 => {
            let at = SLOTS + (a % 256) as usize * 12;
            world.mem.store32(TX_RING, at, b & 0x0fff_0103);
            world.mem.store32(TX_RING, at + 4, b >> 16 & 0x0303);
        }
        6 => {
            let at = SLOTS + (a % 256) as usize * 8;
            world.mem.store32(RX_RING, at, b & 0xffff);
            world.mem.store32(RX_RING, at + 4, 8 + (a >> 8) % 44);
        }
        7 => {
            let ring = [TX_RING, RX_RING][(a & 1) as usize];
            world.mem.store32(ring, (a >> 1) as usize % 1024 * 4, b);
        }
        8 => {
            let raw = u64::from(a % 256) << 32 | u64::from(b & 0xff);
            put_entry(world, a % 512, raw);
        }
        9..12 => {
            // The producer index, a little further on.
            let ring = [TX_RING, RX_RING][(b & 1) as usize];
            let now = world.mem.load32(ring, RSP_PROD);
            world.mem.store32(ring, REQ_PROD, now.wrapping_add(a % 258));
            world.guest_kick();
        }
        12 => {
            world.guest_state(a % 9);
            if a.is_multiple_of(2) {
                // Back on its feet, with whatever the rings now hold.
                for state in [5, 6, 1, 4] {
                    world.guest_state(state);
                    world.handshake();
                }
            }
        }
        13 => backend_answers(world),
        14 => {
            if world.quiesce() == Progress::Done || b.is_multiple_of(4) {
                world.migrate(Backend::new(&FEATURES[..3 + (a % 4) as usize]));
            }
            world.resume();
        }
        _ => world.retry(),
    }
}

fn backend_answers(world: &mut World) {
    // What was withdrawn before the backend knew of it is an error to a real one, and no attack.
    world.handshake();
    world.backend.take(&world.mem);
    while world.backend.waiting() > 0 {
        world.backend.answer(&world.mem, 0, status::OKAY, false);
    }
    world.host_kick();
}

/// Lets a backend do what `noise` says to its rings while a guest sends and receives, and panics if
/// anything is harmed.
pub fn hostile_backend(noise: &[u8]) {
    let mut world = connected();
    for (kind, a, b) in events(noise) {
        let rings = world.backend.ring_frames();
        let ring = rings.get((a & 1) as usize).copied();
        match (kind % 8, ring) {
            // Plausible responses: names that may be right, small lengths, any flags.
            (0 | 1, Some(ring)) => {
                let size = if a & 1 == 0 { 12 } else { 8 };
                let at = SLOTS + (a >> 1) as usize % 256 * size;
                world.mem.store32(ring, at, b & 0x0003_03ff);
                world.mem.store16(ring, at + 4, (b >> 16) as u16 & 0x000f);
                world.mem.store16(ring, at + 6, (a >> 16) as u16 & 0x83ff);
            }
            (2, Some(ring)) => {
                let now = world.mem.load32(ring, REQ_PROD);
                world.mem.store32(ring, RSP_PROD, now.wrapping_sub(a % 9));
                world.host_kick();
            }
            (3, Some(ring)) => world.mem.store32(ring, (a >> 1) as usize % 1024 * 4, b),
            (4 | 5, _) => {
                // The guest goes on as if nothing was wrong.
                let ring = [TX_RING, RX_RING][(b & 1) as usize];
                let size = if b & 1 == 0 { 12 } else { 8 };
                let now = world.mem.load32(ring, REQ_PROD);
                let at = SLOTS + now as usize % 256 * size;
                let frame = 3 * (a % 12);
                let (gref, id) = if b & 1 == 0 { (0, 8) } else { (4, 0) };
                world.mem.store32(ring, at + id, 60 << 16 | now & 0xffff);
                world.mem.store32(ring, at + gref, 8 + frame);
                if b & 1 == 0 {
                    world.mem.store32(ring, at + 4, 0);
                }
                world.mem.store32(ring, REQ_PROD, now.wrapping_add(1));
                world.guest_kick();
            }
            (6, _) => {
                world.backend_state(1 + a % 7);
                world.handshake();
            }
            _ => world.retry(),
        }
    }
    world.tear_down();
}
