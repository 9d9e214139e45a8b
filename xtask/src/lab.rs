//! `cargo xtask lab …`: the lab by hand.

mod run;

use anyhow::Result;
use clap::Subcommand;

/// What to do in the lab.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start one host, create a guest under a shim, and show what both say
    Run(run::Run),
}

impl Command {
    /// Do it.
    ///
    /// # Errors
    /// If the lab does not start, or what was waited for does not happen.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Run(run) => run.run(),
        }
    }
}
