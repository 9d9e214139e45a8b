//! A whole guest on ordinary memory, for tests and fuzz targets of everything between ring 3 and
//! the host: a machine that walks the guest's real page tables, and a host with a clock that can be
//! set, whose control domain serves the store, the console and the devices.
//!
//! [`Bench`] puts them together with a guest that [`crate::boot::build`] made, ready to run.

mod backend;
mod census;
mod dom0;
mod frames;
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
mod processor;
pub(crate) mod surroundings;
mod translations;

pub use dom0::Dom0;
pub use frames::FakeFrames;
#[cfg(test)]
pub(crate) use guest::driver::{DiskDriver, NetDriver};
pub use guest::{Bench, TestGuest};
pub use host::{Clock, Ended, FakeHost, Journey};
pub use machine::{FakeMachine, Flushed};
pub use processor::{amd, intel, policies};
pub use translations::Translations;
