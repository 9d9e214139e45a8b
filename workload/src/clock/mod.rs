//! The clock watch: does any clock that the guest can read ever step back, and how long does time
//! stand still for it?
//!
//! [`watch`] judges one clock, [`sampler`] reads them all in a thread, [`pvclock`] finds the
//! hypervisor's own clock page where the kernel lets user space see it.

pub mod pvclock;
pub mod sampler;
pub mod watch;

pub use sampler::Sampler;
