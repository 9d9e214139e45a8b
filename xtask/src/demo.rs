//! `cargo xtask demo`: what this project is about, in a few minutes and a few lines.
//!
//! Two hosts.  The unfriendly guest in our shim, under load: checked, moved there and back by the host agents, then
//! there once more by Xen's own `xl migrate`, and what it noticed of all that.  Beside it a Debian kernel
//! under *stock* xen-shim: one that helps is moved by `xl migrate`; another, of which one task cannot be
//! frozen, is not.

use std::cell::RefCell;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Host, Lab};
use unmoved_tests::unnoticed::{Move, Unnoticed};
use unmoved_tests::{agents, baseline, unnoticed};

/// Show it.
#[derive(Debug, Args)]
pub struct Demo {
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Figures of a job's report that go into the record.
const REPORTED: [&str; 5] = [
    "rounds",
    "bytes_on_wire",
    "bytes_total",
    "predicted_blackout_ms",
    "predicted_total_ms",
];

impl Demo {
    /// Run the demo and tell the figures.
    ///
    /// # Errors
    /// If the lab fails, the guest notices a move, or Xen's own migration does other than it is known to do.
    pub fn run(self) -> Result<()> {
        let tools = Tools::get()?;
        let kernel = GuestKernel::Debian12.get(&tools)?;
        let reports = RefCell::new(Vec::new());
        let by_agents = |guest: &str, from: &Host, to: &Host| {
            agents::check(guest, from, to)?;
            let (total, report) = agents::migrate(guest, from, to)?;
            reports.borrow_mut().push(report);
            Ok(total)
        };
        let (baseline, mut seen) = Lab::run("demo", &Config::hosts(2), |lab| {
            agents::start(lab)?;
            let legs: [unnoticed::Mover<'_>; 3] = [&by_agents, &by_agents, &unnoticed::by_xl];
            let seen = unnoticed::run_legs(lab, &kernel, &legs)?;
            for host in &lab.hosts {
                host.run(&["xl", "destroy", "web1"])?;
            }
            Ok((baseline::run(lab, &kernel)?, seen))
        })?;
        let xl = seen.moves.pop().context("xl moved nothing")?;
        baseline.tell();
        seen.tell("unmoved migrate");
        let ratio = compare(&seen, &xl);
        let own = seen
            .moves
            .iter()
            .map(Move::own_us)
            .max()
            .unwrap_or_default();
        if let Some(theirs) = baseline.cooperation() {
            println!(
                "The shim's own share of the blackout is at most {:.1} ms; the friendly guest's kernel took {:.1} ms",
                own as f64 / 1e3,
                theirs.as_secs_f64() * 1e3
            );
        }
        let figures = json!({
            "baseline": baseline.to_json(),
            "unmoved": record(&seen, &reports.into_inner()),
            "xl": xl.to_json(),
            "ratio": ratio,
        });
        crate::json::write(self.json.as_deref(), &figures)?;
        let noticed = seen.noticed();
        ensure!(noticed.is_empty(), "it noticed: {}", noticed.join("; "));
        Ok(())
    }
}

/// The guest's view, and the job's report of the move that took longest.
fn record(seen: &Unnoticed, reports: &[Value]) -> Value {
    let mut record = seen.to_json("unmoved");
    let moves = seen.moves.iter().zip(reports);
    if let Some((_, report)) = moves.max_by_key(|(one, _)| one.total) {
        for name in REPORTED {
            record[name] = report[name].clone();
        }
    }
    record["reports"] = json!(reports);
    record
}

/// What our time and blackout should be of `xl migrate`'s, at most.
const TARGET: f64 = 0.5;

/// Tells how our worst move compares, and gives the parts of time and blackout as JSON.
fn compare(seen: &Unnoticed, xl: &Move) -> Value {
    let worst = |of: fn(&Move) -> f64| seen.moves.iter().map(of).fold(0.0, f64::max);
    let total = |one: &Move| one.total.as_secs_f64();
    let blackout = |one: &Move| one.blackout_us() as f64 / 1e3;
    let time = worst(total) / total(xl).max(f64::MIN_POSITIVE);
    let dark = worst(blackout) / blackout(xl).max(f64::MIN_POSITIVE);
    println!("The same guest under the same load by `xl migrate`:");
    println!(
        "  move        {:.1} s; blackout {:.1} ms; ours takes {time:.2} of the time, {dark:.2} of the blackout \
         (at most {TARGET} is aimed at)",
        total(xl),
        blackout(xl),
    );
    json!({ "total": time, "blackout": dark, "target": TARGET })
}
