//! `cargo xtask lab lan`: how fast is the emulated LAN, beside what a host manages all by itself?

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use unmoved_lab::{Config, Host, Lab};

/// Measure it.
#[derive(Debug, Args)]
pub struct Lan {
    /// Seconds per measurement
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Largest packets to try
    #[arg(long, value_delimiter = ',', default_value = "1500,9000,32000")]
    mtu: Vec<u32>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Lan {
    /// Do it.
    ///
    /// # Errors
    /// If the lab does not start or a measurement fails.
    pub fn run(self) -> Result<()> {
        let figures = Lab::run("lan", &Config::hosts(2), |lab| {
            let (a, b) = (lab.host(0), lab.host(1));
            for host in [a, b] {
                host.ok(&["iperf3", "--server", "--daemon"])?;
            }
            let mut rows = vec![];
            let own = self.throughput(a, "127.0.0.1")?;
            println!("{:>24} {own:8.1} MiB/s", "within a host");
            for mtu in &self.mtu {
                for host in [a, b] {
                    host.sh(&format!(
                        "ip link set eth0 mtu {mtu} && ip link set br0 mtu {mtu}"
                    ))?;
                }
                let speed = self.throughput(a, &b.address())?;
                println!("{:>24} {speed:8.1} MiB/s", format!("between, MTU {mtu}"));
                rows.push(json!({"mtu": mtu, "mib_s": speed}));
            }
            let ping = a.ok(&["ping", "-q", "-c", "50", "-i", "0.05", &b.address()])?;
            let ping = ping.lines().last().unwrap_or_default().to_owned();
            println!("{ping}");
            Ok(json!({"within_mib_s": own, "between": rows, "ping": ping}))
        })?;
        crate::json::write(self.json.as_deref(), &figures)
    }

    /// MiB/s of one TCP connection, as received.
    fn throughput(&self, from: &Host, to: &str) -> Result<f64> {
        let seconds = self.seconds.to_string();
        let text = from.ok(&["iperf3", "--json", "--time", &seconds, "--client", to])?;
        let report: Value = serde_json::from_str(&text).context("iperf3 wrote no JSON")?;
        let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.context("iperf3 measured nothing")? / 8.0 / f64::from(1 << 20))
    }
}
