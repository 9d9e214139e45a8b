//! `cargo xtask lab soak`: does the lab start every time?

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use unmoved_lab::{Config, Kind, Lab, Xen};

/// How often to start what.
#[derive(Debug, Args)]
pub struct Soak {
    /// How many times
    #[arg(long, value_name = "N", default_value_t = 20)]
    starts: usize,
    /// Hosts in each lab
    #[arg(long, default_value_t = 2)]
    hosts: usize,
    /// Their Xen: 4.17 or 4.20
    #[arg(long, default_value = "4.17")]
    xen: Xen,
    /// Their machine: qemu (AMD), or Bochs with a processor: intel, intel-haswell, intel-icelake,
    /// intel-tigerlake, amd-bochs
    #[arg(long, value_name = "MACHINE", default_value = "qemu")]
    machine: Kind,
    /// Boot from power-on instead of starting from the snapshot
    #[arg(long)]
    cold: bool,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Soak {
    /// Do it.
    ///
    /// # Errors
    /// If a start fails.
    pub fn run(self) -> Result<()> {
        let config = Config {
            hosts: vec![self.xen; self.hosts],
            cold: self.cold,
            ..Config::on(self.machine)
        };
        let mut times = Vec::new();
        let mut failures = Vec::new();
        for number in 1..=self.starts {
            let begun = Instant::now();
            let mut ready = 0.0;
            let result = Lab::run("soak", &config, |lab| {
                ready = begun.elapsed().as_secs_f64();
                for host in &lab.hosts {
                    host.ok(&["xl", "list"])?;
                }
                Ok(())
            });
            match result {
                Ok(()) => {
                    println!("start {number}: ready in {ready:.1} s");
                    times.push(ready);
                }
                Err(error) => {
                    println!("start {number}: {error:#}");
                    failures.push(format!("{error:#}"));
                }
            }
        }
        times.sort_by(f64::total_cmp);
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let worst = times.last().copied().unwrap_or_default();
        let good = times.len();
        println!(
            "{good} of {} starts were good; median {median:.1} s, worst {worst:.1} s",
            self.starts
        );
        crate::json::write(
            self.json.as_deref(),
            &json!({"starts": self.starts, "good": good, "median_s": median, "worst_s": worst, "failures": failures}),
        )?;
        ensure!(good == self.starts, "{} starts failed", self.starts - good);
        Ok(())
    }
}
