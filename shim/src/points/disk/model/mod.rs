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

pub(crate) use self::backend::Backend;
pub use self::hostile::hostile_guest;

/// A world around one disk.
pub(crate) type World = crate::points::device::model::World<Backend>;
