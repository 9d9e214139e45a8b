//! What the two ends say to each other about a session.

use serde::{Deserialize, Serialize};

use super::{Seal, Token};
use crate::job::{MemoryLimits, Needs};

/// What the destination is asked to reserve for.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Request {
    /// What the guest needs.
    pub needs: Needs,
    /// The guest is to stay paused after it was taken over.
    pub leave_paused: bool,
    /// Connections that will carry the stream, from 1 to 64.
    pub parallel: u8,
    /// By which the destination will know the token.
    pub seal: Seal,
}

/// What has been sent, when everything has.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Sent {
    /// Bytes and pages that were sent, counted at the source, to be compared.
    #[serde(rename = "sent")]
    pub bytes: u64,
    /// The limits of the guest's memory now; those of its configuration stay where a source does not tell.
    #[serde(default)]
    pub limits: Option<MemoryLimits>,
}

/// The source calls the destination's method.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Step 1.
    Reserve(Box<Request>),
    /// Step 2: everything has been sent; wait until the domain is whole.
    Receive(Sent),
    /// Step 3: the guest is yours.
    TakeOver(Token),
    /// Step 4: the source is complete.
    Retire,
    /// The source has failed, and will not hand over any more.
    Failed(String),
}

impl Request {
    /// Most connections of one session.
    pub const CONNECTIONS_MOST: u8 = 64;
}

impl Order {
    /// The number of its step; a failure belongs to none.
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

/// What the destination answers.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", tag = "answer", content = "reason")]
pub enum Answer {
    /// *Complete*: what was asked is done, and there is nothing more to do.
    Complete,
    /// *Continue*: the step is done.
    Continue,
    /// *Continue*, but the step is not done yet, for this reason; ask again.
    NotYet(String),
    /// *Failed*, for ever: the copy here is gone and will never run.
    Discarded(String),
    /// *Failed*: the guest was taken over and is not there any more; whether it ran is not known.
    Lost(String),
    /// *Failed*: there is no such session here.
    Unknown,
    /// *Failed*: this order does not belong here now; it had no effect.
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
    /// It will not work.
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

/// Why something that was to be done with the guest did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// For the operator.
    pub reason: String,
    /// There is no such domain any more.
    pub is_gone: bool,
}
