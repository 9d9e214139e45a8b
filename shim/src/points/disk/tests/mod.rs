//! The disk against models of everything around it.

#[macro_use]
mod world;
mod backend;
mod guest;

mod cases;
mod properties;
