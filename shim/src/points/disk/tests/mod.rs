//! The disk against models of everything around it.

mod guest;

mod cases;
mod properties;
