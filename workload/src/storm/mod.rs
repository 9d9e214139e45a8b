//! The process storm: everything a kernel does for processes, over and over, each result checked.
//!
//! Meant to find what a hypervisor under the kernel gets wrong: page tables that are written and
//! shared in every way, faults, signals, context switches, floating-point state, single steps.

pub mod checks;
pub mod trace;

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::helper;
use crate::orders::{Order, OrderError};

/// A check: does something and says what was wrong about it.
pub type Check = fn() -> Result<(), String>;

/// All checks by name.
pub const CHECKS: [(&str, Check); 11] = [
    ("fork", checks::fork_tree),
    ("exec", checks::exec),
    ("copy_on_write", checks::copy_on_write),
    ("mmap", checks::map_and_remap),
    ("mprotect", checks::protection),
    ("signal", checks::signals),
    ("pipe", checks::pipe),
    ("thread", checks::threads),
    ("float", checks::floating_point),
    ("timer", checks::timer),
    ("ptrace", trace::single_step),
];

/// Failures are told with their reasons up to this number a worker; all are counted.
const REASONS_KEPT: usize = 4;

/// The body of one worker process: all checks in turn for `time`; figures as JSON.
#[must_use]
pub fn work(time: Duration) -> Value {
    let end = Instant::now() + time;
    let mut runs = [0_u64; CHECKS.len()];
    let mut failures = 0_u64;
    let mut reasons: Vec<String> = Vec::new();
    loop {
        for ((name, check), runs) in CHECKS.iter().zip(&mut runs) {
            *runs += 1;
            if let Err(reason) = check() {
                failures += 1;
                if reasons.len() < REASONS_KEPT {
                    reasons.push(format!("{name}: {reason}"));
                }
            }
        }
        if Instant::now() >= end {
            break;
        }
    }
    let runs: Map<String, Value> = CHECKS
        .iter()
        .zip(runs)
        .map(|((name, _), runs)| ((*name).to_owned(), runs.into()))
        .collect();
    json!({ "runs": runs, "failures": failures, "reasons": reasons })
}

/// Runs `workers=` workers for `seconds=` and adds up what they found.
///
/// # Errors
/// Senseless options, or if no worker can be started.
pub fn run(order: &Order) -> Result<Value, OrderError> {
    order.allow(&["seconds", "workers"])?;
    let seconds = order.number("seconds", 10, 1..=86_400)?;
    let workers = order.number("workers", 4, 1..=64)?;
    let failed = |error: std::io::Error| OrderError(format!("storm: {error}"));
    let mut children = Vec::new();
    for _ in 0..workers {
        let mut command = helper::command("storm", &[seconds.to_string()]);
        let command = command.stdout(std::process::Stdio::piped());
        children.push(command.spawn().map_err(failed)?);
    }
    let mut total: Map<String, Value> = Map::new();
    let (mut failures, mut lost) = (0, 0_u64);
    let mut reasons: Vec<Value> = Vec::new();
    for child in children {
        let output = child.wait_with_output().map_err(failed)?;
        let Ok(result) = serde_json::from_slice::<Value>(&output.stdout) else {
            lost += 1;
            reasons.push(format!("a worker ended with {}", output.status).into());
            continue;
        };
        failures += result["failures"].as_u64().unwrap_or(0);
        reasons.extend(result["reasons"].as_array().cloned().unwrap_or_default());
        for (name, runs) in result["runs"].as_object().into_iter().flatten() {
            let before = total.get(name).and_then(Value::as_u64).unwrap_or(0);
            total.insert(name.clone(), (before + runs.as_u64().unwrap_or(0)).into());
        }
    }
    reasons.truncate(16);
    Ok(json!({
        "seconds": seconds, "workers": workers, "runs": total, "failures": failures + lost,
        "reasons": reasons,
    }))
}
