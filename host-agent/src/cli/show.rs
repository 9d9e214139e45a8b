//! Shows the daemon's answers as text.

use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::daemon::local::Ask;
use crate::daemon::{Checked, Direction, JobStatus};
use crate::job::{DomainEntry, Event, PAGE_SIZE, Phase};

/// Without a terminal, shortest time between two lines of figures.
const SELDOM: Duration = Duration::from_secs(2);

/// Shows a job's progress: a bar on a terminal; otherwise a line for each event, and now and then one with
/// figures.
pub(super) struct Progress {
    bar: ProgressBar,
    /// When figures were last shown.
    shown: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        let shown = Instant::now();
        Self { bar, shown }
    }

    pub(super) fn update(&mut self, status: &JobStatus) {
        for event in &status.events {
            let line = format!("{:>9.3} s  {}", event.at_ms as f64 / 1000.0, event.message);
            if self.bar.is_hidden() {
                eprintln!("{line}");
            } else {
                self.bar.println(line);
            }
        }
        let now = &status.statistics;
        let done = now
            .memory_processed
            .min(now.data_total.max(now.memory_total));
        self.bar.set_length((done + now.memory_remaining).max(1));
        self.bar.set_position(done);
        let mut message = format!(
            "round {}, {}/s, {} remain, dirty {}/s",
            now.memory_iteration,
            HumanBytes(now.memory_bps),
            HumanBytes(now.memory_remaining),
            HumanBytes(now.memory_dirty_rate.saturating_mul(PAGE_SIZE as u64)),
        );
        if status.direction == Direction::Incoming {
            // Only the source knows the total.
            message = format!("{} received", HumanBytes(now.wire_bytes));
        }
        if let Some(left) = left(status) {
            message += &format!(", ETA {left:.0} s");
        }
        if self.bar.is_hidden() && status.phase == Phase::Live && self.shown.elapsed() >= SELDOM {
            self.shown = Instant::now();
            let all = (done + now.memory_remaining).max(1);
            let at = now.time_elapsed as f64 / 1000.0;
            eprintln!("{at:>9.3} s  {:>3} %  {message}", done * 100 / all);
        }
        self.bar.set_message(message);
        if !status.is_over {
            return;
        }
        self.bar.finish_and_clear();
        match status.direction {
            _ if status.statistics.success != Some(true) => {}
            Direction::Save => println!("{} is in {}", status.domain, status.peer),
            Direction::Restore => println!("{} is back", status.domain),
            Direction::Outgoing | Direction::Incoming => {}
        }
        if let Some(report) = &status.report {
            println!("{} runs at {}", status.domain, status.peer);
            println!("                 outcome      expected");
            let row = |what: &str, value: f64, expected: Option<f64>| {
                let expected = expected.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
                println!("  {what:12}{value:>9.0} ms{expected:>14}");
            };
            row("total", report.total_ms, report.predicted_total_ms);
            row("blackout", report.blackout_ms, report.predicted_blackout_ms);
            println!(
                "  {} rounds, {} of memory, {} on the wire",
                report.rounds,
                HumanBytes(report.bytes_total),
                HumanBytes(report.bytes_on_wire)
            );
        }
    }
}

/// Seconds left: the larger of this round's estimate and the prediction for the whole job.
fn left(status: &JobStatus) -> Option<f64> {
    if status.phase != Phase::Live {
        return None;
    }
    let now = &status.statistics;
    let round = (now.memory_bps > 0).then(|| now.memory_remaining as f64 / now.memory_bps as f64);
    let whole = status
        .prediction
        .map(|expected| ((expected.total_ms - now.time_elapsed as f64) / 1000.0).max(0.0));
    match (round, whole) {
        (Some(round), Some(whole)) => Some(round.max(whole)),
        (either, None) | (None, either) => either,
    }
}

/// Prints a line for each event of a job, with the IDs of the job and its guest in front.
pub(super) fn events(status: &JobStatus) -> String {
    let line = |event: &Event| {
        format!(
            "{:.8}  {}  {:>9.3} s  {}\n",
            status.id,
            status.domain,
            event.at_ms as f64 / 1000.0,
            event.message
        )
    };
    status.events.iter().map(line).collect()
}

/// Prints an answer.
pub(super) fn answer(ask: &Ask, answer: &Value) {
    match ask {
        Ask::List => {
            println!(
                "{:24}{:>6}{:>10}{:>7}  state",
                "name", "domid", "MiB", "vcpus"
            );
            for domain in each::<DomainEntry>(answer) {
                println!(
                    "{:24}{:>6}{:>10}{:>7}  {}",
                    domain.name,
                    domain.domid,
                    domain.memory_bytes >> 20,
                    domain.vcpus,
                    domain.state
                );
            }
        }
        Ask::Status { job: None } => each::<JobStatus>(answer).iter().for_each(job),
        Ask::Status { .. } => {
            if let Ok(status) = serde_json::from_value::<JobStatus>(answer.clone()) {
                job(&status);
                for event in &status.events {
                    println!(
                        "  {:>9.3} s  {}",
                        event.at_ms as f64 / 1000.0,
                        event.message
                    );
                }
            }
        }
        Ask::Check { .. } => {
            if let Ok(found) = serde_json::from_value::<Checked>(answer.clone()) {
                checked(&found);
            }
        }
        Ask::Hosts => {
            for host in answer.as_array().into_iter().flatten() {
                let text = |name: &str| host[name].as_str().unwrap_or_default().to_owned();
                let state = if host["reachable"] == true {
                    format!(
                        "Xen {}, {} free, {}/s",
                        text("xen_version"),
                        HumanBytes(host["free_memory_bytes"].as_u64().unwrap_or_default()),
                        HumanBytes(host["bytes_per_second"].as_f64().unwrap_or_default() as u64)
                    )
                } else {
                    text("error")
                };
                println!("{:16}{:24}{state}", text("name"), text("address"));
            }
        }
        Ask::Doctor => {
            for check in answer.as_array().into_iter().flatten() {
                let what = check["check"].as_str().unwrap_or_default();
                match check["problem"].as_str() {
                    None => println!("ok       {what}"),
                    Some(problem) => println!("PROBLEM  {what}: {problem}"),
                }
            }
        }
        Ask::Capabilities => println!("{}", answer["xml"].as_str().unwrap_or_default()),
        _ => println!("done"),
    }
}

fn each<T: serde::de::DeserializeOwned>(answer: &Value) -> Vec<T> {
    serde_json::from_value(answer.clone()).unwrap_or_default()
}

fn job(status: &JobStatus) {
    let arrow = match status.direction {
        Direction::Outgoing | Direction::Save => "to",
        Direction::Incoming | Direction::Restore => "from",
    };
    let state = match (&status.statistics.success, &status.waiting) {
        (Some(true), _) => "done".to_owned(),
        (Some(false), _) => {
            let why = status.statistics.errmsg.as_deref();
            format!("failed: {}", why.unwrap_or("unknown reason"))
        }
        (None, Some(waiting)) if status.is_held => {
            format!(
                "HELD: {waiting}; decide with `unmoved recover {}`",
                status.id
            )
        }
        (None, Some(waiting)) => waiting.clone(),
        (None, None) => format!(
            "{:?}, round {}",
            status.phase, status.statistics.memory_iteration
        ),
    };
    println!(
        "{:.8}  {} {arrow} {}  {state}",
        status.id, status.domain, status.peer
    );
}

fn checked(found: &Checked) {
    let estimate = &found.estimate;
    println!("{} can be migrated to {}", found.domain, found.host);
    println!(
        "  memory     {} in use, {:.0} % zero, {} dirtied per second",
        HumanBytes(estimate.pages * PAGE_SIZE as u64),
        estimate.zero_share * 100.0,
        HumanBytes((estimate.dirty_pages_per_second * PAGE_SIZE as f64) as u64),
    );
    println!(
        "  network    {}/s",
        HumanBytes(found.prediction.bytes_per_second as u64)
    );
    println!(
        "  expected   {} rounds, {}, {:.1} s in all, blackout {:.0} ms",
        found.prediction.rounds,
        HumanBytes(found.prediction.bytes),
        found.prediction.total_ms / 1000.0,
        found.prediction.blackout_ms
    );
    if found.prediction.verifying_ms > 0.0 {
        println!(
            "  verifying  {:.0} ms of the blackout",
            found.prediction.verifying_ms
        );
    }
}
