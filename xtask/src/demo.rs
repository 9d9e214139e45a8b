//! `cargo xtask demo`: what this project is about, in a few minutes and a few lines.
//!
//! Two hosts and a Debian kernel under *stock* xen-shim.  A guest that helps is moved by `xl migrate`;
//! the same guest, once one of its tasks cannot be frozen, is not.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Lab};
use unmoved_tests::baseline;

/// Show it.
#[derive(Debug, Args)]
pub struct Demo {
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Demo {
    /// Run the demo and tell the figures.
    ///
    /// # Errors
    /// If the lab fails, or Xen's own migration does other than it is known to do.
    pub fn run(self) -> Result<()> {
        let tools = Tools::get()?;
        let kernel = GuestKernel::Debian12.get(&tools)?;
        let baseline = Lab::run("demo", &Config::hosts(2), |lab| baseline::run(lab, &kernel))?;
        baseline.tell();
        crate::json::write(
            self.json.as_deref(),
            &json!({ "baseline": baseline.to_json() }),
        )
    }
}
