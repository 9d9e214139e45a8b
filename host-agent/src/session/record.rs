//! What each end writes down; the last record of a session is where it stands.

use serde::{Deserialize, Serialize};

use super::{Request, Token};

/// A line of the source's journal.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum SourceRecord {
    /// The job exists; the destination may have been asked to reserve.
    Begun {
        /// What is asked of the destination.
        request: Box<Request>,
        /// The secret of this session.
        token: Token,
        /// Who the destination is: name in the configuration, or address.
        peer: String,
    },
    /// The guest is going to be suspended.
    Suspending,
    /// **The point of no return**: the destination may take over.
    HandedOver,
    /// The destination runs it; the copy here is going to be destroyed.
    Released,
    /// The copy here is gone.  The destination may forget the session.
    Done,
    /// It will not be handed over (any more); the guest goes on here.
    Aborting {
        /// Why.
        reason: String,
    },
    /// It goes on here, and is not this session's any more: another may be moving it by now.  Only the
    /// destination has still to be told.
    Resumed {
        /// Why.
        reason: String,
    },
    /// It goes on here, and the destination knows.
    Aborted {
        /// Why.
        reason: String,
    },
    /// It stands paused until an operator decides.
    Held {
        /// Why.
        reason: String,
    },
}

/// A line of the destination's journal.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum DestinationRecord {
    /// Resources are going to be locked, and the domain to be built.
    Reserved {
        /// What was asked.
        request: Box<Request>,
        /// Who the source is: the name in its certificate.
        peer: String,
    },
    /// The whole domain stands here, paused.
    Received,
    /// It is going to run: the source has handed it over.
    Taken {
        /// The proof.
        token: Token,
    },
    /// It is going to run, for an operator has decided so without the source's word: he vouches that the
    /// source's copy does not run, and never will.
    Adopted,
    /// It runs.
    Running,
    /// The copy here is gone and will never run.
    Discarded {
        /// Why.
        reason: String,
    },
    /// It was taken over, and is not there any more.
    Lost {
        /// What is known about it.
        reason: String,
    },
    /// As [`DestinationRecord::Lost`], and an operator has seen to it: nothing is kept for it here.
    Forgotten {
        /// What was known about it.
        reason: String,
    },
    /// The source has finished too; kept only so that a late message is known to be late.
    Retired {
        /// Whether the guest was taken over.
        taken: bool,
    },
}

impl SourceRecord {
    /// What the state is called where people read it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Begun { .. } => "begun",
            Self::Suspending => "suspending",
            Self::HandedOver => "handed over",
            Self::Released => "released",
            Self::Done => "done",
            Self::Aborting { .. } => "aborting",
            Self::Resumed { .. } => "resumed",
            Self::Aborted { .. } => "aborted",
            Self::Held { .. } => "held",
        }
    }

    /// Nothing is left to do.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Aborted { .. })
    }

    /// How it ended for the guest, if nothing is left to do with the guest: then this session must never
    /// touch it again.
    #[must_use]
    pub fn ended(&self) -> Option<Result<(), String>> {
        match self {
            Self::Done => Some(Ok(())),
            Self::Resumed { reason } | Self::Aborted { reason } => Some(Err(reason.clone())),
            _ => None,
        }
    }
}

impl DestinationRecord {
    /// What the state is called where people read it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Reserved { .. } => "reserved",
            Self::Received => "received",
            Self::Taken { .. } => "taken",
            Self::Adopted => "adopted",
            Self::Running => "running",
            Self::Discarded { .. } => "discarded",
            Self::Lost { .. } => "lost",
            Self::Forgotten { .. } => "forgotten",
            Self::Retired { .. } => "retired",
        }
    }

    /// Nothing is left to do, and no resources are held.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Running | Self::Discarded { .. } | Self::Forgotten { .. } | Self::Retired { .. }
        )
    }
}
