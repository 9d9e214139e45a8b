//! Events and effects of the source's end of a session.

use crate::job::Presence;
use crate::session::{Answer, Order, Sent, SourceRecord, Trouble};

/// An operator's decision about a suspended guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Run it here: the operator vouches that the destination's copy does not run.
    RunHere,
    /// Run it at the destination: the operator vouches that the copy here does not run, and has not run since
    /// it was suspended.
    HandOver,
    /// Give it up: it is gone here, and the destination has no complete copy.
    GiveUp,
}

/// An event.
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
    /// Result of [`SourceEffect::RuleOutAbort`].
    AbortRuledOut(Result<(), String>),
    /// Result of [`SourceEffect::Resume`].
    Resumed(Result<(), Trouble>),
    /// Result of [`SourceEffect::Destroy`].
    Destroyed(Result<(), Trouble>),
    /// The destination's answer to [`SourceEffect::Call`].
    Answered(Answer),
    /// No answer came, or nobody waits for it any more; the reason is a sentence.
    NotAnswered(String),
    /// Time to try again, after [`SourceEffect::Wait`].
    Retry,
    /// An operator decides, after [`SourceEffect::Wait`].
    Decided(Operator),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEffect {
    /// Write this record to the disk.
    Journal(SourceRecord),
    /// Call the destination's method.
    Call(Order),
    /// Copy with the guest running.
    CopyLive,
    /// Suspend and copy the rest.
    CopyRest,
    /// Rule out an abort from here on; fails if the job has been aborted.
    RuleOutAbort,
    /// Resume the guest here.
    Resume,
    /// Destroy the copy here.
    Destroy,
    /// Nothing can be done now, for this reason.  Try again later, or ask an operator if `is_held`.
    Wait {
        /// The reason for the operator.
        reason: String,
        /// Only an operator can help.
        is_held: bool,
    },
    /// The session is over: `Ok` if the guest belongs to the destination.
    End(Result<(), String>),
}

/// Whether the event is the result of this effect.
pub(super) const fn is_result(effect: &SourceEffect, event: &SourceEvent) -> bool {
    use SourceEffect as Effect;
    use SourceEvent as Event;
    matches!(
        (effect, event),
        (Effect::Call(_), Event::Answered(_) | Event::NotAnswered(_))
            | (Effect::CopyLive, Event::LiveCopied(_))
            | (Effect::CopyRest, Event::RestCopied(_))
            | (Effect::RuleOutAbort, Event::AbortRuledOut(_))
            | (Effect::Resume, Event::Resumed(_))
            | (Effect::Destroy, Event::Destroyed(_))
    )
}
