//! Two ends, the way between them, and what can go wrong: one step at a time.

use std::collections::VecDeque;

use unmoved::job::{Needs, Presence};
use unmoved::session::{
    Answer, DestinationEffect, DestinationEvent, DestinationRecord, DestinationSession, Order,
    Request, SourceEffect, SourceEvent, SourceRecord, SourceSession, Token,
};

use crate::damage::Harm;
use crate::explore::Script;
use crate::moves::Move;
use crate::outcome::{Loss, Outcome, judge};

/// What may happen in a case.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Most faults of any kind.
    pub faults: usize,
    /// A host may crash: its domains are gone.
    pub with_host_crashes: bool,
    /// Disk and toolstack may fail, or say that they have failed when they have not.
    pub with_failures: bool,
    /// The toolstack may give up its paused domain when the agent that fed it dies.
    pub tool_dies: bool,
    /// What was written last is not on the disk after a crash.
    pub disk_forgets: bool,
    /// So often, besides, a journal may be damaged between a crash and the restart.
    pub damages: usize,
}

impl Rules {
    /// Any so many faults.
    pub const fn faults(faults: usize) -> Self {
        Self {
            faults,
            with_host_crashes: true,
            with_failures: true,
            tool_dies: true,
            disk_forgets: false,
            damages: 0,
        }
    }
}

/// The source's host.
pub struct Source {
    /// `None`: the agent is down.
    pub session: Option<SourceSession>,
    /// What the agent is about to do.
    pub effect: Option<SourceEffect>,
    pub journal: Vec<SourceRecord>,
    /// What has happened to it, and what it is to begin with when it is begun anew.
    pub harm: Option<Harm>,
    pub anew: Option<Vec<SourceRecord>>,
    pub domain: Presence,
    /// It ran here after the state that was sent: that state is stale.
    pub ran_after_suspend: bool,
    pub was_suspended: bool,
    /// Another session has suspended it, and will take it, or has taken it, to a third host.
    pub is_anothers: bool,
    /// The call that an answer is waited for.
    pub calling: Option<u32>,
}

/// The destination's host.
pub struct Destination {
    pub session: Option<DestinationSession>,
    pub effect: Option<DestinationEffect>,
    pub journal: Vec<DestinationRecord>,
    pub harm: Option<Harm>,
    pub anew: Option<Vec<DestinationRecord>>,
    pub domain: Presence,
    pub has_run: bool,
    /// The toolstack reads, and what has arrived.
    pub is_receiving: bool,
    pub arrived: Option<u64>,
    pub calls: VecDeque<(u32, Order)>,
    pub answering: Option<u32>,
}

/// A message under way.
#[derive(Clone, Debug)]
pub enum Message {
    Call(u32, Order),
    Answer(u32, Answer),
}

/// Everything.
pub struct World<'a> {
    pub script: &'a mut Script,
    pub rules: Rules,
    pub faults_left: usize,
    pub damages_left: usize,
    pub source: Source,
    pub destination: Destination,
    pub way: VecDeque<Message>,
    /// Messages that will arrive some time.
    pub late: Vec<Message>,
    pub last_call: u32,
    /// What took the last whole copy, if there is none any more.
    pub last_loss: Option<Loss>,
    /// Retries without any change, to see that nothing more happens.
    pub idle_retries: usize,
    pub may_decide: bool,
    pub may_decide_there: bool,
    /// A journal has been damaged.
    pub was_harmed: bool,
}

impl<'a> World<'a> {
    pub fn new(script: &'a mut Script, rules: Rules) -> Self {
        let token = Token::new([7; 32]);
        let request = Request {
            needs: Needs::default(),
            leave_paused: false,
            parallel: 1,
            seal: token.seal(),
        };
        let mut session = SourceSession::new(Box::new(request), token, "b".to_owned());
        let effect = session.step(SourceEvent::Begin);
        Self {
            script,
            rules,
            faults_left: rules.faults,
            damages_left: rules.damages,
            source: Source {
                session: Some(session),
                effect,
                journal: Vec::new(),
                harm: None,
                anew: None,
                domain: Presence::Running,
                ran_after_suspend: false,
                was_suspended: false,
                is_anothers: false,
                calling: None,
            },
            destination: Destination {
                session: Some(DestinationSession::new("a".to_owned())),
                effect: None,
                journal: Vec::new(),
                harm: None,
                anew: None,
                domain: Presence::Absent,
                has_run: false,
                is_receiving: false,
                arrived: None,
                calls: VecDeque::new(),
                answering: None,
            },
            way: VecDeque::new(),
            late: Vec::new(),
            last_call: 0,
            last_loss: None,
            idle_retries: 0,
            may_decide: true,
            may_decide_there: true,
            was_harmed: false,
        }
    }

    /// Goes on until nothing more happens.
    pub fn run(mut self) -> Result<Outcome, String> {
        let mut trace = Vec::new();
        loop {
            let moves = self.moves();
            let chosen = self.script.choose(moves.len());
            let Some(next) = moves.into_iter().nth(chosen) else {
                return Err("no such move".to_owned());
            };
            trace.push(format!("{next:?}"));
            if next == Move::Over {
                return judge(&self).map_err(|error| told(&error, &trace));
            }
            let happened = self.carry_out(next).and_then(|what| {
                trace.push(what);
                self.invariant()
            });
            happened.map_err(|error| told(&error, &trace))?;
            if trace.len() > 1000 {
                return Err(told("it never ends", &trace));
            }
        }
    }

    fn carry_out(&mut self, next: Move) -> Result<String, String> {
        if !matches!(next, Move::Retry) {
            self.idle_retries = 0;
        }
        match next {
            Move::SourceActs => return self.source_acts(),
            Move::DestinationActs => return self.destination_acts(),
            Move::Deliver => {
                if let Some(message) = self.way.pop_front() {
                    self.deliver(message);
                }
            }
            Move::DeliverLate(index) => {
                let message = self.late.remove(index);
                self.deliver(message);
            }
            Move::NextCall => {
                if let Some((number, order)) = self.destination.calls.pop_front() {
                    self.destination.answering = Some(number);
                    self.tell_destination(DestinationEvent::Called(order));
                }
            }
            Move::NoAnswer => self.no_answer(),
            Move::CallTimesOut => {
                self.faults_left -= 1;
                self.no_answer();
            }
            Move::RestartSource => self.restart_source()?,
            Move::RestartDestination => self.restart_destination()?,
            Move::LeaseExpires => self.tell_destination(DestinationEvent::LeaseExpired),
            Move::LeaseExpiresEarly => {
                self.faults_left -= 1;
                self.tell_destination(DestinationEvent::LeaseExpired);
            }
            Move::Retry => {
                self.idle_retries += 1;
                self.tell_source(SourceEvent::Retry);
            }
            Move::Decide(operator) => return Ok(self.decide(operator)),
            Move::DecideThere(choice) => return Ok(self.decide_there(choice)),
            Move::DecideThereTooEarly(choice) => {
                self.faults_left -= 1;
                return Ok(self.decide_there(choice));
            }
            Move::StopDestination => {
                self.faults_left -= 1;
                self.tell_destination(DestinationEvent::Stopped);
            }
            Move::AnotherSuspends => {
                self.faults_left -= 1;
                self.source.domain = Presence::Paused;
                self.source.is_anothers = true;
            }
            Move::AnotherTakesIt => self.source.domain = Presence::Absent,
            Move::Lose => {
                self.faults_left -= 1;
                self.way.pop_front();
            }
            Move::Delay => {
                self.faults_left -= 1;
                self.late.extend(self.way.pop_front());
            }
            Move::Double => {
                self.faults_left -= 1;
                self.late.extend(self.way.front().cloned());
            }
            Move::Over => {}
        }
        Ok(String::new())
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Call(number, order) if self.destination.session.is_some() => {
                self.destination.calls.push_back((number, order));
            }
            Message::Answer(number, answer) if self.source.calling == Some(number) => {
                self.source.calling = None;
                self.tell_source(SourceEvent::Answered(answer));
            }
            // Nobody is there, or nobody waits for it any more.
            Message::Call(..) | Message::Answer(..) => {}
        }
    }

    fn no_answer(&mut self) {
        self.source.calling = None;
        self.tell_source(SourceEvent::NotAnswered("silence".to_owned()));
    }

    pub fn tell_source(&mut self, event: SourceEvent) {
        let Some(session) = &mut self.source.session else {
            return;
        };
        if let Some(effect) = session.step(event) {
            self.source.effect = Some(effect);
        }
    }

    pub fn tell_destination(&mut self, event: DestinationEvent) {
        let Some(session) = &mut self.destination.session else {
            return;
        };
        if let Some(effect) = session.step(event) {
            self.destination.effect = Some(effect);
        }
    }

    fn restart_source(&mut self) -> Result<(), String> {
        let presence = self.source.domain;
        self.source.session = self.found_source()?;
        if self.source.session.is_some() {
            self.tell_source(SourceEvent::Restarted(presence));
        } else {
            // Nothing was written down: the new run of the agent knows of no job.
            let token = Token::new([7; 32]);
            let request = Request {
                needs: Needs::default(),
                leave_paused: false,
                parallel: 1,
                seal: token.seal(),
            };
            self.source.session =
                Some(SourceSession::new(Box::new(request), token, "b".to_owned()));
            self.source.effect = Some(SourceEffect::End(Err("never begun".to_owned())));
        }
        Ok(())
    }

    fn restart_destination(&mut self) -> Result<(), String> {
        let presence = self.destination.domain;
        match self.found_destination()? {
            Some(session) => {
                self.destination.session = Some(session);
                self.tell_destination(DestinationEvent::Restarted(presence));
            }
            None => self.destination.session = Some(DestinationSession::new("a".to_owned())),
        }
        Ok(())
    }

    /// What must hold at every instant.
    fn invariant(&self) -> Result<(), String> {
        if self.source.domain == Presence::Running && self.destination.domain == Presence::Running {
            return Err("two copies run".to_owned());
        }
        // What is in a journal that is damaged binds nobody.
        let is_taken = self.destination.harm.is_none()
            && matches!(
                self.destination.journal.last(),
                Some(DestinationRecord::Taken { .. } | DestinationRecord::Running)
            );
        let is_vouched_for = self.destination.is_adopted();
        if self.source.has_let_go()
            && !is_vouched_for
            && (is_taken || self.destination.domain == Presence::Running)
        {
            return Err("it was let go at the source and taken over at the destination".to_owned());
        }
        if self.source.ran_after_suspend && self.destination.has_run {
            return Err("two copies have run after the guest was suspended".to_owned());
        }
        Ok(())
    }
}

fn told(error: &str, trace: &[String]) -> String {
    let steps = trace.iter().filter(|step| step.contains(": "));
    let last: Vec<String> = steps
        .rev()
        .take(40)
        .map(|step| step.chars().take(150).collect())
        .collect();
    let last: Vec<_> = last.into_iter().rev().collect();
    format!("{error}, after\n{}", last.join("\n"))
}
