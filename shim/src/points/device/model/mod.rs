//! Models of everything around a device, for tests and fuzz targets; what a class of devices needs besides is in
//! its own.

#![cfg_attr(
    not(test),
    expect(dead_code, reason = "fuzz targets use a part of what the tests need")
)]

mod peer;
mod world;

pub(crate) use self::peer::{HostNodes, Peer};
#[cfg(test)]
pub(crate) use self::world::GUEST_FRAMES;
pub(crate) use self::world::{World, grant, put_entry, reference};

/// Bytes of noise that make one event.
const EVENT: usize = 9;

/// Makes events of noise: a kind, and two numbers.
pub(crate) fn events(noise: &[u8]) -> impl Iterator<Item = (u8, u32, u32)> + '_ {
    noise.as_chunks::<EVENT>().0.iter().map(|event| {
        let [kind, rest @ ..] = *event;
        let [a, b] = [0, 4].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|i| rest[at + i])));
        (kind, a, b)
    })
}
