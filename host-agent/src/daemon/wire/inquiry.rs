//! The question of an agent about a session that the other end has part in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::session::SessionId;

/// Longest time for the answer once the connection is established.
pub(in crate::daemon) const LIMIT: Duration = Duration::from_secs(10);
/// The capability that the other end must offer.
pub(in crate::daemon) const FEATURE: &str = "inquiry";

/// The end of the session that is asked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(in crate::daemon) enum End {
    /// Where the guest departs.
    Source,
    /// Where the guest arrives.
    Destination,
}

/// The request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::daemon) struct Inquiry {
    /// The session.
    pub(in crate::daemon) session: SessionId,
    /// The end of it that is asked.
    pub(in crate::daemon) end: End,
    /// The guest's UUID, for an agent that does not know the session.
    pub(in crate::daemon) uuid: String,
}
