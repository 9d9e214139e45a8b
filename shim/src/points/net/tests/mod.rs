//! Tests of whole interfaces, against models of both their sides.

mod cases;
mod guest;
mod machine;
mod properties;
