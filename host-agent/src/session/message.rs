//! The messages of a session.

use serde::{Deserialize, Serialize};

use super::{Seal, Token};
use crate::job::{MemoryLimits, Needs};

/// What the destination is asked to reserve for.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Request {
    /// What the guest needs.
    pub needs: Needs,
    /// Leave the guest paused after the take-over.
    pub leave_paused: bool,
    /// Number of connections for the stream, from 1 to 64.
    pub parallel: u8,
    /// The destination recognises the token by this.
    pub seal: Seal,
}

/// The totals at the end of the stream.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of the stream before compression, as the source counted them, to be compared.
    #[serde(rename = "sent")]
    pub bytes: u64,
    /// The current limits of the guest's memory; without them, those of its configuration apply.
    #[serde(default)]
    pub limits: Option<MemoryLimits>,
}

/// A call of the destination's method by the source.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Step 1.
    Reserve(Box<Request>),
    /// Step 2: everything has been sent; wait until the domain is complete.
    Receive(Sent),
    /// Step 3: the guest is yours.
    TakeOver(Token),
    /// Step 4: the source is complete.
    Retire,
    /// The source has failed, and will not hand over.
    Failed(String),
}

impl Request {
    /// Most connections of one session.
    pub const CONNECTIONS_MOST: u8 = 64;
}

impl Order {
    /// The number of its step; `None` for a failure.
    #[must_use]
    pub const fn step(&self) -> Option<u8> {
        match self {
            Self::Reserve(_) => Some(1),
            Self::Receive(_) => Some(2),
            Self::TakeOver(_) => Some(3),
            Self::Retire => Some(4),
            Self::Failed(_) => None,
        }
    }
}

/// The destination's answer.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", tag = "answer", content = "reason")]
pub enum Answer {
    /// *Complete*: done, and nothing is left to do.
    Complete,
    /// *Continue*: the step is done.
    Continue,
    /// *Continue*, but the step is not done yet, for this reason; ask again.
    NotYet(String),
    /// *Failed*, finally: the copy here is gone and will never run.
    Discarded(String),
    /// *Failed*: the guest was taken over and is gone; whether it ran is unknown.
    Lost(String),
    /// *Failed*: there is no such session here.
    Unknown,
    /// *Failed*: the order is not valid now, and had no effect.
    Refused(String),
}

/// The three answers of the protocol.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Nothing is left to do.
    Complete,
    /// There is a next step.
    Continue,
    /// It failed.
    Failed,
}

impl Answer {
    /// Which of the three it is.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Self::Complete => Status::Complete,
            Self::Continue | Self::NotYet(_) => Status::Continue,
            Self::Discarded(_) | Self::Lost(_) | Self::Unknown | Self::Refused(_) => Status::Failed,
        }
    }
}

/// Why a step with the guest failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// For the operator.
    pub reason: String,
    /// The domain is gone.
    pub is_gone: bool,
}
