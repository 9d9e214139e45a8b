//! The guest's program: process 1, the worker that carries out orders, and its helpers.
//!
//! [`boot`] is process 1: it sets the system up and keeps a [`worker`] alive, so that no odd input
//! can end the guest.  Whatever must have a single thread, or may die, is a [helper](crate::helper): the same
//! program started anew.

pub mod boot;
pub mod control;
pub mod facts;
pub mod helpers;
pub mod modules;
pub mod tools;
pub mod worker;
