//! This host's Xen: hypercalls, xenstore, and the commands of its toolstack.

pub(crate) mod abi;
pub(crate) mod config;
pub(crate) mod domain;
pub(crate) mod memory;
pub(crate) mod priority;
pub(crate) mod saver;
pub(crate) mod state;
pub(crate) mod store;
pub(crate) mod sys;
pub(crate) mod toolstack;
