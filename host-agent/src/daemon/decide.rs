//! Carries out an operator's decision, where the ends of a session cannot decide themselves.
//!
//! The agent first looks at its own domain and [asks](super::inquiry) the other end.
//! [`Other`](crate::session::Other) says which decisions the result rules out.

use std::sync::Arc;

use super::Daemon;
use super::incoming::Incoming;
use super::job::{Direction, Job};
use super::wire::inquiry::{End, Inquiry};
use crate::job::{Error, Needs, Result};
use crate::session::{Choice, Operator, SessionId, SourceRecord};

impl Daemon {
    /// Decides where a job's guest runs.
    ///
    /// # Errors
    /// If the job does not wait for a decision, what the agents see rules it out, or it fails.
    pub fn decide(self: &Arc<Self>, job: &Job, run_here: bool) -> Result<()> {
        if self.put_aside(job)? {
            return Ok(());
        }
        match (job.direction, run_here) {
            (Direction::Incoming, true) => self.decide_coming(job, Choice::RunHere, false),
            (Direction::Incoming, false) => self.decide_coming(job, Choice::Forget, false),
            (_, true) => self.decide_leaving(job, Operator::RunHere, false),
            (_, false) => self.decide_leaving(job, Operator::HandOver, false),
        }
    }

    /// Ends a waiting job: the destination discards its copy, the source gives up a guest that is gone.
    ///
    /// `is_vouched`: the operator vouches that the guest runs or can run elsewhere, or that nothing of it is
    /// left.
    ///
    /// # Errors
    /// As [`Daemon::decide`].
    pub fn discard(self: &Arc<Self>, job: &Job, is_vouched: bool) -> Result<()> {
        if self.put_aside(job)? {
            return Ok(());
        }
        match job.direction {
            Direction::Incoming => self.decide_coming(job, Choice::Forget, is_vouched),
            _ => self.decide_leaving(job, Operator::GiveUp, is_vouched),
        }
    }

    /// At the source.
    fn decide_leaving(&self, job: &Job, decision: Operator, is_vouched: bool) -> Result<()> {
        if !job.status(u64::MAX).is_held {
            return Err(not_asked());
        }
        let session: SessionId = job.id.parse().map_err(Error::Refused)?;
        // A session in doubt still knows its guest from the journal's beginning.
        let records = self.source_reading(session).records;
        let Some(SourceRecord::Begun { request, peer, .. }) = records.first() else {
            return Err(not_asked());
        };
        let Needs {
            uuid, source_domid, ..
        } = &request.needs;
        if !job.has_guest() && self.leaving.lock().contains(uuid) {
            return Err(Error::Refused(
                "another job holds this guest: resolve that one first (`unmoved status`)"
                    .to_owned(),
            ));
        }
        let here = self.copy(uuid, End::Source, peer, Some(*source_domid))?;
        let there = self.inquire(
            peer,
            Inquiry {
                session,
                end: End::Destination,
                uuid: uuid.clone(),
            },
        );
        decision
            .may(here, &there, is_vouched)
            .map_err(Error::Refused)?;
        if !job.decide(decision) {
            return Err(not_asked());
        }
        Ok(())
    }

    /// At the destination.
    fn decide_coming(self: &Arc<Self>, job: &Job, choice: Choice, is_vouched: bool) -> Result<()> {
        let session: SessionId = job.id.parse().map_err(Error::Refused)?;
        let found = self.incoming.lock().get(&session).cloned();
        let incoming = found.ok_or_else(|| {
            Error::Refused("this job cannot be decided now: see what it waits for".to_owned())
        })?;
        if choice == Choice::Forget {
            // Does not wait for a toolstack that is building the domain.
            incoming.stop_building();
        }
        if !incoming.may(choice)? {
            if choice == Choice::RunHere && incoming.may(Choice::Forget)? {
                return Err(Error::Refused(
                    "the copy here is incomplete, gone or being discarded: it can only be forgotten \
                     (`--discard`)"
                        .to_owned(),
                ));
            }
            return Err(not_asked());
        }
        let (last, here, uuid) = incoming.looked()?;
        let there = self.inquire(
            incoming.peer(),
            Inquiry {
                session,
                end: End::Source,
                uuid,
            },
        );
        choice
            .may(last.as_ref(), here, &there, is_vouched)
            .map_err(Error::Refused)?;
        Incoming::decided(&incoming, choice)
    }
}

fn not_asked() -> Error {
    Error::Refused("the job does not wait for a decision".to_owned())
}
