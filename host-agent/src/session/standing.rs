//! Whether an operator's decision is followed: what this end sees, and what the other end answers, before
//! anything is done.
//!
//! An operator vouches only for what nobody can see: a host that does not answer.  What can be seen is
//! checked.  The operator may be at the wrong end, or mistaken, and each decision can make a guest run twice
//! or discard its last complete copy.  So a decision that contradicts what is seen is refused, with what was
//! seen.
//!
//! A copy is discarded only if the guest is known to run, or to be able to run, elsewhere.

use super::{Choice, DestinationRecord, Operator, SourceRecord};
use crate::job::Presence;

/// State of an end that has not been recovered yet after a restart of its agent.
pub const NOT_YET: &str = "not-yet";

/// State of an end whose journal does not tell its state.
pub const IN_DOUBT: &str = "in-doubt";

/// The state of one end of a session, as its agent reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The last record of that end, [`NOT_YET`] or [`IN_DOUBT`]; `None`: the agent does not know the session.
    pub state: Option<String>,
    /// The guest's copy on that host, whoever made it.
    pub copy: Presence,
}

/// The result of asking the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Other {
    /// Its agent does not answer.
    Silent,
    /// Its agent answers, but does not report the state, for this reason.
    Mute(String),
    /// Its state.
    Said(Standing),
}

impl Standing {
    /// The source's end, after this record.
    #[must_use]
    pub fn of_source(record: Option<&SourceRecord>, copy: Presence) -> Self {
        Self {
            state: record.map(|record| record.name().to_owned()),
            copy,
        }
    }

    /// The destination's end, after this record.
    #[must_use]
    pub fn of_destination(record: Option<&DestinationRecord>, copy: Presence) -> Self {
        let name = |record: &DestinationRecord| match record {
            DestinationRecord::Retired { taken: true } => DestinationRecord::Running.name(),
            DestinationRecord::Retired { taken: false } => "discarded",
            record => record.name(),
        };
        Self {
            state: record.map(|record| name(record).to_owned()),
            copy,
        }
    }

    /// An end whose journal does not tell its state.
    #[must_use]
    pub fn in_doubt(copy: Presence) -> Self {
        Self {
            state: Some(IN_DOUBT.to_owned()),
            copy,
        }
    }

    fn is(&self, state: &str) -> bool {
        self.state.as_deref() == Some(state)
    }

    /// The destination has taken the guest over: it runs there, or has run.
    fn has_run(&self) -> bool {
        ["taken", "adopted", "running"]
            .iter()
            .any(|state| self.is(state))
    }

    /// The source is done with its copy, and about to destroy it.
    fn is_rid(&self) -> bool {
        self.is("released") || self.is("done")
    }

    /// The source's copy is gone, and does not resume by itself.
    fn is_stuck_without(&self) -> bool {
        let waits = ["handed over", "held", IN_DOUBT];
        self.copy == Presence::Absent && waits.iter().any(|state| self.is(state))
    }

    const fn has_whole(&self) -> bool {
        matches!(self.copy, Presence::Paused | Presence::Running)
    }

    fn told(&self) -> String {
        format!(
            "{}, and its copy of the guest is {}",
            match &self.state {
                Some(state) if state == IN_DOUBT =>
                    "its journal does not say how the job stands".to_owned(),
                Some(state) => format!("its journal says \"{state}\""),
                None => "it knows of no such job".to_owned(),
            },
            match self.copy {
                Presence::Absent => "not there",
                Presence::Partial => "not whole",
                Presence::Paused => "complete and paused",
                Presence::Running => "running",
            }
        )
    }
}

const STILL_LOOKS: &str =
    "the other host's agent was restarted and is still looking for the guest: try again";

impl Operator {
    /// Whether the source, whose own copy is `here`, follows this decision.  `is_vouched`: the operator
    /// vouches for what the destination does not tell.
    ///
    /// # Errors
    /// What was seen that contradicts it.
    pub fn may(self, here: Presence, there: &Other, is_vouched: bool) -> Result<(), String> {
        let is_here = matches!(here, Presence::Paused | Presence::Running);
        if let Other::Said(standing) = there
            && standing.is(NOT_YET)
        {
            return Err(STILL_LOOKS.to_owned());
        }
        match (self, there) {
            (Self::RunHere, _) if !is_here => Err(
                "the guest is no longer on this host: hand it over (`--run there`) or give it up \
                 (`--discard`)"
                    .to_owned(),
            ),
            (Self::RunHere, Other::Said(there))
                if there.copy == Presence::Running || there.has_run() =>
            {
                Err(format!(
                    "the destination's agent answers: {}. It would run twice",
                    there.told()
                ))
            }
            // It may have been handed over, and its journal may be readable at the next start.
            (Self::RunHere, Other::Said(there)) if there.is(IN_DOUBT) && there.has_whole() => {
                Err(decide_there_first(there))
            }
            (Self::HandOver, _) if here == Presence::Running => Err(
                "the guest runs on this host: it would run twice after a hand-over (`--run here` leaves it as \
                 it is)"
                    .to_owned(),
            ),
            (Self::HandOver, Other::Silent) => Err(
                "the destination's agent does not answer: the guest cannot be handed over now"
                    .to_owned(),
            ),
            (Self::HandOver, Other::Said(there)) if there.is(IN_DOUBT) => {
                Err(decide_there_first(there))
            }
            (Self::HandOver, Other::Said(there))
                if !there.has_whole() && !there.has_run() && (is_here || !there.is("discarded")) =>
            {
                Err(format!(
                    "the destination's agent answers: {}. It has no copy that could run",
                    there.told()
                ))
            }
            (Self::GiveUp, _) if is_here => Err(
                "the guest's copy is on this host, and can run here (`--run here`)".to_owned(),
            ),
            (Self::GiveUp, Other::Said(there)) if there.copy != Presence::Absent => Err(format!(
                "the destination's agent answers: {}. Let it run there (`--run there`)",
                there.told()
            )),
            (Self::GiveUp, Other::Silent | Other::Mute(_)) if !is_vouched => Err(format!(
                "{}: the destination may have the last complete copy (override with `--vouch`)",
                there.unsaid()
            )),
            _ => Ok(()),
        }
    }
}

fn decide_there_first(there: &Standing) -> String {
    format!(
        "the destination's agent answers: {}. Decide the job there first",
        there.told()
    )
}

impl Choice {
    /// Whether the destination follows this decision.  Its own copy is `here` and its last record is `last`;
    /// `None`: its journal does not tell, and it refuses every order of its source.  `is_vouched`: the
    /// operator vouches that the guest runs or can run elsewhere, where the source does not say so.
    ///
    /// # Errors
    /// What was seen that contradicts it.
    pub fn may(
        self,
        last: Option<&DestinationRecord>,
        here: Presence,
        there: &Other,
        is_vouched: bool,
    ) -> Result<(), String> {
        // This was decided and journaled before, and is only tried again.
        let is_decided = last == Some(&DestinationRecord::Adopted);
        let runs_there =
            matches!(there, Other::Said(standing) if standing.copy == Presence::Running);
        match (self, there) {
            (Self::RunHere, _) if is_decided && !runs_there => Ok(()),
            (Self::Forget, _) if here == Presence::Running => {
                Err("the guest runs on this host: not discarded".to_owned())
            }
            (Self::Forget, _) if matches!(here, Presence::Absent | Presence::Partial) => Ok(()),
            (_, Other::Said(there)) if there.is(NOT_YET) => Err(STILL_LOOKS.to_owned()),
            (Self::RunHere, _) if matches!(here, Presence::Absent | Presence::Partial) => Err(
                "the copy here is incomplete or gone: it can only be forgotten (`--discard`)"
                    .to_owned(),
            ),
            (Self::RunHere, Other::Silent) => Ok(()),
            // In doubt.  It runs here and not there, so this is only recorded.
            (Self::RunHere, _) if last.is_none() && here == Presence::Running && !runs_there => {
                Ok(())
            }
            // In doubt.  The source could not hand it over, and has nothing to run.
            (Self::RunHere, Other::Said(there)) if last.is_none() && there.is_stuck_without() => {
                Ok(())
            }
            (Self::RunHere, Other::Mute(_)) => {
                Err(format!("{}: abort or decide the job there", there.unsaid()))
            }
            (Self::RunHere, Other::Said(there))
                if there.state.is_none() && there.copy == Presence::Absent =>
            {
                Ok(())
            }
            (Self::RunHere, Other::Said(there)) => {
                let what = match there.state {
                    Some(_) => "Abort or decide the job there",
                    None => "Resolve that copy first: the one here may be older",
                };
                Err(format!(
                    "the source's agent answers: {}. {what}",
                    there.told()
                ))
            }
            (Self::Forget, Other::Said(there)) if there.has_whole() && !there.is_rid() => Ok(()),
            (Self::Forget, _) if is_vouched => Ok(()),
            (Self::Forget, Other::Said(there)) => Err(format!(
                "the source's agent answers: {}. This may be the last complete copy (use `--vouch` if the \
                 guest runs or can run elsewhere)",
                there.told()
            )),
            (Self::Forget, _) => Err(format!(
                "{}: this may be the last complete copy (use `--vouch` if the guest runs or can run \
                 elsewhere)",
                there.unsaid()
            )),
        }
    }
}

impl Other {
    fn unsaid(&self) -> String {
        match self {
            Self::Mute(why) => {
                format!("the other host's agent answers, but does not report its state ({why})")
            }
            _ => "the other host's agent does not answer".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{IN_DOUBT, NOT_YET, Other, Standing};
    use crate::job::Presence::{Absent, Partial, Paused, Running};
    use crate::session::{Choice, DestinationRecord, Operator};

    fn said(state: Option<&str>, copy: crate::job::Presence) -> Other {
        Other::Said(Standing {
            state: state.map(str::to_owned),
            copy,
        })
    }

    #[test]
    fn nobody_hands_over_what_runs_or_where_nothing_is() {
        let may = |here, there| Operator::HandOver.may(here, &there, true);
        let received = || said(Some("received"), Paused);
        assert!(
            may(Running, received())
                .unwrap_err()
                .contains("runs on this host")
        );
        may(Paused, received()).unwrap();
        may(Absent, received()).unwrap();
        assert!(
            may(Paused, said(Some("discarded"), Absent))
                .unwrap_err()
                .contains("discarded")
        );
        may(Absent, said(Some("discarded"), Absent)).unwrap();
        may(Absent, said(None, Absent)).unwrap_err();
        may(Absent, Other::Silent).unwrap_err();
        may(Paused, Other::Mute("old".to_owned())).unwrap();
        may(Paused, said(Some(NOT_YET), Paused)).unwrap_err();
    }

    #[test]
    fn nothing_runs_at_the_source_that_runs_or_has_run_at_the_destination() {
        let may = |here, there| Operator::RunHere.may(here, &there, false);
        may(Paused, Other::Silent).unwrap();
        may(Paused, said(Some("lost"), Absent)).unwrap();
        may(Paused, said(Some("received"), Paused)).unwrap();
        let twice = may(Paused, said(Some("running"), Running)).unwrap_err();
        assert!(
            twice.contains("twice") && twice.contains("\"running\""),
            "{twice}"
        );
        // It has come there in another way; or has run there and gone on.
        may(Paused, said(None, Running)).unwrap_err();
        may(Paused, said(Some("running"), Absent)).unwrap_err();
        may(Absent, Other::Silent).unwrap_err();
    }

    #[test]
    fn a_guest_is_given_up_only_where_nothing_of_it_is_left() {
        let may = |here, there, vouched| Operator::GiveUp.may(here, &there, vouched);
        may(Absent, said(Some("lost"), Absent), false).unwrap();
        may(Absent, said(Some("received"), Paused), true).unwrap_err();
        may(Paused, said(Some("lost"), Absent), true).unwrap_err();
        may(Absent, Other::Silent, false).unwrap_err();
        may(Absent, Other::Silent, true).unwrap();
    }

    #[test]
    fn a_copy_is_adopted_only_if_the_source_is_silent_or_has_nothing() {
        let received = Some(&DestinationRecord::Received);
        let may = |here, there| Choice::RunHere.may(received, here, &there, true);
        may(Paused, Other::Silent).unwrap();
        may(Paused, said(None, Absent)).unwrap();
        for there in [
            said(None, Running),
            said(None, Paused),
            said(Some("held"), Absent),
            said(Some("handed over"), Paused),
            said(Some(NOT_YET), Absent),
            Other::Mute("old".to_owned()),
        ] {
            may(Paused, there).unwrap_err();
        }
        may(Absent, Other::Silent).unwrap_err();
        // What was decided is tried again, but not against what is seen.
        let adopted = Some(&DestinationRecord::Adopted);
        let again = |there| Choice::RunHere.may(adopted, Paused, &there, false);
        again(said(Some("held"), Absent)).unwrap();
        again(said(Some("aborting"), Running)).unwrap_err();
    }

    #[test]
    fn a_whole_copy_is_forgotten_only_if_another_is_known() {
        let received = Some(&DestinationRecord::Received);
        let may = |here, there, vouched| Choice::Forget.may(received, here, &there, vouched);
        may(Paused, said(Some("handed over"), Paused), false).unwrap();
        may(Paused, said(None, Running), false).unwrap();
        let last = may(Paused, said(Some("held"), Absent), false).unwrap_err();
        assert!(last.contains("last complete copy"), "{last}");
        may(Paused, Other::Silent, false).unwrap_err();
        may(Paused, Other::Silent, true).unwrap();
        // What never was whole is nobody's last.
        may(Partial, Other::Silent, false).unwrap();
        may(Absent, Other::Silent, false).unwrap();
    }

    /// One end waits for the other's operator, and each for what can be seen.
    #[test]
    fn there_is_something_to_decide_about_a_destination_in_doubt() {
        let adopt = |here, there| Choice::RunHere.may(None, here, &there, false);
        adopt(Running, said(Some("held"), Paused)).unwrap();
        adopt(Running, Other::Mute("old".to_owned())).unwrap();
        adopt(Running, said(Some(NOT_YET), Absent)).unwrap_err();
        adopt(Running, said(Some("resumed"), Running)).unwrap_err();
        // The source's is as good, and can run; or may have run since, and gone on.
        adopt(Paused, said(Some("held"), Paused)).unwrap_err();
        adopt(Paused, said(Some("resumed"), Absent)).unwrap_err();
        adopt(Paused, said(Some("held"), Absent)).unwrap();
        adopt(Paused, said(Some(IN_DOUBT), Absent)).unwrap();
        let forget = |there| Choice::Forget.may(None, Paused, &there, false);
        forget(said(Some("held"), Paused)).unwrap();
        // It may have run here, and is about to be destroyed there.
        forget(said(Some("released"), Paused)).unwrap_err();
        let source = |decision: Operator, here, copy| {
            decision.may(here, &Other::Said(Standing::in_doubt(copy)), false)
        };
        source(Operator::RunHere, Paused, Absent).unwrap();
        source(Operator::RunHere, Paused, Paused).unwrap_err();
        source(Operator::RunHere, Paused, Running).unwrap_err();
        let why = source(Operator::HandOver, Paused, Paused).unwrap_err();
        assert!(why.contains("does not say"), "{why}");
    }
}
