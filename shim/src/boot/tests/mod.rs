//! Tests of the boot room as a whole.

mod build;
mod damaged;
mod guest;
mod notes;
mod payloads;
mod real;
mod synthetic;
mod walker;
