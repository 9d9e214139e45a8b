//! `cargo xtask lab hotplug`: devices plugged and unplugged over and over under load.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, GuestPlan, Lab, System, initramfs, programs};
use unmoved_tests::hotplug::{self, USAGE};
use unmoved_tests::shell;

/// How often to plug.
#[derive(Debug, Args)]
pub struct Hotplug {
    /// How many times
    #[arg(long, value_name = "N", default_value_t = 100)]
    count: usize,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const BOOT: Duration = Duration::from_secs(300);

impl Hotplug {
    /// Do it.
    ///
    /// # Errors
    /// If a device does not come, work or go, something leaks, or the shim complains.
    pub fn run(self) -> Result<()> {
        ensure!(self.count > 0, "--count must be 1 or more");
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        let mut plan = GuestPlan::new("guest", System::Shim(programs::shim()?), kernel.unpacked());
        plan.initrd = Some(initramfs::workload(&kernel)?);
        plan.arguments += " quiet unmoved.mode=net unmoved.net=ip=192.0.2.100/24 \
                           unmoved.heartbeat=1";
        plan.disks.push("phy:/dev/vda,xvda,w".to_owned());
        plan.nics.push("mac=02:00:00:00:01:01".to_owned());
        Lab::run("hotplug", &Config::hosts(1), |lab| {
            let host = lab.host(0);
            let mark = host.serial().mark();
            let guest = plan.create(host)?;
            guest.ready(BOOT)?;
            let begun = Instant::now();
            let [before, after] = hotplug::plug(host, &guest, self.count, |number, took, used| {
                let took = took.as_secs_f64();
                println!("round {number:3}: {took:4.1} s, in use {USAGE:?}: {used:?}");
            })?;
            let seconds = begun.elapsed().as_secs();
            let complaints = shell::shim_complaints(host.serial(), mark);
            println!(
                "{} rounds in {seconds} s; {USAGE:?} were {before:?} before and {after:?} after; \
                 {} complaints of the shim",
                self.count,
                complaints.len()
            );
            complaints.iter().for_each(|line| println!("  {line}"));
            crate::json::write(
                self.json.as_deref(),
                &json!({"rounds": self.count, "seconds": seconds, "usage_names": USAGE,
                        "usage_before": before, "usage_after": after,
                        "complaints": complaints}),
            )?;
            ensure!(complaints.is_empty(), "the shim complains");
            Ok(())
        })
    }
}
