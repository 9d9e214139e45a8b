//! A whole guest on ordinary memory, for tests and fuzz targets of everything between ring 3 and
//! the host: a machine that walks the guest's real page tables, a host with a clock that can be
//! set, and points that only remember.
//!
//! [`Bench`] puts them together with a guest that [`crate::boot::build`] made, ready to run.

mod census;
mod guest;
#[cfg(test)]
pub(crate) mod heap;
/// Fuzz targets have an allocator of their own, so none is made small for them.
#[cfg(not(test))]
mod heap {
    pub(crate) struct SmallHeap;

    impl SmallHeap {
        pub(crate) fn outside<R>(run: impl FnOnce() -> R) -> R {
            run()
        }
    }
}
mod host;
mod machine;
mod points;
mod translations;

pub use guest::{Bench, TestGuest};
pub use host::{Clock, Ended, FakeHost, Journey};
pub use machine::{FakeMachine, Flushed};
pub use points::{Call, FakePoints, OnStore};
pub use translations::Translations;
