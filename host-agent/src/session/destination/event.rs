//! What happens to the destination's end of a session, and what it wants done.

use crate::job::Presence;
use crate::session::{Answer, DestinationRecord, Order, Request, Sent, Trouble};

/// What an operator decides about a copy whose source does not say what is to become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It is to run here: the operator vouches that the source's copy does not, has not since it was
    /// suspended, and never will.
    RunHere,
    /// It is not to run here: nothing of it is kept.
    Forget,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationEvent {
    /// The source calls this end's method.
    Called(Order),
    /// The agent was restarted and has read the journal and looked for the domain.
    Restarted(Presence),
    /// The source has been silent for too long.
    LeaseExpired,
    /// The agent is about to end in order: what is not whole by now is not waited for.
    Stopped,
    /// An operator decides.
    Decided(Choice),
    /// Result of [`DestinationEffect::Journal`].
    Journaled(Result<(), String>),
    /// Result of [`DestinationEffect::Reserve`].
    Reserved(Result<(), String>),
    /// Result of [`DestinationEffect::Finish`].  Of a failure: what there is of the domain is not whole, if
    /// that `is_gone`.
    Finished(Result<(), Trouble>),
    /// Result of [`DestinationEffect::Unpause`].
    Unpaused(Result<(), Trouble>),
    /// Result of [`DestinationEffect::Discard`].
    Discarded(Result<(), String>),
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationEffect {
    /// Write this to the disk.
    Journal(DestinationRecord),
    /// Lock what the guest needs, and start the toolstack.
    Reserve(Box<Request>),
    /// Wait until the domain is whole and paused, and all that was sent is in it.
    Finish(Sent),
    /// Let it run.
    Unpause {
        /// Or not, but under its own name.
        leave_paused: bool,
    },
    /// Throw it away, and the lock.
    Discard,
    /// Answer the call.
    Answer(Answer),
    /// Nothing; the reason is why the domain stands as it does.
    Idle {
        /// For the operator, if something is waited for.
        reason: Option<String>,
    },
}

/// Whether the event is a result of the effect.
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
