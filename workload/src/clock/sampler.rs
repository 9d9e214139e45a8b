//! A thread that reads all clocks over and over.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::pvclock::PvClock;
use super::watch::{Jumps, Watch};
use crate::orders::{Order, OrderError};
use crate::sys::time::{Clock, now, tsc};

/// The kernel's clocks that are watched.
const CLOCKS: [(&str, Clock); 4] = [
    ("monotonic", Clock::Monotonic),
    ("monotonic_raw", Clock::MonotonicRaw),
    ("boottime", Clock::Boottime),
    ("realtime", Clock::Realtime),
];

/// Readings in immediate succession at each turn: short steps back show only between such.
const BURST: usize = 8;
/// CLOCK_REALTIME against CLOCK_MONOTONIC: smaller changes are the kernel's steering.
const JUMP_NS: i64 = 1_000_000;

#[derive(Default)]
struct State {
    clocks: [Watch; 4],
    tsc: Watch,
    pvclock: Option<Watch>,
    wall_jumps: Jumps,
}

struct Shared {
    stop: AtomicBool,
    state: Mutex<State>,
}

/// A running clock watch.
pub struct Sampler {
    shared: Arc<Shared>,
}

impl Sampler {
    /// Starts reading, a burst every `period`.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(period: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            state: Mutex::default(),
        });
        let its = shared.clone();
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(move || run(&its, period))?;
        Ok(Self { shared })
    }

    /// Takes the period from an order: `period=MICROSECONDS`.
    ///
    /// # Errors
    /// Unknown or senseless options.
    pub fn period(order: &Order) -> Result<Duration, OrderError> {
        order.allow(&["period"])?;
        let micros = order.number("period", 5_000, 100..=10_000_000)?;
        Ok(Duration::from_micros(micros))
    }

    /// The figures so far.
    #[must_use]
    pub fn figures(&self) -> Value {
        let state = self.state();
        let mut all = serde_json::Map::new();
        let mut steps_back = state.tsc.steps_back();
        for ((name, _), watch) in CLOCKS.iter().zip(&state.clocks) {
            steps_back += watch.steps_back();
            all.insert((*name).into(), watch.figures("ns"));
        }
        all.insert("tsc".into(), state.tsc.figures("ticks"));
        let pvclock = state.pvclock.as_ref();
        steps_back += pvclock.map_or(0, Watch::steps_back);
        all.insert(
            "pvclock".into(),
            pvclock.map_or(Value::Null, |watch| watch.figures("ns")),
        );
        all.insert("steps_back".into(), steps_back.into());
        all.insert("wall_jumps".into(), state.wall_jumps.figures());
        Value::Object(all)
    }

    /// Forgets the largest gaps (steps back are never forgotten).
    pub fn forget_gaps(&self) {
        let mut state = self.state();
        state.clocks.iter_mut().for_each(Watch::forget_gap);
        state.tsc.forget_gap();
        if let Some(watch) = &mut state.pvclock {
            watch.forget_gap();
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn run(shared: &Shared, period: Duration) {
    let mut pvclock = PvClock::find().ok().flatten();
    while !shared.stop.load(Ordering::Relaxed) {
        {
            let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            for _ in 0..BURST {
                for ((_, clock), watch) in CLOCKS.iter().zip(&mut state.clocks) {
                    watch.sample(now(*clock).into());
                }
                state.tsc.sample(tsc().into());
            }
            if let Some(reading) = pvclock.as_mut().and_then(PvClock::read) {
                let watch = state.pvclock.get_or_insert_default();
                watch.sample(reading.into());
            }
            let (monotonic, wall) = (now(Clock::Monotonic), now(Clock::Realtime));
            let difference = wall.saturating_sub(monotonic);
            state.wall_jumps.sample(monotonic, difference, JUMP_NS);
        }
        std::thread::sleep(period);
    }
}

/// What the clocks say now; with `wall`, the true time of day in nanoseconds, also how far
/// CLOCK_REALTIME is from it.
#[must_use]
pub fn reading(wall: Option<i64>) -> Value {
    let realtime = now(Clock::Realtime);
    let mut all = json!({
        "realtime_ns": realtime, "monotonic_ns": now(Clock::Monotonic),
        "boottime_ns": now(Clock::Boottime), "tsc": tsc(),
    });
    if let Some(wall) = wall {
        all["wall_error_ns"] = realtime.saturating_sub(wall).into();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{Sampler, reading};
    use std::time::{Duration, Instant};

    #[test]
    fn a_machine_left_alone_has_no_steps_back() {
        let sampler = Sampler::start(Duration::from_millis(1)).expect("starts");
        let limit = Instant::now() + Duration::from_secs(30);
        while sampler.figures()["tsc"]["samples"].as_u64() < Some(200) && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
        let figures = sampler.figures();
        assert_eq!(figures["steps_back"], 0, "{figures}");
        assert!(
            figures["monotonic"]["largest_gap_ns"].as_u64() > Some(0),
            "{figures}"
        );
        sampler.forget_gaps();
    }

    #[test]
    fn the_wall_error_is_against_the_time_given() {
        let now = reading(None)["realtime_ns"].as_i64().expect("a number");
        let error = reading(Some(now - 5_000_000_000))["wall_error_ns"].as_i64();
        assert!(error >= Some(5_000_000_000), "{error:?}");
    }
}
