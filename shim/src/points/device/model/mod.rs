//! Models of everything around a device, for tests and fuzz targets; what a class of devices needs besides is in
//! its own.

#![cfg_attr(
    not(test),
    expect(dead_code, reason = "fuzz targets use a part of what the tests need")
)]

mod peer;
mod world;

pub(crate) use self::peer::Peer;
pub(crate) use self::world::{GUEST_FRAMES, World, grant, put_entry, reference};
