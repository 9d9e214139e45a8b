//! Scenarios in the lab that more than one program plays: the demo shows them, the tests check them.
//!
//! The tests themselves are in `tests/tests/`, one file per subject.  They start hosts, so they are
//! behind the feature `lab`, which `cargo xtask test` switches on.

pub mod agents;
pub mod answers;
pub mod baseline;
pub mod cuts;
pub mod direct;
pub mod ended;
pub mod hostile;
pub mod hotplug;
pub mod load;
pub mod peer;
pub mod shell;
pub mod unnoticed;
pub mod within;
