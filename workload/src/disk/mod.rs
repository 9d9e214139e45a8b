//! Disk traffic in which every block says what it is.
//!
//! [`pattern`] fills and checks single blocks, [`traffic`] keeps many requests in flight and
//! remembers what every block must hold, [`image`] checks a whole disk from outside.

pub mod image;
pub mod options;
pub mod pattern;
mod shared;
pub mod traffic;
mod worker;

pub use options::Options;
pub use traffic::Traffic;
