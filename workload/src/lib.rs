//! The guest workload: what a test guest does, checks and reports, and its partner on a host.
//!
//! `unmoved-init` is the guest's only program: PID 1, disk and network traffic with every byte
//! checked, a clock watch, a fingerprint of the machine, micro-benchmarks and ways to be
//! unfriendly.  `unmoved-peer` drives the guest's network services from outside.  Both speak JSON
//! lines ([`report`]) and take the same `command key=value` lines ([`orders`]).
//!
//! Everything that decides something is in this library so that it is tested on any Linux
//! machine; [`sys`] keeps the `unsafe` calls of the operating system behind safe functions.

pub mod bench;
pub mod clock;
pub mod disk;
pub mod fingerprint;
pub mod helper;
pub mod init;
pub mod net;
pub mod orders;
pub mod peer;
pub mod report;
pub mod store_script;
pub mod storm;
pub mod sys;
pub mod unfriendly;
pub mod xenbus;
