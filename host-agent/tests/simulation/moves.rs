//! What can happen next in a world.

use unmoved::job::Presence;
use unmoved::session::{
    Choice, DestinationEffect, DestinationRecord, DestinationSession, Operator, SourceEffect,
};

use crate::world::World;

/// What can happen next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    SourceActs,
    DestinationActs,
    Deliver,
    DeliverLate(usize),
    NextCall,
    NoAnswer,
    RestartSource,
    RestartDestination,
    LeaseExpires,
    Retry,
    Decide(Operator),
    /// An operator decides at the destination.
    DecideThere(Choice),
    Over,
    /// Another session suspends the guest, then takes it away.
    AnotherSuspends,
    AnotherTakesIt,
    // Faults.
    Lose,
    Delay,
    Double,
    CallTimesOut,
    LeaseExpiresEarly,
    /// An operator at the destination does not wait for what the source says.
    DecideThereTooEarly(Choice),
    /// The destination's agent is about to end in order.
    StopDestination,
}

impl World<'_> {
    /// What can happen now: first what does if nothing is wrong.
    pub fn moves(&self) -> Vec<Move> {
        let mut moves = vec![self.usual()];
        if self.source.session.is_none() && moves[0] != Move::RestartSource {
            moves.push(Move::RestartSource);
        }
        if self.destination.session.is_none() && moves[0] != Move::RestartDestination {
            moves.push(Move::RestartDestination);
        }
        if moves[0] != Move::DeliverLate(0) {
            moves.extend((0..self.late.len()).map(Move::DeliverLate));
        }
        if moves[0] == Move::Over || self.destination.session.is_none() {
            moves.extend(self.choices().into_iter().map(Move::Decide));
        }
        let may_look_there = moves[0] == Move::Over || self.source.session.is_none();
        if may_look_there {
            moves.extend(self.choices_there().into_iter().map(Move::DecideThere));
        }
        if self.may_be_taken() && moves[0] != Move::AnotherTakesIt {
            moves.push(Move::AnotherTakesIt);
        }
        if self.faults_left > 0 {
            if self.source.has_let_go() && self.source.domain == Presence::Running {
                moves.push(Move::AnotherSuspends);
            }
            if !self.way.is_empty() {
                moves.extend([Move::Lose, Move::Delay, Move::Double]);
            }
            if self.source.calling.is_some() && moves[0] != Move::NoAnswer {
                moves.push(Move::CallTimesOut);
            }
            if self.has_idle_lease() && moves[0] != Move::LeaseExpires {
                moves.push(Move::LeaseExpiresEarly);
                moves.push(Move::StopDestination);
            }
            if !may_look_there && self.source.calling.is_some() {
                let choices = self.choices_there().into_iter();
                moves.extend(choices.map(Move::DecideThereTooEarly));
            }
        }
        moves
    }

    fn usual(&self) -> Move {
        let (source, destination) = (&self.source, &self.destination);
        let is_idle = matches!(
            destination.effect,
            None | Some(DestinationEffect::Idle { .. })
        );
        if destination.session.is_some() && !is_idle {
            return Move::DestinationActs;
        }
        if destination.session.is_some() && !destination.calls.is_empty() {
            return Move::NextCall;
        }
        let is_waiting = matches!(
            source.effect,
            None | Some(SourceEffect::Wait { .. } | SourceEffect::End(_))
        ) || source.calling.is_some();
        if source.session.is_some() && !is_waiting {
            return Move::SourceActs;
        }
        if !self.way.is_empty() {
            return Move::Deliver;
        }
        if source.calling.is_some() {
            return Move::NoAnswer;
        }
        if destination.session.is_none() {
            return Move::RestartDestination;
        }
        if source.session.is_none() {
            return Move::RestartSource;
        }
        if !self.late.is_empty() {
            return Move::DeliverLate(0);
        }
        if let Some(SourceEffect::Wait { is_held: false, .. }) = source.effect
            && self.idle_retries < 3
        {
            return Move::Retry;
        }
        if self.has_idle_lease() {
            return Move::LeaseExpires;
        }
        if self.may_be_taken() {
            return Move::AnotherTakesIt;
        }
        // It was decided, and could not be done: an operator sees that.
        let there = destination
            .session
            .as_ref()
            .and_then(DestinationSession::record);
        if there == Some(&DestinationRecord::Adopted) {
            return Move::DecideThere(Choice::RunHere);
        }
        Move::Over
    }

    fn may_be_taken(&self) -> bool {
        self.source.is_anothers && self.source.domain == Presence::Paused
    }

    fn has_idle_lease(&self) -> bool {
        let idle = matches!(
            self.destination.effect,
            None | Some(DestinationEffect::Idle { .. })
        );
        let session = self.destination.session.as_ref();
        idle && session.is_some_and(DestinationSession::has_lease)
    }
}
