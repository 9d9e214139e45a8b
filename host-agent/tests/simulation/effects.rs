//! Carries out what the two ends want done, and lets it go wrong in every way.

use unmoved::job::Presence;
use unmoved::session::{
    DestinationEffect, DestinationEvent, Sent, SourceEffect, SourceEvent, Trouble,
};

use crate::outcome::Loss;
use crate::world::{Message, World};

/// What becomes of one effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is done and the agent learns it.
    Done,
    /// The agent is killed before it could be done.
    KilledBefore,
    /// It is done, but the agent is killed before it learns it.
    KilledAfter,
    /// As [`Fate::KilledAfter`]; and the toolstack, which the agent fed, gives up its paused domain.
    KilledWithTool,
    /// The host is switched off before.
    OffBefore,
    /// The host is switched off after.
    OffAfter,
    /// It is not done, and the agent is told so.
    Fails,
    /// It is done, and the agent is told that it failed.
    FailsAfter,
}

impl World<'_> {
    fn fate(&mut self, can_fail: bool, has_tool: bool) -> Fate {
        let mut fates = vec![Fate::Done];
        if self.faults_left > 0 {
            fates.extend([Fate::KilledBefore, Fate::KilledAfter]);
            if has_tool && self.rules.tool_dies {
                fates.push(Fate::KilledWithTool);
            }
            if self.rules.with_host_crashes {
                fates.extend([Fate::OffBefore, Fate::OffAfter]);
            }
            if can_fail && self.rules.with_failures {
                fates.extend([Fate::Fails, Fate::FailsAfter]);
            }
        }
        let fate = fates[self.script.choose(fates.len())];
        if fate != Fate::Done {
            self.faults_left -= 1;
        }
        fate
    }

    /// The source does what it is about to do.
    pub fn source_acts(&mut self) -> Result<String, String> {
        let Some(effect) = self.source.effect.clone() else {
            return Ok(String::new());
        };
        let can_fail = !matches!(effect, SourceEffect::Call(_));
        let fate = self.fate(can_fail, false);
        let told = format!("source: {effect:?}: {fate:?}");
        let mut event = None;
        if !matches!(fate, Fate::KilledBefore | Fate::OffBefore | Fate::Fails) {
            event = self.source_does(&effect)?;
        }
        match fate {
            Fate::Done => {
                if let Some(event) = event {
                    self.tell_source(event);
                }
            }
            Fate::Fails | Fate::FailsAfter => self.tell_source(failed(&effect)),
            Fate::OffBefore | Fate::OffAfter => {
                self.lose_source();
                self.kill_source();
            }
            Fate::KilledBefore | Fate::KilledAfter | Fate::KilledWithTool => self.kill_source(),
        }
        Ok(told)
    }

    /// The destination does what it is about to do.
    pub fn destination_acts(&mut self) -> Result<String, String> {
        let Some(effect) = self.destination.effect.clone() else {
            return Ok(String::new());
        };
        let can_fail = !matches!(effect, DestinationEffect::Answer(_));
        let has_tool = matches!(
            effect,
            DestinationEffect::Finish(_) | DestinationEffect::Journal(_)
        ) && !self.destination.has_run;
        let fate = self.fate(can_fail, has_tool);
        let told = format!("destination: {effect:?}: {fate:?}");
        let mut event = None;
        if !matches!(fate, Fate::KilledBefore | Fate::OffBefore | Fate::Fails) {
            event = self.destination_does(&effect)?;
        }
        match fate {
            Fate::Done => match event {
                Some(event) => self.tell_destination(event),
                None => self.destination.effect = None,
            },
            Fate::Fails | Fate::FailsAfter => {
                let failed = destination_failed(&effect, self.destination.domain);
                self.tell_destination(failed);
            }
            Fate::OffBefore | Fate::OffAfter => {
                self.lose_destination(Loss::DestinationsHost);
                self.kill_destination();
            }
            Fate::KilledWithTool => {
                self.lose_destination(Loss::Toolstack);
                self.kill_destination();
            }
            Fate::KilledBefore | Fate::KilledAfter => self.kill_destination(),
        }
        Ok(told)
    }

    fn kill_source(&mut self) {
        self.source.session = None;
        self.source.effect = None;
        self.source.calling = None;
        if self.rules.disk_forgets {
            self.source.journal.pop();
        }
        // The connections break: what has not arrived by now never will.
        if self.destination.arrived.is_none() {
            self.destination.is_receiving = false;
        }
    }

    fn kill_destination(&mut self) {
        self.destination.session = None;
        self.destination.effect = None;
        self.destination.calls.clear();
        self.destination.answering = None;
        self.destination.is_receiving = false;
        self.destination.arrived = None;
        if self.rules.disk_forgets {
            self.destination.journal.pop();
        }
    }

    fn source_does(&mut self, effect: &SourceEffect) -> Result<Option<SourceEvent>, String> {
        let is_let_go = self.source.has_let_go();
        let source = &mut self.source;
        if is_let_go && touches(effect) {
            return Err(format!(
                "{effect:?} of a guest that may be another session's"
            ));
        }
        Ok(Some(match effect {
            SourceEffect::Journal(record) => {
                source.write(record.clone());
                SourceEvent::Journaled(Ok(()))
            }
            SourceEffect::Call(order) => {
                self.last_call += 1;
                source.calling = Some(self.last_call);
                self.way
                    .push_back(Message::Call(self.last_call, order.clone()));
                return Ok(None);
            }
            SourceEffect::CopyLive => {
                let works = self.destination.is_receiving && source.domain == Presence::Running;
                SourceEvent::LiveCopied(works.then_some(()).ok_or("it broke off".to_owned()))
            }
            SourceEffect::CopyRest => {
                if source.domain != Presence::Running {
                    return Ok(Some(SourceEvent::RestCopied(Err("not there".to_owned()))));
                }
                source.domain = Presence::Paused;
                source.was_suspended = true;
                if self.destination.is_receiving {
                    self.destination.arrived = Some(42);
                    SourceEvent::RestCopied(Ok(Sent {
                        bytes: 42,
                        limits: None,
                    }))
                } else {
                    SourceEvent::RestCopied(Err("it broke off".to_owned()))
                }
            }
            SourceEffect::RuleOutAbort => SourceEvent::AbortRuledOut(Ok(())),
            // Only a session in doubt comes here: it has no claim to the guest.
            SourceEffect::Resume if source.is_anothers => SourceEvent::Resumed(Err(trouble())),
            SourceEffect::Resume => SourceEvent::Resumed(match source.domain {
                Presence::Absent | Presence::Partial => Err(Trouble {
                    reason: "there is no such domain".to_owned(),
                    is_gone: true,
                }),
                Presence::Paused | Presence::Running => {
                    source.domain = Presence::Running;
                    source.ran_after_suspend |= source.was_suspended;
                    Ok(())
                }
            }),
            SourceEffect::Destroy => {
                if !self.destination.has_run {
                    return Err("the last whole copy was destroyed".to_owned());
                }
                source.domain = Presence::Absent;
                SourceEvent::Destroyed(Ok(()))
            }
            SourceEffect::Wait { .. } | SourceEffect::End(_) => return Ok(None),
        }))
    }

    fn destination_does(
        &mut self,
        effect: &DestinationEffect,
    ) -> Result<Option<DestinationEvent>, String> {
        let here = &mut self.destination;
        Ok(Some(match effect {
            DestinationEffect::Journal(record) => {
                here.write(record.clone());
                DestinationEvent::Journaled(Ok(()))
            }
            DestinationEffect::Reserve(_) => {
                here.domain = Presence::Partial;
                here.is_receiving = true;
                DestinationEvent::Reserved(Ok(()))
            }
            DestinationEffect::Finish(sent) => {
                let is_whole = here.is_receiving && here.arrived == Some(sent.bytes);
                here.is_receiving = false;
                if is_whole {
                    here.domain = Presence::Paused;
                }
                let broken = Trouble {
                    reason: "not whole".to_owned(),
                    is_gone: true,
                };
                DestinationEvent::Finished(is_whole.then_some(()).ok_or(broken))
            }
            DestinationEffect::Unpause { .. } => match here.domain {
                Presence::Paused | Presence::Running => {
                    here.domain = Presence::Running;
                    here.has_run = true;
                    DestinationEvent::Unpaused(Ok(()))
                }
                Presence::Absent | Presence::Partial => DestinationEvent::Unpaused(Err(Trouble {
                    reason: "there is no such domain".to_owned(),
                    is_gone: true,
                })),
            },
            DestinationEffect::Discard => {
                if here.domain == Presence::Running {
                    return Err("a running copy was to be discarded".to_owned());
                }
                if here.domain == Presence::Paused && self.is_last_whole_there() {
                    return Err("the last whole copy was thrown away".to_owned());
                }
                let here = &mut self.destination;
                here.domain = Presence::Absent;
                here.is_receiving = false;
                here.arrived = None;
                DestinationEvent::Discarded(Ok(()))
            }
            DestinationEffect::Answer(answer) => {
                if let Some(number) = here.answering.take() {
                    self.way.push_back(Message::Answer(number, answer.clone()));
                }
                return Ok(None);
            }
            DestinationEffect::Idle { .. } => return Ok(None),
        }))
    }
}

/// Whether it is done with the guest at the source.
const fn touches(effect: &SourceEffect) -> bool {
    matches!(
        effect,
        SourceEffect::CopyLive
            | SourceEffect::CopyRest
            | SourceEffect::Resume
            | SourceEffect::Destroy
    )
}

fn why() -> String {
    "it failed".to_owned()
}

fn trouble() -> Trouble {
    Trouble {
        reason: why(),
        is_gone: false,
    }
}

fn failed(effect: &SourceEffect) -> SourceEvent {
    match effect {
        SourceEffect::Journal(_) => SourceEvent::Journaled(Err(why())),
        SourceEffect::CopyLive => SourceEvent::LiveCopied(Err(why())),
        SourceEffect::CopyRest => SourceEvent::RestCopied(Err(why())),
        SourceEffect::RuleOutAbort => SourceEvent::AbortRuledOut(Err(why())),
        SourceEffect::Resume => SourceEvent::Resumed(Err(trouble())),
        SourceEffect::Destroy => SourceEvent::Destroyed(Err(trouble())),
        SourceEffect::Call(_) | SourceEffect::Wait { .. } | SourceEffect::End(_) => {
            SourceEvent::NotAnswered(why())
        }
    }
}

fn destination_failed(effect: &DestinationEffect, domain: Presence) -> DestinationEvent {
    match effect {
        DestinationEffect::Reserve(_) => DestinationEvent::Reserved(Err(why())),
        DestinationEffect::Finish { .. } => DestinationEvent::Finished(Err(Trouble {
            reason: why(),
            // The agent looks.
            is_gone: domain != Presence::Paused,
        })),
        DestinationEffect::Unpause { .. } => DestinationEvent::Unpaused(Err(trouble())),
        DestinationEffect::Discard => DestinationEvent::Discarded(Err(why())),
        _ => DestinationEvent::Journaled(Err(why())),
    }
}
