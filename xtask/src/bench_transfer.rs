//! `cargo xtask bench-transfer`: the host agent's transport over the loopback interface, without Xen.
//!
//! The measuring program is optimized, which this one is not, and so it is a program of its own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

/// Measure.
#[derive(Debug, Args)]
pub struct BenchTransfer {
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Size of the image
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    size: usize,
    /// How often each is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
}

impl BenchTransfer {
    /// Do it.
    ///
    /// # Errors
    /// If it cannot be built, or fails.
    pub fn run(self) -> Result<()> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args([
            "bench", "--quiet", "-p", "unmoved", "--bench", "transfer", "--",
        ]);
        command.args(["--size", &self.size.to_string()]);
        command.args(["--repeat", &self.repeat.to_string()]);
        if let Some(file) = &self.json {
            // `cargo bench` runs it in the package's folder.
            let file = std::path::absolute(file)?;
            if let Some(folder) = file.parent() {
                std::fs::create_dir_all(folder)?;
            }
            command.arg("--json").arg(file);
        }
        let status = command.status().context("cannot run cargo")?;
        ensure!(status.success(), "the measurement failed");
        Ok(())
    }
}
