//! Commands that need no daemon and generate files: certificates, completions, manual pages.

use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;
use serde_json::json;

use crate::pki;

/// Manual pages that do not come from a command's help: the daemon and its configuration.
const PAGES: [(&str, &str); 2] = [
    ("unmovedd.8", include_str!("../../man/unmovedd.8")),
    ("unmoved.toml.5", include_str!("../../man/unmoved.toml.5")),
];

/// Certificates.
#[derive(Debug, Subcommand)]
pub(super) enum Pki {
    /// Create a certification authority; keep its folder safe
    Init {
        /// Folder for the authority's files
        #[arg(long, value_name = "FOLDER", default_value = "pki")]
        folder: PathBuf,
    },
    /// Issue a certificate and key for a host
    Issue {
        /// The host's name, and the other names and addresses that reach it
        #[arg(required = true)]
        names: Vec<String>,
        /// The authority's folder
        #[arg(long, value_name = "FOLDER", default_value = "pki")]
        folder: PathBuf,
    },
}

impl Pki {
    pub(super) fn run(self, json: bool) -> Result<()> {
        let files = match self {
            Self::Init { folder } => pki::init(&folder),
            Self::Issue { names, folder } => pki::issue(&folder, &names),
        };
        let files = files.context("certificates")?;
        if json {
            println!("{}", json!({ "files": files }));
            return Ok(());
        }
        for file in files {
            println!("{}", file.display());
        }
        Ok(())
    }
}

/// Prints a shell's completion script.
pub(super) fn completions<C: CommandFactory>(shell: Shell) {
    let mut command = C::command();
    clap_complete::generate(shell, &mut command, "unmoved", &mut io::stdout());
}

/// Writes a manual page for each command, and those of the daemon.
pub(super) fn man<C: CommandFactory>(folder: &PathBuf) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let failed = || format!("cannot write to {}", folder.display());
    clap_mangen::generate_to(C::command(), folder).with_context(failed)?;
    for (name, page) in PAGES {
        let page = page.replace("@VERSION@", env!("CARGO_PKG_VERSION"));
        std::fs::write(folder.join(name), page).with_context(failed)?;
    }
    Ok(())
}
