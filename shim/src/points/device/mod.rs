//! What all devices have in common: how far the connections to the host's backend and to the guest's driver
//! have come, and what follows at each stage from each state of the other end.

mod table;

use alloc::string::String;

pub use self::table::{BackendAct, Frontend, FrontendAct, on_backend};

/// How far the connection to the host's backend has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The backend is being looked for, or is not ready.
    Waiting,
    /// It is being asked what it offers.
    Negotiating,
    /// What it offers is known, and no driver of the guest wants it yet.
    Offered,
    /// It was given rings.
    Given,
    /// It took them, and is being asked what the device is like.
    Describing,
    /// Requests flow.
    Connected,
    /// We closed the connection to open another.
    Reopening,
    /// Where the guest came to there is none, or none that works; requests wait until there is.
    Absent(String),
    /// What it offers can not stand behind what the guest was told; requests wait.
    Refused(String),
    /// It lied or went away; requests fail.
    Broken(String),
    /// We closed the connection for good.
    Closed,
}
