//! What this agent asks another about a session, and answers when it is asked: before an operator is followed.
//!
//! It is a question that has no effect: how does your end of the session stand, and is there a copy of the
//! guest on your host?  The second matters most, for an agent that was installed anew knows of no session and
//! may have the guest running.  The answer has a bound in time, and whoever does not answer is not waited for.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Daemon;
use super::job::Direction;
use super::link::Link;
use crate::job::{DomainEntry, Presence, Result};
use crate::journal::{Journal, Reading};
use crate::save::{INCOMING, is_coming};
use crate::session::{NOT_YET, Other, SessionId, SourceRecord, Standing};

/// Longest time for the answer, once the connection stands.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// What the other end must offer to be asked.
pub(super) const FEATURE: &str = "inquiry";

/// Which end of the session is asked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum End {
    /// From where the guest leaves.
    Source,
    /// Where it comes.
    Destination,
}

/// The question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Inquiry {
    /// About this session.
    pub(super) session: SessionId,
    /// How this end of it stands.
    pub(super) end: End,
    /// The guest's UUID: for an agent that knows of no such session.
    pub(super) uuid: String,
}

impl Daemon {
    /// Asks another agent.
    pub(super) fn inquire(&self, peer: &str, inquiry: Inquiry) -> Other {
        match self.config.peer(peer) {
            Ok(peer) => Link::inquire(&self.identity, peer, inquiry),
            // It was taken out of the configuration: nobody can be asked.
            Err(_) => Other::Silent,
        }
    }

    /// Answers a peer: of its own sessions only.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub(super) fn standing(self: &Arc<Self>, host: &str, inquiry: &Inquiry) -> Result<Standing> {
        let Inquiry { session, end, uuid } = inquiry;
        match end {
            End::Source => {
                let Reading { records, damage } = self.source_reading(*session);
                let known = records.first().and_then(|first| match first {
                    SourceRecord::Begun { request, peer, .. } if peer == host => Some(request),
                    _ => None,
                });
                let domid = known.map(|request| request.needs.source_domid);
                let copy = self.copy(uuid, *end, host, domid)?;
                // One of which nothing is known may be this peer's.
                if (known.is_some() && damage.is_some())
                    || self.unknown.lock().contains_key(session)
                    || self.knows_its_own(Direction::Outgoing).is_err()
                {
                    return Ok(Standing::in_doubt(copy));
                }
                let last = records.last().filter(|_| known.is_some());
                Ok(Standing::of_source(last, copy))
            }
            End::Destination => {
                let found = self.incoming.lock().get(session).cloned();
                // One of which nothing is known may be this peer's.
                let found = found.filter(|it| it.peer() == host || it.peer().is_empty());
                let Some(incoming) = found else {
                    let copy = self.copy(uuid, *end, host, None)?;
                    return Ok(match self.knows_its_own(Direction::Incoming) {
                        Ok(()) => Standing { state: None, copy },
                        Err(_) => Standing::in_doubt(copy),
                    });
                };
                let Some((told, domid)) = incoming.stands(LIMIT / 2) else {
                    let (state, copy) = (Some(NOT_YET.to_owned()), Presence::Absent);
                    return Ok(Standing { state, copy });
                };
                Ok(told(self.copy(uuid, *end, host, domid)?))
            }
        }
    }

    /// What the source's journal says, as far as it can be read; no records if there is none, or the session is
    /// over.
    pub(super) fn source_reading(&self, session: SessionId) -> Reading<SourceRecord> {
        Journal::read(&self.folder("source"), session).1
    }

    /// The copy of a guest on this host, whoever has made it.  If `other` is this host too, `source` tells the
    /// two copies apart.
    pub(super) fn copy(
        &self,
        uuid: &str,
        end: End,
        other: &str,
        source: Option<u32>,
    ) -> Result<Presence> {
        let is_here = |domain: &&DomainEntry| {
            if other != self.config.name {
                return true;
            }
            let is_source = source.map_or(!is_coming(&domain.name), |domid| domain.domid == domid);
            is_source == (end == End::Source)
        };
        let all = self.host.domains()?;
        let copies = all.iter().filter(|domain| domain.uuid == uuid);
        let copies = copies.filter(is_here).map(presence);
        Ok(copies.max_by_key(rank).unwrap_or(Presence::Absent))
    }
}

/// Where a domain of a list stands.
fn presence(domain: &DomainEntry) -> Presence {
    match domain.state.as_str() {
        _ if domain.name.ends_with(INCOMING) => Presence::Partial,
        "running" | "blocked" => Presence::Running,
        "dying" | "crashed" => Presence::Partial,
        _ => Presence::Paused,
    }
}

const fn rank(presence: &Presence) -> u8 {
    match presence {
        Presence::Absent => 0,
        Presence::Partial => 1,
        Presence::Paused => 2,
        Presence::Running => 3,
    }
}
