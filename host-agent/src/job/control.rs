//! How other threads watch, limit and abort a running job.
//!
//! Every thread that does a part of the job holds the same [`Control`].  It calls [`Control::check`] often,
//! and keeps the [`Statistics`] up to date.  An abort is possible up to the point of no return and never
//! after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use event_listener::{Event as Signal, EventListener};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Error, JobOptions, Result, Statistics};
use crate::predict::Past;
use crate::text::{REASON_MOST, clean};

const OPEN: u8 = 0;
const ABORTED: u8 = 1;
const CLOSED: u8 = 2;
/// Number of events that are kept for late readers.
const EVENTS: usize = 256;

/// The phase of a job.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Preparing and reserving.
    #[default]
    Setup,
    /// Copying memory while the guest runs.
    Live,
    /// The guest is suspended; copying the rest.
    StopAndCopy,
    /// The guest is suspended; computing its digests.
    Verifying,
    /// The destination finishes the domain.
    Building,
    /// The guest belongs to the destination.
    HandedOver,
    /// The job has ended, with or without success.
    Ended,
}

/// An event of a job.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Event {
    /// Counts from 0 without gaps.
    pub number: u64,
    /// Milliseconds since the job began.
    pub at_ms: u64,
    /// The phase from here on.
    pub phase: Phase,
    /// What happened, as text.
    pub message: String,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    statistics: Statistics,
    events: Vec<Event>,
    next_event: u64,
}

/// Tells whether a job must stop, where its [`Control`] is out of reach.
#[derive(Clone, Debug)]
pub struct Stop(Arc<AtomicU8>);

impl Stop {
    /// Whether somebody has aborted the job.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire) == ABORTED
    }
}

/// The handle that every thread of a job holds.
#[derive(Debug)]
pub struct Control {
    options: JobOptions,
    begun: Instant,
    gate: Arc<AtomicU8>,
    bandwidth: AtomicU64,
    max_downtime_ms: AtomicU64,
    /// When the limit on the blackout is reached, while the guest is suspended.
    still_until: Mutex<Option<Instant>>,
    /// Whether that limit aborted the job.
    is_late: AtomicBool,
    past: Mutex<Past>,
    state: Mutex<State>,
    /// Notified of an abort, new events and new figures.
    changed: Signal,
}

impl Control {
    /// For a new job.
    #[must_use]
    pub fn new(options: JobOptions) -> Self {
        Self {
            begun: Instant::now(),
            gate: Arc::new(AtomicU8::new(OPEN)),
            bandwidth: AtomicU64::new(options.bandwidth.unwrap_or(0)),
            max_downtime_ms: AtomicU64::new(options.max_downtime_ms),
            still_until: Mutex::default(),
            is_late: AtomicBool::new(false),
            past: Mutex::default(),
            state: Mutex::default(),
            changed: Signal::new(),
            options,
        }
    }

    /// The options of the job.
    pub const fn options(&self) -> &JobOptions {
        &self.options
    }

    /// Since the job began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Aborts the job; `false` if it is too late.
    pub fn abort(&self) -> bool {
        let stopped =
            self.gate
                .compare_exchange(OPEN, ABORTED, Ordering::AcqRel, Ordering::Acquire);
        self.changed.notify(usize::MAX);
        stopped != Err(CLOSED)
    }

    /// A handle that only tells of an abort.
    #[must_use]
    pub fn stop(&self) -> Stop {
        Stop(self.gate.clone())
    }

    /// Rules out an abort from here on.
    ///
    /// # Errors
    /// [`Error::Aborted`] if somebody has aborted the job; [`Error::TimedOut`] if the blackout has reached
    /// its limit.
    pub fn rule_out_abort(&self) -> Result<()> {
        self.check()?;
        match self
            .gate
            .compare_exchange(OPEN, CLOSED, Ordering::AcqRel, Ordering::Acquire)
        {
            Err(ABORTED) => self.check(),
            _ => Ok(()),
        }
    }

    /// Starts the clock of the blackout: the job is aborted after [`max_blackout`](Self::max_blackout),
    /// unless it is [closed](Self::close) by then.
    pub fn limit_blackout(&self) {
        *self.still_until.lock() = self
            .max_blackout()
            .and_then(|most| Instant::now().checked_add(most));
    }

    /// The limit on the blackout up to the hand-over.
    #[must_use]
    pub fn max_blackout(&self) -> Option<Duration> {
        self.options.max_blackout_ms.map(Duration::from_millis)
    }

    /// Checks for an abort.  Call it at least every few milliseconds of work.
    ///
    /// # Errors
    /// [`Error::Aborted`]; [`Error::TimedOut`] if the blackout has reached its limit.
    pub fn check(&self) -> Result<()> {
        match (self.is_aborted(), self.is_late.load(Ordering::Acquire)) {
            (false, _) => Ok(()),
            (true, false) => Err(Error::Aborted),
            (true, true) => Err(Error::TimedOut(format!(
                "the blackout, of at most {} s (--max-blackout),",
                self.max_blackout().unwrap_or_default().as_secs()
            ))),
        }
    }

    /// Whether somebody has aborted the job, or the blackout has reached its limit.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        let until = *self.still_until.lock();
        if until.is_some_and(|until| Instant::now() >= until)
            && self
                .gate
                .compare_exchange(OPEN, ABORTED, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            self.is_late.store(true, Ordering::Release);
            self.changed.notify(usize::MAX);
        }
        self.gate.load(Ordering::Acquire) == ABORTED
    }

    /// Is notified of an abort and of any other change.  Take it first, then look.
    pub fn listen(&self) -> EventListener {
        self.changed.listen()
    }

    /// The target blackout; it can change while the job runs.
    #[must_use]
    pub fn max_downtime(&self) -> Duration {
        Duration::from_millis(self.max_downtime_ms.load(Ordering::Relaxed))
    }

    /// The part of the target blackout that is left for memory.
    #[must_use]
    pub fn time_for_memory(&self) -> Duration {
        self.past.lock().for_memory(self.max_downtime())
    }

    /// Sets the part of the blackout in which no memory is copied, as earlier jobs have shown.
    pub fn set_past(&self, past: Past) {
        *self.past.lock() = past;
    }

    /// Sets the target blackout.
    pub fn set_max_downtime(&self, downtime: Duration) {
        let ms = u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX);
        self.max_downtime_ms.store(ms, Ordering::Relaxed);
    }

    /// The bandwidth limit in bytes per second; it can change while the job runs.
    #[must_use]
    pub fn bandwidth(&self) -> Option<u64> {
        Some(self.bandwidth.load(Ordering::Relaxed)).filter(|limit| *limit != 0)
    }

    /// Sets the bandwidth limit.
    pub fn set_bandwidth(&self, limit: Option<u64>) {
        self.bandwidth.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// Enters a phase; the message is for people.
    pub fn enter(&self, phase: Phase, message: impl Into<String>) {
        self.record(Some(phase), &message.into());
    }

    /// Adds an event that the operator may want to know.
    pub fn tell(&self, message: impl Into<String>) {
        self.record(None, &message.into());
    }

    /// Changes the figures.  Whoever sends pages updates `memory_*`; whoever sends bytes updates `wire_bytes`
    /// and `compression_*`.  [`Control::statistics`] adds the times.
    pub fn update(&self, change: impl FnOnce(&mut Statistics)) {
        change(&mut self.state.lock().statistics);
        self.changed.notify(usize::MAX);
    }

    /// The current figures.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut statistics = self.state.lock().statistics.clone();
        if statistics.success.is_none() {
            statistics.time_elapsed = self.elapsed_ms();
        }
        // A job sends nothing but memory.
        statistics.data_total = statistics.memory_total;
        statistics.data_processed = statistics.memory_processed;
        statistics.data_remaining = statistics.memory_remaining;
        let left = statistics.memory_remaining.saturating_mul(1000);
        statistics.time_remaining = left.checked_div(statistics.memory_bps);
        statistics
    }

    /// The current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    /// The events from this number on; the oldest may be gone.
    #[must_use]
    pub fn events(&self, from: u64) -> Vec<Event> {
        let state = self.state.lock();
        let wanted = |event: &&Event| event.number >= from;
        state.events.iter().filter(wanted).cloned().collect()
    }

    fn record(&self, phase: Option<Phase>, message: &str) {
        // The text may come from a toolstack, or from a journal that was written before texts had limits.
        let message = clean(message, REASON_MOST);
        log::info!("{message}");
        let at_ms = self.elapsed_ms();
        let mut state = self.state.lock();
        state.phase = phase.unwrap_or(state.phase);
        if state.events.len() == EVENTS {
            state.events.remove(0);
        }
        let event = Event {
            number: state.next_event,
            at_ms,
            phase: state.phase,
            message,
        };
        state.next_event += 1;
        state.events.push(event);
        drop(state);
        self.changed.notify(usize::MAX);
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::{Control, EVENTS, Phase};
    use crate::job::{Error, JobOptions};

    #[test]
    fn an_abort_is_possible_until_the_job_is_closed_and_never_after() {
        let control = Control::new(JobOptions::default());
        control.check().unwrap();
        control.rule_out_abort().unwrap();
        assert!(!control.abort());
        control.check().unwrap();

        let control = Control::new(JobOptions::default());
        assert!(control.abort());
        assert!(control.abort(), "asking twice is no mistake");
        assert!(matches!(control.check(), Err(Error::Aborted)));
        assert!(matches!(control.rule_out_abort(), Err(Error::Aborted)));
    }

    #[test]
    fn a_guest_that_stands_still_for_too_long_ends_the_job_up_to_its_hand_over() {
        let bounded = |ms| {
            Control::new(JobOptions {
                max_blackout_ms: Some(ms),
                ..JobOptions::default()
            })
        };
        let control = bounded(0);
        control.check().unwrap();
        control.limit_blackout();
        let closed = control.rule_out_abort();
        assert!(matches!(closed, Err(Error::TimedOut(_))), "{closed:?}");
        assert!(control.is_aborted() && control.stop().is_asked());
        assert!(matches!(control.check(), Err(Error::TimedOut(_))));

        let control = bounded(3_600_000);
        control.limit_blackout();
        control.rule_out_abort().unwrap();
        *control.still_until.lock() = Some(std::time::Instant::now());
        control.check().unwrap();
        assert!(!control.abort(), "it has been handed over");

        let unbounded = Control::new(JobOptions::default());
        unbounded.limit_blackout();
        unbounded.check().unwrap();
    }

    #[test]
    fn whoever_waits_is_woken_by_an_abort() {
        let control = Control::new(JobOptions::default());
        let listener = control.listen();
        control.abort();
        event_listener::Listener::wait(listener);
        assert!(control.is_aborted());
    }

    #[test]
    fn the_last_events_are_kept_in_order() {
        let control = Control::new(JobOptions::default());
        control.enter(Phase::Live, "first round");
        for round in 0..EVENTS {
            control.tell(format!("round {round}"));
        }
        let events = control.events(0);
        assert_eq!(events.len(), EVENTS);
        assert_eq!(events[0].number, 1);
        assert!(events.iter().all(|event| event.phase == Phase::Live));
        assert_eq!(control.events(EVENTS as u64).len(), 1);
    }
}
