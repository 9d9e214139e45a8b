//! Instructions that the guest executes and the CPU refuses in ring 3.
//!
//! A trap goes through here in three steps: [`decode`](decode::decode) the bytes at `rip`, then
//! either [`privileged`] (general protection and invalid opcode faults) or [`ptstore`] (a store to
//! a live page table that the guest may only read).  What the guest may know about the machine is
//! decided once, at first boot, by [`cpuid`] and [`msr`].
//!
//! Decoding and stores are plain arithmetic on [`Regs`](crate::cpu::Regs); what is privileged acts on the guest's own
//! vCPU ([`privileged::GuestCpu`]).

pub mod address;
pub mod cpuid;
pub mod decode;
pub mod flags;
pub mod insn;
pub mod live;
pub mod msr;
pub mod privileged;
pub mod ptstore;
pub mod regs;

pub use decode::{CodeSize, DecodeError, Decoded, decode};
pub use insn::{Insn, Store, Width};
pub use regs::After;
