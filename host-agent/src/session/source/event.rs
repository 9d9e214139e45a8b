//! What happens to the source's end of a session, and what it wants done.

use crate::job::Presence;
use crate::session::{Answer, Order, Sent, SourceRecord, Trouble};

/// What an operator decides about a guest that stands paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// It is to run here: the operator vouches that the destination's copy does not.
    RunHere,
    /// The destination is to run it: the operator vouches that the copy here does not, and has not
    /// since it was suspended.
    HandOver,
    /// It is given up: it is not here any more, and nothing whole of it is at the destination.
    GiveUp,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// The job begins.
    Begin,
    /// The agent was restarted and has read the journal and looked for the domain.
    Restarted(Presence),
    /// Result of [`SourceEffect::Journal`].
    Journaled(Result<(), String>),
    /// Result of [`SourceEffect::CopyLive`].
    LiveCopied(Result<(), String>),
    /// Result of [`SourceEffect::CopyRest`]: what was sent.
    RestCopied(Result<Sent, String>),
    /// Result of [`SourceEffect::Seal`].
    Sealed(Result<(), String>),
    /// Result of [`SourceEffect::Resume`].
    Resumed(Result<(), Trouble>),
    /// Result of [`SourceEffect::Destroy`].
    Destroyed(Result<(), Trouble>),
    /// The destination's answer to [`SourceEffect::Call`].
    Answered(Answer),
    /// No answer came, or nobody waits for it any more: why, as a sentence.
    NotAnswered(String),
    /// Time to try again, after [`SourceEffect::Wait`].
    Retry,
    /// An operator decides, after [`SourceEffect::Wait`].
    Decided(Operator),
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEffect {
    /// Write this to the disk.
    Journal(SourceRecord),
    /// Call the destination's method.
    Call(Order),
    /// Copy with the guest running.
    CopyLive,
    /// Suspend and copy the rest.
    CopyRest,
    /// Make sure that nobody can abort from here on; fails if somebody has.
    Seal,
    /// Let the guest go on here.
    Resume,
    /// Destroy the copy here.
    Destroy,
    /// Nothing can be done now, for this reason; try again later, or ask an operator if `is_held`.
    Wait {
        /// For the operator.
        reason: String,
        /// Only an operator can help.
        is_held: bool,
    },
    /// It is over: `Ok` if the guest is the destination's.
    End(Result<(), String>),
}

/// Whether the event is a result of the effect.
pub(super) const fn is_result(effect: &SourceEffect, event: &SourceEvent) -> bool {
    use SourceEffect as Effect;
    use SourceEvent as Event;
    matches!(
        (effect, event),
        (Effect::Call(_), Event::Answered(_) | Event::NotAnswered(_))
            | (Effect::CopyLive, Event::LiveCopied(_))
            | (Effect::CopyRest, Event::RestCopied(_))
            | (Effect::Seal, Event::Sealed(_))
            | (Effect::Resume, Event::Resumed(_))
            | (Effect::Destroy, Event::Destroyed(_))
    )
}
