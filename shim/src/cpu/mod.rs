//! What a vCPU is, and how the guest's exceptions, callbacks and system calls reach it.
//!
//! [`Vcpu`] is everything the shim keeps for one guest vCPU; [`deliver`] builds the frames on the
//! guest's stack that the PV ABI prescribes and takes them back at `iret`.  Guest kernel and guest
//! user both run in ring 3: which of the two is running is a flag here, not a property of CS.

pub mod defences;
pub mod deliver;
mod exception;
pub mod first;
mod machine;
mod regs;
mod vcpu;

#[cfg(test)]
mod tests;

pub use exception::UPCALL_VECTOR;
pub use machine::{HostTraps, Machine};
pub use regs::Regs;
pub use vcpu::{Assist, Callback, InfoPage, Timer, Vcpu};
