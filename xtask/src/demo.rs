//! `cargo xtask demo`: what this project is about, in a few minutes and a few lines.
//!
//! Two hosts and a Debian kernel under *stock* xen-shim.  A guest that helps is moved by `xl migrate`;
//! the same guest, once one of its tasks cannot be frozen, is not.  Then the unfriendly guest in our
//! shim, under load: there and back, and what it noticed of it.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Lab};
use unmoved_tests::{baseline, unnoticed};

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
        let (baseline, unnoticed) = Lab::run("demo", &Config::hosts(2), |lab| {
            let unnoticed = unnoticed::run(lab, &kernel, &unnoticed::by_xl, 1)?;
            for host in &lab.hosts {
                host.run(&["xl", "destroy", "web1"])?;
            }
            Ok((baseline::run(lab, &kernel)?, unnoticed))
        })?;
        baseline.tell();
        unnoticed.tell("xl migrate");
        let figures = json!({
            "baseline": baseline.to_json(),
            "unmoved": unnoticed.to_json("xl"),
        });
        crate::json::write(self.json.as_deref(), &figures)?;
        let noticed = unnoticed.noticed();
        ensure!(noticed.is_empty(), "it noticed: {}", noticed.join("; "));
        Ok(())
    }
}
