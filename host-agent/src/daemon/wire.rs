//! What agents say to each other, once they know who the other is; `docs/protocol.md` tells the rest.

use serde::{Deserialize, Serialize};

use crate::job::{HostFacts, Needs};
use crate::session::{Answer, Order, SessionId, Status};

/// Version of this protocol.
pub(super) const VERSION: u32 = 1;
/// Most bytes of a probe.
pub(super) const PROBE_MOST: u64 = 64 << 20;

/// The first message on a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Hello {
    /// Calls and answers.
    Control {
        /// [`VERSION`].
        version: u32,
    },
    /// A stream.
    Data {
        /// Of this session.
        session: SessionId,
        /// What the answer to step 1 said; good for each lane once.
        ticket: SessionId,
        /// Number of this connection, from 0.
        lane: u8,
    },
}

/// What the source's agent says on a control connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ToPeer {
    /// Step 0.
    Meet {
        /// The caller's, as XML.
        capabilities: String,
        /// What is asked for.
        parameters: Parameters,
    },
    /// Whether the guest could be reserved for; has no effect that lasts.
    Check(Box<Needs>),
    /// So many bytes follow, to measure the way.
    Probe {
        /// At most [`PROBE_MOST`].
        bytes: u64,
    },
    /// A step of a session: `destination(step, cookie)`.
    Call {
        /// Of this session.
        session: SessionId,
        /// Grows with every call on this connection.
        call: u64,
        /// Step and cookie.
        order: Order,
    },
}

/// The parameters of the proposal of 2007.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Parameters {
    /// Which way the stream is to come.
    pub(super) uri: Option<String>,
    /// Name at the destination.
    pub(super) dname: Option<String>,
    /// Bandwidth in bytes per second.
    pub(super) resource: Option<u64>,
    /// Bit 0: live.
    pub(super) flags: u32,
}

/// What the source needs to know of the stream.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Ticket {
    /// For the data connections.
    pub(super) ticket: SessionId,
    /// The destination can build the domain while memory is still on the way
    /// ([`Sink::builds_early`](crate::job::Sink::builds_early)).
    pub(super) builds_early: bool,
}

/// What the destination's agent says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromPeer {
    /// To [`Hello`].
    Welcome,
    /// To [`ToPeer::Meet`].
    Met {
        /// As XML.
        capabilities: String,
        /// The host.
        facts: HostFacts,
    },
    /// To [`ToPeer::Check`]: yes.
    Checked,
    /// To [`ToPeer::Probe`]: all has arrived.
    Probed,
    /// To [`ToPeer::Call`].
    Reply {
        /// The call's number.
        call: u64,
        /// Which of the three answers it is.
        status: Status,
        /// The cookie.
        cookie: Answer,
        /// With the answer to step 1.
        stream: Option<Ticket>,
    },
    /// To anything: no, and it had no effect.
    Refused(String),
}
