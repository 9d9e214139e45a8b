//! Operators, who look at what they can see, and err in what they decide.
//!
//! Whatever an operator may ask for at either end he asks for, also what is wrong, or at the wrong end: the agent
//! there looks at its own domain and asks the other's, as the real one does, and refuses.  Only what no agent
//! can see he has to know himself, for he vouches for it: what a host that is down had run before.

use unmoved::job::Presence;
use unmoved::session::{
    Choice, DestinationEffect, DestinationEvent, Operator, Other, SourceEffect, SourceEvent,
    Standing,
};

use crate::outcome::Loss;
use crate::world::World;

const OPERATOR: [Operator; 3] = [Operator::HandOver, Operator::RunHere, Operator::GiveUp];
const CHOICE: [Choice; 2] = [Choice::RunHere, Choice::Forget];

impl World<'_> {
    /// What an operator at the source may come to ask for.
    pub fn choices(&self) -> Vec<Operator> {
        let is_held = matches!(
            self.source.effect,
            Some(SourceEffect::Wait { is_held: true, .. })
        );
        if !is_held || !self.may_decide || self.source.session.is_none() {
            return Vec::new();
        }
        let (source, destination) = (&self.source, &self.destination);
        let mut choices = OPERATOR.to_vec();
        choices.retain(|choice| match choice {
            // Only of a session in doubt.  Its agent refuses, or it is at a third host.
            _ if source.is_anothers => false,
            // It ran on before the host was switched off: what stands at the destination is older.
            Operator::HandOver => source.domain != Presence::Absent || !source.ran_after_suspend,
            // In doubt.  It may have been handed over, and run when the destination's agent is up again.
            Operator::RunHere if source.harm.is_some() && destination.session.is_none() => {
                destination.domain == Presence::Absent && !destination.has_run
            }
            // It has run at the destination before that, or its agent, was lost.
            Operator::RunHere => !destination.has_run || self.destination_is_seen(),
            Operator::GiveUp => true,
        });
        choices
    }

    fn destination_is_seen(&self) -> bool {
        self.destination.session.is_some() && self.destination.domain != Presence::Absent
    }

    /// What an operator at the destination may come to ask for.
    pub fn choices_there(&self) -> Vec<Choice> {
        let (source, destination) = (&self.source, &self.destination);
        let is_idle = matches!(
            destination.effect,
            None | Some(DestinationEffect::Idle { .. })
        );
        let Some(session) = destination.session.as_ref().filter(|_| is_idle) else {
            return Vec::new();
        };
        // What ran at the source since it was suspended is newer than what is here.
        let is_older = source.ran_after_suspend || source.is_anothers;
        let is_gone = source.domain == Presence::Absent && !is_older;
        let is_seen = source.session.is_some() && source.domain != Presence::Absent;
        let mut choices = CHOICE.to_vec();
        choices.retain(|choice| {
            let knows = *choice == Choice::Forget || is_gone || is_seen;
            knows && self.may_decide_there && session.may(*choice)
        });
        choices
    }

    /// An operator at the source decides.
    pub fn decide(&mut self, operator: Operator) -> String {
        self.may_decide = false;
        match operator.may(self.source.domain, &self.destination_said(), false) {
            Ok(()) => self.tell_source(SourceEvent::Decided(operator)),
            Err(why) => return format!("operator: {operator:?} is refused: {why}"),
        }
        format!("operator: {operator:?}")
    }

    /// An operator at the destination decides.
    pub fn decide_there(&mut self, choice: Choice) -> String {
        self.may_decide_there = false;
        let is_sure = self.destination.harm.is_none();
        let last = self.destination.journal.last().filter(|_| is_sure);
        let here = self.destination.domain;
        match choice.may(last, here, &self.source_said(), false) {
            Ok(()) => self.tell_destination(DestinationEvent::Decided(choice)),
            Err(why) => return format!("operator there: {choice:?} is refused: {why}"),
        }
        format!("operator there: {choice:?}")
    }

    /// What the source's agent says of itself when it is asked.
    fn source_said(&self) -> Other {
        if self.source.session.is_none() {
            return Other::Silent;
        }
        if self.source.harm.is_some() {
            return Other::Said(Standing::in_doubt(self.source.domain));
        }
        // What is over is put away.
        let is_over = matches!(self.source.effect, Some(SourceEffect::End(_)));
        let last = self.source.journal.last().filter(|_| !is_over);
        Other::Said(Standing::of_source(last, self.source.domain))
    }

    /// What the destination's agent says of itself when it is asked.
    fn destination_said(&self) -> Other {
        if self.destination.session.is_none() {
            return Other::Silent;
        }
        if self.destination.harm.is_some() {
            return Other::Said(Standing::in_doubt(self.destination.domain));
        }
        let last = self.destination.journal.last();
        Other::Said(Standing::of_destination(last, self.destination.domain))
    }

    /// Whether an operator who knows what no agent can see is followed in something.
    pub fn can_be_decided(&self) -> bool {
        let (here, there) = (self.source.domain, self.destination_said());
        OPERATOR
            .iter()
            .any(|operator| operator.may(here, &there, true).is_ok())
    }

    /// Whether the destination's copy can run, and no other can.
    pub fn is_last_whole_there(&self) -> bool {
        let is_whole = matches!(
            self.destination.domain,
            Presence::Paused | Presence::Running
        );
        let is_older = self.source.ran_after_suspend || self.source.is_anothers;
        // Since it has run here, what still stands at the source is older.
        let is_only = self.source.domain == Presence::Absent || self.destination.has_run;
        is_whole && !is_older && is_only
    }

    /// The source's host is switched off.
    pub fn lose_source(&mut self) {
        if self.source.domain != Presence::Absent {
            self.source.domain = Presence::Absent;
            if !self.is_last_whole_there() {
                self.last_loss.get_or_insert(Loss::SourcesHost);
            }
        }
    }

    /// What there is of it at the destination goes, by this.
    pub fn lose_destination(&mut self, by: Loss) {
        if self.is_last_whole_there() {
            self.last_loss.get_or_insert(by);
        }
        self.destination.domain = Presence::Absent;
    }
}
