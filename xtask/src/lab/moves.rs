//! `cargo xtask lab moves`: the same guest moved over and over, and what that costs the shim.
//!
//! Two hosts; each round is a move from the first to the second and back, with a migration of each
//! host to itself between them.  Between the first round and the last nothing may grow: not the
//! shim's heap, nor its frames, grants and ports.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, Host, Lab};
use unmoved_tests::unnoticed;
use unmoved_tests::within::{MOMENT, Way, reported};

/// How often to move.
#[derive(Debug, Args)]
pub struct Moves {
    /// How many moves
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: usize,
    /// Only within one host, which is quicker
    #[arg(long)]
    within: bool,
    /// The guest's RAM in MiB
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    memory: u32,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const BOOT: Duration = Duration::from_secs(300);
/// What must not grow; of the last, what is left must not shrink.
const USAGE: [&str; 4] = ["heap-bytes", "grants", "ports", "free-frames"];

impl Moves {
    /// Do it.
    ///
    /// # Errors
    /// If a move fails, the guest notices one, or something grows.
    pub fn run(self) -> Result<()> {
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        let hosts = if self.within { 1 } else { 2 };
        Lab::run("moves", &Config::hosts(hosts), |lab| {
            let mut plan = unnoticed::plan(&kernel)?;
            plan.memory_mib = self.memory;
            let mut at = 0;
            let mut guest = plan.create(lab.host(at))?;
            guest.ready(BOOT)?;
            guest.alive(MOMENT)?;
            let mut usage = Vec::new();
            let mut times = Vec::new();
            for number in 1..=self.count {
                let from = lab.host(at);
                // Every second move leads to another host.
                let leaves = !self.within && number % 2 == 1;
                let begun = Instant::now();
                if leaves {
                    at = 1 - at;
                    let to = lab.host(at);
                    to.sh("rm -f /var/log/xen/console/guest-web1*.log")?;
                    let arrived = Guest::attach_incoming(&plan.name, to)?;
                    drop(guest);
                    unnoticed::by_xl(&plan.name, from, to)?;
                    guest = arrived;
                } else {
                    guest = Way::Migrate.go(guest, from)?;
                }
                let took = begun.elapsed().as_secs_f64();
                let host = lab.host(at);
                let alive = guest.alive(MOMENT)?;
                for figure in ["clock_steps_back", "disk_errors"] {
                    ensure!(alive[figure] == 0, "move {number}: {alive}");
                }
                let blackout = reported(host, &plan.name, "blackout-us", MOMENT, |_| true)?;
                times.push(took);
                usage.push(used(host, &plan.name)?);
                println!(
                    "move {number:3} to {}: {took:5.1} s, blackout {:7.1} ms, in use {:?}",
                    host.name(),
                    blackout.parse::<f64>().unwrap_or_default() / 1e3,
                    usage.last().unwrap_or(&[0; 4])
                );
            }
            let disks = guest.order(lab.host(at), "disk stop", BOOT)?;
            ensure!(disks["disks"][0]["errors"] == 0, "{disks}");
            self.judge(&usage, &times)
        })
    }

    fn judge(&self, usage: &[[u64; 4]], times: &[f64]) -> Result<()> {
        // The second half of the run against the first: what leaks grows with each move.
        let half = usage.len() / 2;
        let most = |of: &[[u64; 4]], n: usize| of.iter().map(|u| u[n]).max().unwrap_or_default();
        let mut grown = Vec::new();
        for (n, name) in USAGE.iter().enumerate().take(3) {
            let (early, late) = (most(&usage[..half], n), most(&usage[half..], n));
            println!("{name:12} at most {early} in the first half, {late} in the second");
            // Requests come and go; a leak of one byte in each move would be more than this.
            if late > early + early / 20 {
                grown.push(*name);
            }
        }
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        println!("{} moves, no failure; median {median:.1} s", times.len());
        crate::json::write(
            self.json.as_deref(),
            &json!({"moves": times.len(), "failed": 0, "median_s": median,
                    "usage_names": USAGE, "usage_first": usage.first(), "usage_last": usage.last()}),
        )?;
        ensure!(grown.is_empty(), "{} grew", grown.join(", "));
        Ok(())
    }
}

fn used(host: &Host, guest: &str) -> Result<[u64; 4]> {
    let mut used = [0; 4];
    for (name, value) in USAGE.iter().zip(&mut used) {
        *value = reported(host, guest, &format!("usage/{name}"), MOMENT, |_| true)?.parse()?;
    }
    Ok(used)
}
