//! `cargo xtask lab moves`: the same guest moved over and over, and what that costs the shim.
//!
//! Two hosts; moves from one to the other and moves within a host take turns, in one row.  From its first
//! half to its second nothing may grow: not the shim's heap, nor its frames, grants and ports.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, Host, Kind, Lab, Xen};
use unmoved_tests::load::Load;
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
    /// Save and restore the guest within a host, instead of migrating it there
    #[arg(long)]
    save: bool,
    /// The guest's RAM in MiB
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    memory: u32,
    /// The hosts' machine: qemu (AMD), or Bochs with a processor: intel, intel-haswell, intel-icelake,
    /// intel-tigerlake, amd-bochs; Bochs has no LAN, so it takes `--within`
    #[arg(long, value_name = "MACHINE", default_value = "qemu")]
    machine: Kind,
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
        let mut config = Config::on(self.machine);
        config.hosts = vec![Xen::default(); hosts];
        Lab::run("moves", &config, |lab| {
            let mut plan = unnoticed::plan(&kernel, Load::Full)?;
            plan.memory_mib = self.memory;
            let mut at = 0;
            let mut guest = plan.create(lab.host(at))?;
            guest.ready(BOOT)?;
            guest.alive(MOMENT)?;
            let mut moves = Vec::new();
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
                    let way = if self.save {
                        Way::SaveRestore
                    } else {
                        Way::Migrate
                    };
                    guest = way.go(guest, from)?;
                }
                let seconds = begun.elapsed().as_secs_f64();
                let host = lab.host(at);
                let alive = guest.alive(MOMENT)?;
                for figure in ["clock_steps_back", "disk_errors"] {
                    ensure!(alive[figure] == 0, "move {number}: {alive}");
                }
                let blackout = reported(host, &plan.name, "blackout-us", MOMENT, |_| true)?;
                let this = Move {
                    leaves,
                    to: host.name().to_owned(),
                    seconds,
                    blackout_ms: blackout.parse::<f64>()? / 1e3,
                    used: used(host, &plan.name)?,
                };
                let way = if leaves { "to" } else { "within" };
                println!(
                    "move {number:3} {way:6} {}: {seconds:5.1} s, blackout {:7.1} ms, in use {:?}",
                    this.to, this.blackout_ms, this.used
                );
                moves.push(this);
            }
            let disks = guest.order(lab.host(at), "disk stop", BOOT)?;
            ensure!(disks["disks"][0]["errors"] == 0, "{disks}");
            println!(
                "no wrong block among {}",
                disks["disks"][0]["verified_blocks"]
            );
            self.judge(&moves)
        })
    }

    fn judge(&self, moves: &[Move]) -> Result<()> {
        // The second half of the run against the first: what leaks grows with each move.
        let (early, late) = moves.split_at(moves.len() / 2);
        let mut grown = Vec::new();
        for (n, name) in USAGE.iter().enumerate() {
            let used = |of: &[Move]| {
                let all = of.iter().map(|one| one.used[n]);
                (
                    all.clone().min().unwrap_or_default(),
                    all.max().unwrap_or_default(),
                )
            };
            let (early, late) = (used(early), used(late));
            println!(
                "{name:12} {} to {} in the first half, {} to {} in the second",
                early.0, early.1, late.0, late.1
            );
            // Requests come and go; a leak of one byte in each move would be more than this.
            let is_worse = match *name {
                "free-frames" => late.0 < early.0,
                _ => late.1 > early.1 + early.1 / 20,
            };
            if is_worse {
                grown.push(*name);
            }
        }
        let mut times: Vec<f64> = moves.iter().map(|one| one.seconds).collect();
        times.sort_by(f64::total_cmp);
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let between = moves.iter().filter(|one| one.leaves).count();
        println!(
            "{} moves in a row, {between} between the hosts and {} within one, no failure; median {median:.1} s",
            moves.len(),
            moves.len() - between
        );
        let all: Vec<Value> = moves.iter().map(Move::to_json).collect();
        crate::json::write(
            self.json.as_deref(),
            &json!({"moves": moves.len(), "between": between, "failed": 0, "median_s": median,
                    "usage_names": USAGE, "all": all}),
        )?;
        ensure!(
            grown.is_empty(),
            "worse in the second half: {}",
            grown.join(", ")
        );
        Ok(())
    }
}

/// One move, and what the shim has in use after it.
struct Move {
    leaves: bool,
    to: String,
    seconds: f64,
    blackout_ms: f64,
    used: [u64; 4],
}

impl Move {
    fn to_json(&self) -> Value {
        json!({"to": self.to, "between": self.leaves, "s": self.seconds,
               "blackout_ms": self.blackout_ms, "used": self.used})
    }
}

fn used(host: &Host, guest: &str) -> Result<[u64; 4]> {
    let mut used = [0; 4];
    for (name, value) in USAGE.iter().zip(&mut used) {
        *value = reported(host, guest, &format!("usage/{name}"), MOMENT, |_| true)?.parse()?;
    }
    Ok(used)
}
