//! `cargo xtask bench-memory`: what a host agent needs to know of a large guest's frames, without a guest.
//!
//! The agent's own test does it with a smaller guest each time; this runs the same test, optimized, with any size.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

/// The test, by its whole name.
const TEST: &str =
    "save::reading::tests::what_is_known_of_frames_takes_as_little_as_the_guide_says";
/// Where the test looks for the guest's size.
const SIZE_KEY: &str = "UNMOVED_TEST_GUEST_GIB";

/// Measure.
#[derive(Debug, Args)]
pub struct BenchMemory {
    /// Size of the guest
    #[arg(long, value_name = "GIB", default_value_t = 2048)]
    size: u64,
}

impl BenchMemory {
    /// Do it.
    ///
    /// # Errors
    /// If it cannot be built, or more memory is needed than the guide says.
    pub fn run(self) -> Result<()> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args([
                "test",
                "--quiet",
                "--profile",
                "lab",
                "-p",
                "unmoved",
                "--lib",
                "--",
            ])
            .args(["--exact", "--nocapture", TEST])
            .env(SIZE_KEY, self.size.to_string())
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let figure = said.lines().find(|line| line.contains("for each TiB"));
        ensure!(output.status.success(), "the measurement failed:\n{said}");
        println!("{}", figure.context("the test printed no figure")?);
        Ok(())
    }
}
