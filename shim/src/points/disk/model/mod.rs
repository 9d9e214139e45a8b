//! Models of everything around a disk, for tests and fuzz targets.

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
pub(crate) mod world;

pub use hostile::hostile_guest;
