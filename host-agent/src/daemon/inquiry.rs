//! Inquiries: before an agent follows its operator, it asks the other end about the session.
//!
//! An inquiry has no effect.  It asks for the state of the session at the other end, and whether there is a
//! copy of the guest on that host.  The copy matters most: a newly installed agent knows no sessions, but may
//! have the guest running.  The answer has a time limit.

use std::sync::Arc;

use super::Daemon;
use super::job::Direction;
use super::link::Link;
use super::wire::inquiry::{End, Inquiry, LIMIT};
use crate::job::{DomainEntry, Presence, Result};
use crate::journal::{Journal, Reading};
use crate::save::{INCOMING, is_coming};
use crate::session::{NOT_YET, Other, SessionId, SourceRecord, Standing};

impl Daemon {
    /// Asks another agent.
    pub(super) fn inquire(&self, peer: &str, inquiry: Inquiry) -> Other {
        match self.config.peer(peer) {
            Ok(peer) => Link::inquire(&self.identity, peer, inquiry),
            // The peer is no longer in the configuration, so nobody can be asked.
            Err(_) => Other::Silent,
        }
    }

    /// Answers a peer, about its own sessions only.
    ///
    /// # Errors
    /// If the state cannot be found out.
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
                // A session about which nothing is known may be this peer's.
                if (known.is_some() && damage.is_some())
                    || self.unknown.lock().contains_key(session)
                    || self
                        .refuse_if_sessions_unlisted(Direction::Outgoing)
                        .is_err()
                {
                    return Ok(Standing::in_doubt(copy));
                }
                let last = records.last().filter(|_| known.is_some());
                Ok(Standing::of_source(last, copy))
            }
            End::Destination => {
                let found = self.incoming.lock().get(session).cloned();
                // A session about which nothing is known may be this peer's.
                let found = found.filter(|it| it.peer() == host || it.peer().is_empty());
                let Some(incoming) = found else {
                    let copy = self.copy(uuid, *end, host, None)?;
                    return Ok(
                        match self.refuse_if_sessions_unlisted(Direction::Incoming) {
                            Ok(()) => Standing { state: None, copy },
                            Err(_) => Standing::in_doubt(copy),
                        },
                    );
                };
                let Some((told, domid)) = incoming.stands(LIMIT / 2) else {
                    let (state, copy) = (Some(NOT_YET.to_owned()), Presence::Absent);
                    return Ok(Standing { state, copy });
                };
                Ok(told(self.copy(uuid, *end, host, domid)?))
            }
        }
    }

    /// The records of the source's journal, as far as they can be read; none if there is no such session, or
    /// it is finished.
    pub(super) fn source_reading(&self, session: SessionId) -> Reading<SourceRecord> {
        Journal::read(&self.folder("source"), session).1
    }

    /// The guest's copy on this host, whoever made it.  `source` tells the two copies apart if `other` is
    /// this host too.
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

/// The state of a domain in a list.
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
