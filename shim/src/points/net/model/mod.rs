//! Models of everything around a network interface, for tests and fuzz targets.

#![cfg_attr(
    not(test),
    expect(dead_code, reason = "fuzz targets use a part of what the tests need")
)]
#![expect(
    clippy::unwrap_used,
    reason = "a model that was told nonsense is a failed test"
)]

pub(crate) mod backend;
mod hostile;

use xen_abi::Mfn;

pub(crate) use self::backend::Backend;
pub use self::hostile::{hostile_backend, hostile_guest};

/// A world around one interface.
pub(crate) type World = crate::points::device::model::World<Backend>;

/// The guest's rings; what follows it sends from, and then receives into.
pub(crate) const TX_RING: Mfn = Mfn(0);
pub(crate) const RX_RING: Mfn = Mfn(1);
/// The guest's ports; without the second, one does for both rings.
pub(crate) const PORTS: [u32; 2] = [9, 10];
