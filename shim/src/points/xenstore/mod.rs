//! The xenstore that the guest sees: a small virtual store with the real daemon's rules.
//!
//! The guest speaks the full protocol of an unprivileged domain; checks, their order, error names,
//! quotas and the order of events follow the C daemon of Xen 4.17.  Everything lives in the shim's
//! RAM and so migrates as memory: a migration changes nothing here.
//!
//! | module | holds |
//! |---|---|
//! | [`path`] | what a valid name is |
//! | [`perms`] | permission lists and what they allow |
//! | [`tree`] | nodes, generations, quota accounts |
//! | [`transaction`], [`view`] | reading and writing, inside a transaction or directly |
//! | [`operations`] | what each operation does to the tree |
//! | [`watch`], [`queue`] | who is told of a change, and what waits to be sent |
//! | [`daemon`], [`request`] | connections, and one message answered |
//! | [`ring`] | the guest's ring page |
//! | [`seed`], [`mirror`] | first contents, and the exchange with the real store |
//!
//! [`VirtualStore`] puts them together.

pub mod daemon;
pub mod limits;
pub mod mirror;
pub mod operations;
pub mod path;
pub mod perms;
pub mod queue;
pub mod request;
pub mod ring;
pub mod seed;
pub mod transaction;
pub mod tree;
pub mod view;
pub mod watch;

mod changed;
mod virtual_store;

#[cfg(test)]
mod compare;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use limits::Limits;
pub use virtual_store::{Serviced, VirtualStore};
