//! The records of both journals.  The last record of a session is its state.

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
    /// The guest is about to be suspended.
    Suspending,
    /// **The point of no return**: the destination may take over.
    HandedOver,
    /// The destination runs it; the copy here is about to be destroyed.
    Released,
    /// The copy here is gone.  The destination may forget the session.
    Done,
    /// It will not be handed over; the guest resumes here.
    Aborting {
        /// Why.
        reason: String,
    },
    /// It runs here and no longer belongs to this session: another one may be migrating it.  Only the
    /// destination has not been told.
    Resumed {
        /// Why.
        reason: String,
    },
    /// It runs here, and the destination knows.
    Aborted {
        /// Why.
        reason: String,
    },
    /// It is paused until an operator decides.
    Held {
        /// Why.
        reason: String,
    },
}

/// A line of the destination's journal.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum DestinationRecord {
    /// Resources are about to be reserved, and the domain to be built.
    Reserved {
        /// The request.
        request: Box<Request>,
        /// The source's name, from its certificate.
        peer: String,
    },
    /// The complete domain is here, paused.
    Received,
    /// It is about to run: the source has handed it over.
    Taken {
        /// The token.
        token: Token,
    },
    /// It is about to run, because an operator has decided so without the source: the operator vouches that
    /// the source's copy does not run and never will.
    Adopted,
    /// It runs.
    Running,
    /// The copy here is gone and will never run.
    Discarded {
        /// Why.
        reason: String,
    },
    /// It was taken over and is gone.
    Lost {
        /// What is known about it.
        reason: String,
    },
    /// As [`DestinationRecord::Lost`], and an operator has taken care of it: nothing is kept for it here.
    Forgotten {
        /// What was known about it.
        reason: String,
    },
    /// The source has finished too.  Kept only to recognise late messages.
    Retired {
        /// Whether the guest was taken over.
        taken: bool,
    },
}

impl SourceRecord {
    /// The state's name for people.
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

    /// Whether nothing is left to do.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Aborted { .. })
    }

    /// The result for the guest, if nothing is left to do with it: from then on this session must never touch
    /// it.
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
    /// The state's name for people.
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

    /// Whether nothing is left to do and nothing is reserved.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Running | Self::Discarded { .. } | Self::Forgotten { .. } | Self::Retired { .. }
        )
    }
}
