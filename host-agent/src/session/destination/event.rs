//! Events and effects of the destination's end of a session.

use crate::job::Presence;
use crate::session::{Answer, DestinationRecord, Order, Request, Sent, Trouble};

/// An operator's decision about a copy whose source does not decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Run it here: the operator vouches that the source's copy does not run, has not run since it was
    /// suspended, and never will.
    RunHere,
    /// Do not run it here, and keep nothing of it.
    Forget,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationEvent {
    /// The source calls this end's method.
    Called(Order),
    /// The agent was restarted and has read the journal and looked for the domain.
    Restarted(Presence),
    /// The source has not answered for too long.
    LeaseExpired,
    /// The agent is stopping, and does not wait for incomplete copies.
    Stopped,
    /// An operator decides.
    Decided(Choice),
    /// Result of [`DestinationEffect::Journal`].
    Journaled(Result<(), String>),
    /// Result of [`DestinationEffect::Reserve`].
    Reserved(Result<(), String>),
    /// Result of [`DestinationEffect::Finish`].  On failure, `is_gone` says that the domain is not complete.
    Finished(Result<(), Trouble>),
    /// Result of [`DestinationEffect::Unpause`].
    Unpaused(Result<(), Trouble>),
    /// Result of [`DestinationEffect::Discard`].
    Discarded(Result<(), String>),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationEffect {
    /// Write this record to the disk.
    Journal(DestinationRecord),
    /// Reserve what the guest needs, and start the toolstack.
    Reserve(Box<Request>),
    /// Wait until the domain is complete and paused, with everything that was sent in it.
    Finish(Sent),
    /// Unpause it.
    Unpause {
        /// Leave it paused, under its own name.
        leave_paused: bool,
    },
    /// Discard it, and the reservation.
    Discard,
    /// Answer the call.
    Answer(Answer),
    /// Nothing; the reason says why the domain waits.
    Idle {
        /// The reason for the operator, if something is waited for.
        reason: Option<String>,
    },
}

/// Whether the event is the result of this effect.
pub(super) const fn is_result(effect: &DestinationEffect, event: &DestinationEvent) -> bool {
    use DestinationEffect as Effect;
    use DestinationEvent as Event;
    matches!(
        (effect, event),
        (Effect::Reserve(_), Event::Reserved(_))
            | (Effect::Finish(_), Event::Finished(_))
            | (Effect::Unpause { .. }, Event::Unpaused(_))
            | (Effect::Discard, Event::Discarded(_))
    )
}
