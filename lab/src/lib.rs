//! Emulated Xen hosts on one machine: real Xen, real dom0, real guests, no hardware virtualisation.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use unmoved_lab::{Config, Lab};
//! Lab::run("example", &Config::hosts(2), |lab| {
//!     println!("{}", lab.host(0).ok(&["xl", "info"])?);
//!     Ok(())
//! })
//! # }
//! ```
//!
//! From the bottom up: [`cache`], [`debian`] and [`mirror`] get packages, [`tools`] is QEMU and Bochs out of
//! them, [`images`] what hosts and guests are made of, [`machine`] one emulator's process, [`snapshot`] a host after
//! its first boot, [`host`] one that is up, [`lab`] several of them, as [`config`] says, [`guest`] what runs on them.

pub mod bzimage;
pub mod cache;
pub mod channel;
mod clock;
pub mod config;
pub mod cpio;
pub mod debian;
pub mod debian_root;
pub mod guest;
pub mod host;
pub mod images;
pub mod initramfs;
pub mod lab;
mod lan;
pub mod log;
pub mod machine;
pub mod migrate;
pub mod mirror;
pub mod modules;
pub mod paths;
mod process;
pub mod profile;
pub mod programs;
pub mod progress;
mod qmp;
pub mod run;
pub mod snapshot;
pub mod stream_tools;
pub mod suite;
pub mod tools;
pub mod trace;

pub use channel::{Output, Task};
pub use config::{Config, Scripts};
pub use debian_root::DebianRoot;
pub use guest::{Guest, GuestPlan, System, Tsc};
pub use host::Host;
pub use images::{GuestKernel, Xen};
pub use lab::Lab;
pub use log::Log;
pub use machine::{Kind, Shape};
