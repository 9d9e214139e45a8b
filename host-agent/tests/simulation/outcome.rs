//! How a case ended, and whether it may end so.

use std::fmt;

use unmoved::job::Presence;
use unmoved::session::{
    DestinationEffect, DestinationRecord, DestinationSession, SourceEffect, SourceRecord,
};

use crate::world::{Destination, Source, World};

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It runs at the destination, and both ends have put the session away.
    Moved,
    /// It runs at the source, and both ends know that it stays.
    Stayed,
    /// It stayed at the source, from where another session has moved it; both ends know that this one has not.
    MovedByAnother,
    /// It runs at the destination, for an operator there has decided so.
    Adopted,
    /// It runs nowhere; both ends say why, and an operator can choose.
    Held,
    /// An end whose journal is damaged does nothing, and asks; or another session has the guest of one that was.
    InDoubt,
    /// There is no whole copy any more.
    Lost(Loss),
}

/// What took the last whole copy.  No agent ever does: a case in which one throws it away fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// The source's host crashed.
    SourcesHost,
    /// The destination's host crashed.
    DestinationsHost,
    /// The toolstack at the destination gave up what it had built.
    Toolstack,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Moved => "moved",
            Self::Stayed => "stayed at the source",
            Self::MovedByAnother => "stayed, and was moved by another session",
            Self::Adopted => "runs at the destination by an operator's decision there",
            Self::Held => "stands paused with a named reason",
            Self::InDoubt => "an end does not know where it stands, and an operator can choose",
            Self::Lost(Loss::SourcesHost) => {
                "lost: the last whole copy was on the source's host, which crashed"
            }
            Self::Lost(Loss::DestinationsHost) => {
                "lost: the last whole copy was on the destination's host, which crashed"
            }
            Self::Lost(Loss::Toolstack) => {
                "lost: the last whole copy was the destination's, which the toolstack gave up"
            }
        })
    }
}

/// Judges the end of a case: everything is up, no message is under way, nothing more happens.
pub fn judge(world: &World<'_>) -> Result<Outcome, String> {
    let source = world.source.domain;
    let destination = world.destination.domain;
    let last = world.source.journal.last();
    let there = world.destination.journal.last();
    // Doubt is no reason to have none left.
    let is_nowhere = (source, destination) == (Presence::Absent, Presence::Absent);
    if world.is_in_doubt() && (!is_nowhere || world.source.is_anothers) {
        return Ok(Outcome::InDoubt);
    }
    match (source, destination) {
        (Presence::Absent, Presence::Absent) if world.source.is_anothers => match last {
            Some(SourceRecord::Aborted { .. }) => Ok(Outcome::MovedByAnother),
            _ => Err(format!(
                "another session has moved it, but this one's ends say {last:?} and {there:?}"
            )),
        },
        (Presence::Running, Presence::Running) => Err("two copies run".to_owned()),
        (Presence::Absent, Presence::Running) => {
            let ended = world.source.effect == Some(SourceEffect::End(Ok(())));
            let is_retired = matches!(
                there,
                Some(DestinationRecord::Retired { taken: true } | DestinationRecord::Running)
            );
            if ended && last == Some(&SourceRecord::Done) && is_retired {
                return Ok(Outcome::Moved);
            }
            // The source has no copy, and asks its own operator or has given it up.
            let is_asking = matches!(
                world.source.effect,
                Some(SourceEffect::Wait { is_held: true, .. } | SourceEffect::End(Err(_)))
            );
            // That it runs need not be on the disk: a restart sees it.
            let runs = world.destination.session().record() == Some(&DestinationRecord::Running);
            if world.destination.is_adopted() && is_asking && runs {
                return Ok(Outcome::Adopted);
            }
            Err(format!("moved, but the ends say {last:?} and {there:?}"))
        }
        (Presence::Running, Presence::Absent) => {
            let knows = match last {
                Some(SourceRecord::Aborted { .. }) => !world.destination.session().has_lease(),
                // It ended before anything was surely written down, so nobody else knows of it either.
                None | Some(SourceRecord::Begun { .. }) => {
                    matches!(world.source.effect, Some(SourceEffect::End(Err(_))))
                        && there.is_none()
                }
                _ => false,
            };
            if knows {
                return Ok(Outcome::Stayed);
            }
            Err(format!("stayed, but the ends say {last:?} and {there:?}"))
        }
        (Presence::Running, _) => Err(format!(
            "it runs at the source, and the destination keeps a copy: {last:?}, {there:?}"
        )),
        (Presence::Absent, Presence::Absent) => match world.last_loss {
            Some(loss) => Ok(Outcome::Lost(loss)),
            None => Err(format!("the last whole copy is gone: {last:?}, {there:?}")),
        },
        // It stands still, and its operator is asked.
        (Presence::Paused, Presence::Running)
            if world.was_harmed
                && world.destination.is_adopted()
                && matches!(
                    world.source.effect,
                    Some(SourceEffect::Wait { is_held: true, .. })
                ) =>
        {
            Ok(Outcome::Adopted)
        }
        (_, Presence::Running) => Err(format!(
            "it runs at the destination, and the source keeps a copy: {last:?}"
        )),
        // Nowhere.
        (_, _) => match &world.source.effect {
            Some(SourceEffect::Wait {
                reason,
                is_held: true,
            }) if !reason.is_empty() && world.can_be_decided() => Ok(Outcome::Held),
            effect => Err(format!(
                "it runs nowhere ({source:?}, {destination:?}), and nobody is asked: {effect:?}, \
                 {last:?}, {there:?}"
            )),
        },
    }
}

impl World<'_> {
    /// An end still has its damaged journal, and says so.
    fn is_in_doubt(&self) -> bool {
        let is_asking = matches!(
            self.source.effect,
            Some(SourceEffect::Wait { is_held: true, .. })
        );
        let is_asking_there = matches!(
            &self.destination.effect,
            None | Some(DestinationEffect::Idle { reason: Some(_) } | DestinationEffect::Answer(_))
        ) && self.destination.session().doubt().is_some();
        self.source.harm.is_some() && is_asking
            || self.destination.harm.is_some() && is_asking_there
            || self.was_harmed && self.source.is_anothers
    }
}

impl Source {
    /// The session has nothing to do with the guest any more: another may move it.
    pub fn has_let_go(&self) -> bool {
        self.journal
            .iter()
            .any(|record| matches!(record, SourceRecord::Resumed { .. }))
    }
}

impl Destination {
    /// An operator has vouched for the source's copy.
    pub fn is_adopted(&self) -> bool {
        self.journal.contains(&DestinationRecord::Adopted)
    }

    /// The end's machine; only asked when it is up.
    pub fn session(&self) -> &DestinationSession {
        self.session.as_ref().expect("everything is up at the end")
    }
}
