//! `cargo xtask demo`: what this project is about, in a few minutes and a few lines.
//!
//! Two hosts.  The unfriendly guest in our shim, under load: checked and moved there and back by the host agents, and
//! in between back and there by Xen's own `xl migrate`, and what it noticed of all that.  Beside it a Debian kernel
//! under *stock* xen-shim: one that helps is moved by `xl migrate`; another, of which one task cannot be
//! frozen, is not.

use std::cell::RefCell;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Host, Lab, Scripts};
use unmoved_tests::agents::NO_VERIFY;
use unmoved_tests::load::Load;
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
            agents::check(guest, from, to, &[NO_VERIFY])?;
            let (total, report) = agents::migrate(guest, from, to, &[NO_VERIFY])?;
            reports.borrow_mut().push(report);
            Ok(total)
        };
        let config = Config {
            scripts: Scripts::Xen,
            ..Config::hosts(2)
        };
        let (baseline, mut seen) = Lab::run("demo", &config, |lab| {
            agents::start(lab)?;
            // Each of the two goes each way, and what changes with time hits both.
            let xl: unnoticed::Mover<'_> = &unnoticed::by_xl;
            let legs: [unnoticed::Mover<'_>; 4] = [&by_agents, xl, xl, &by_agents];
            let seen = unnoticed::run_legs(lab, &kernel, Load::Full, &legs)?;
            for host in &lab.hosts {
                host.run(&["xl", "destroy", "web1"])?;
            }
            Ok((baseline::run(lab, &kernel)?, seen))
        })?;
        let last = seen.moves.pop().context("nothing was moved")?;
        let xl = seen.moves.split_off(1);
        seen.moves.push(last);
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
            "xl": worst(&xl),
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

/// Tells how our moves compare with those of `xl`, and gives the parts of time and blackout as JSON.
fn compare(seen: &Unnoticed, xl: &[Move]) -> Value {
    println!("The same guest under the same load by `xl migrate`:");
    for (number, one) in xl.iter().enumerate() {
        println!(
            "  move {}      {:.1} s; blackout {:.1} ms",
            number + 1,
            seconds(one),
            blackout_ms(one)
        );
    }
    let part = |of: fn(&Move) -> f64| {
        let sum = |moves: &[Move]| moves.iter().map(of).sum::<f64>();
        sum(&seen.moves) / sum(xl).max(f64::MIN_POSITIVE)
    };
    let (time, dark) = (part(seconds), part(blackout_ms));
    println!(
        "  both ways   ours takes {time:.2} of the time, {dark:.2} of the blackout (at most {TARGET} is aimed at)"
    );
    json!({ "total": time, "blackout": dark, "target": TARGET })
}

/// The worse of both ways, as for ours.
fn worst(xl: &[Move]) -> Value {
    let worst = |of: fn(&Move) -> f64| xl.iter().map(of).fold(0.0, f64::max);
    let moves: Vec<Value> = xl.iter().map(Move::to_json).collect();
    json!({
        "total_ms": worst(seconds) * 1e3,
        "blackout_ms": worst(blackout_ms),
        "moves": moves,
    })
}

fn seconds(one: &Move) -> f64 {
    one.total.as_secs_f64()
}

fn blackout_ms(one: &Move) -> f64 {
    one.blackout_us() as f64 / 1e3
}
