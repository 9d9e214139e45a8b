//! A job as it is shown: what it does, its state, and its result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Claim;
use crate::job::{Control, Event, Phase, Statistics};
use crate::predict::Prediction;
use crate::session::Operator;
use crate::text::{REASON_MOST, clean};

/// The direction of a job: this host's end of a migration, or a save or restore.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The guest departs.
    Outgoing,
    /// The guest arrives.
    Incoming,
    /// The guest is saved to a file.
    Save,
    /// The guest is restored from a file.
    Restore,
}

impl Direction {
    /// Its name in answers and metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Outgoing => "outgoing",
            Self::Incoming => "incoming",
            Self::Save => "save",
            Self::Restore => "restore",
        }
    }

    /// libvirt's name for the operation.
    const fn operation(self) -> &'static str {
        match self {
            Self::Outgoing | Self::Incoming => "migration",
            Self::Save | Self::Restore => self.name(),
        }
    }
}

/// A job.
#[derive(Debug)]
pub struct Job {
    /// The session's ID; a job without a session has one of the same form.
    pub id: String,
    /// The direction.
    pub direction: Direction,
    /// The other host, or the file.
    pub peer: String,
    /// Watches, limits and aborts it.
    pub control: Arc<Control>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    domain: String,
    waiting: Option<String>,
    waits_since: Option<Instant>,
    is_held: bool,
    result: Option<Result<(), String>>,
    prediction: Option<Prediction>,
    report: Option<Report>,
    decision: Option<Operator>,
    claim: Option<Claim>,
}

/// Number of events that are shown for each job in a list of all jobs.
const EVENTS_SHOWN: usize = 8;
/// How long any job may wait for the other end before that is shown.
const MOMENT: Duration = Duration::from_secs(10);

/// What was predicted and what was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Report {
    /// Always `unmoved`.
    pub tool: String,
    /// From the request until the guest ran at the destination.
    pub total_ms: f64,
    /// From the guest's suspend until it ran again, as the source saw it.
    pub blackout_ms: f64,
    /// Rounds over the memory, including the last one with the guest suspended.
    pub rounds: u32,
    /// Bytes on the wire, including framing.
    pub bytes_on_wire: u64,
    /// Bytes of memory, including repetitions and pages of zeros.
    pub bytes_total: u64,
    /// The predicted `blackout_ms`.
    pub predicted_blackout_ms: Option<f64>,
    /// The predicted `total_ms`.
    pub predicted_total_ms: Option<f64>,
}

/// A job as others see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobStatus {
    /// The session's ID; a job without a session has one of the same form.
    pub id: String,
    /// The direction.
    pub direction: Direction,
    /// The guest's name.
    pub domain: String,
    /// The other host, or the file.
    pub peer: String,
    /// The current phase.
    pub phase: Phase,
    /// What it waits for, if anything.
    pub waiting: Option<String>,
    /// Only an operator can help, with `unmoved recover`.
    pub is_held: bool,
    /// The job has ended.
    pub is_over: bool,
    /// Figures under libvirt's names.
    pub statistics: Statistics,
    /// The prediction.
    pub prediction: Option<Prediction>,
    /// The report.
    pub report: Option<Report>,
    /// Events, from the requested number on.
    pub events: Vec<Event>,
}

impl Job {
    pub(super) fn new(
        id: String,
        direction: Direction,
        domain: String,
        peer: String,
        control: Arc<Control>,
    ) -> Arc<Self> {
        control.update(|statistics| direction.operation().clone_into(&mut statistics.operation));
        Arc::new(Self {
            id,
            direction,
            peer,
            control,
            state: Mutex::new(State {
                domain: clean(&domain, REASON_MOST),
                ..State::default()
            }),
        })
    }

    /// Its status, with events from this number on.
    #[must_use]
    pub fn status(&self, from: u64) -> JobStatus {
        let events = self.control.events(from);
        let mut statistics = self.control.statistics();
        let state = self.state.lock();
        if let Some(result) = &state.result {
            statistics.success = Some(result.is_ok());
            statistics.errmsg = result.as_ref().err().cloned();
        }
        JobStatus {
            id: self.id.clone(),
            direction: self.direction,
            domain: state.domain.clone(),
            peer: self.peer.clone(),
            phase: self.control.phase(),
            waiting: state.waiting.clone(),
            is_held: state.is_held,
            is_over: state.result.is_some(),
            statistics,
            prediction: state.prediction,
            report: state.report.clone(),
            events,
        }
    }

    /// Its status in a list of all jobs, with only the last few events, because all jobs go into one answer.
    #[must_use]
    pub fn summary(&self) -> JobStatus {
        let mut status = self.status(0);
        let more = status.events.len().saturating_sub(EVENTS_SHOWN);
        status.events.drain(..more);
        status
    }

    /// The result, if the job has ended.
    #[must_use]
    pub fn result(&self) -> Option<Result<(), String>> {
        self.state.lock().result.clone()
    }

    /// The job holds the guest until it ends.
    pub(super) fn hold(&self, claim: Claim) {
        self.state.lock().claim = Some(claim);
    }

    /// Another job may have the guest, although this one has not ended.
    pub(super) fn let_go(&self) {
        self.state.lock().claim = None;
    }

    /// Whether the job holds the guest.
    pub(super) fn has_guest(&self) -> bool {
        self.state.lock().claim.is_some()
    }

    /// Sets the guest's name, once it is known.
    pub(super) fn rename(&self, domain: &str) {
        self.state.lock().domain = clean(domain, REASON_MOST);
    }

    pub(super) fn wait(&self, reason: &str, is_held: bool) {
        let reason = clean(reason, REASON_MOST);
        let mut state = self.state.lock();
        let is_new = state.waiting.as_ref() != Some(&reason);
        state.waiting = Some(reason.clone());
        state.waits_since.get_or_insert_with(Instant::now);
        state.is_held = is_held;
        drop(state);
        if is_new {
            self.control.tell(reason);
        }
    }

    /// What it has been waiting for longer than a moment, if anything.
    pub(super) fn hangs(&self) -> Option<String> {
        let state = self.state.lock();
        let is_long = state
            .waits_since
            .is_some_and(|since| since.elapsed() > MOMENT);
        state.waiting.clone().filter(|_| state.is_held || is_long)
    }

    pub(super) fn go_on(&self) {
        let mut state = self.state.lock();
        state.waiting = None;
        state.waits_since = None;
        state.is_held = false;
    }

    pub(super) fn predict(&self, prediction: Prediction) {
        self.state.lock().prediction = Some(prediction);
    }

    pub(super) fn prediction(&self) -> Option<Prediction> {
        self.state.lock().prediction
    }

    pub(super) fn report(&self, report: Report) {
        self.state.lock().report = Some(report);
    }

    /// Ends the job.  The first result counts.
    pub(super) fn end(&self, result: Result<(), String>) {
        let mut state = self.state.lock();
        if state.result.is_some() {
            return;
        }
        let result = result.map_err(|why| clean(&why, REASON_MOST));
        let elapsed = self.control.statistics().time_elapsed;
        let message = match &result {
            Ok(()) => "done".to_owned(),
            Err(why) => format!("failed: {why}"),
        };
        let success = result.is_ok();
        state.waiting = None;
        state.is_held = false;
        // Whoever sees the end may start another job at once.
        state.claim = None;
        state.result = Some(result);
        drop(state);
        self.control.update(|statistics| {
            statistics.time_elapsed = elapsed;
            statistics.success = Some(success);
        });
        self.control.enter(Phase::Ended, message);
    }

    /// Clears the wait for a decision; `false` if there was none.
    pub fn decide(&self, decision: Operator) -> bool {
        let mut state = self.state.lock();
        if !state.is_held {
            return false;
        }
        state.decision = Some(decision);
        drop(state);
        self.control.update(|_| {});
        true
    }

    pub(super) fn take_decision(&self) -> Option<Operator> {
        self.state.lock().decision.take()
    }
}
