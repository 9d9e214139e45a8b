//! Xen's own tools for migration streams, `verify-stream-v2` and `convert-legacy-stream`, unpacked from
//! Debian 12 with the Python that runs them: what our verifier and converter are compared with.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache;
use crate::debian::{self, Package};
use crate::suite::Suite;

const PACKAGES: &str = include_str!("../../images/stream-tools/packages");
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const XEN: &str = "usr/lib/xen-4.17";

/// Packages that are needed; others are only needed to run guests.
const NEEDED: [&str; 8] = [
    "xen-utils-4.17",
    "python3",
    "libpython3",
    "libc6",
    "libexpat1",
    "zlib1g",
    "libgcc-s1",
    "media-types",
];

/// The unpacked tools.
#[derive(Clone, Debug)]
pub struct StreamTools {
    root: PathBuf,
}

impl StreamTools {
    /// Find them, or download and unpack them.
    ///
    /// # Errors
    /// If that fails, or they do not run.
    pub fn get() -> Result<Self> {
        let wanted: Vec<String> = debian::lines(PACKAGES).map(str::to_owned).collect();
        let packages: Vec<Package> = debian::packages(Suite::Bookworm, &wanted)?
            .into_iter()
            .filter(|package| NEEDED.iter().any(|name| package.name().starts_with(name)))
            .collect();
        let manifest = serde_json::to_vec_pretty(&packages)?;
        let root = cache::entry("stream-tools", &cache::key([&manifest[..]]), |folder| {
            debian::unpack(&packages, folder)?;
            std::fs::write(folder.join("manifest.json"), &manifest)?;
            Self {
                root: folder.to_owned(),
            }
            .check()
        })?;
        Ok(Self { root })
    }

    /// The command `verify-stream-v2`.
    #[must_use]
    pub fn verify(&self) -> Command {
        self.tool("verify-stream-v2")
    }

    /// The command `convert-legacy-stream`.
    #[must_use]
    pub fn convert(&self) -> Command {
        self.tool("convert-legacy-stream")
    }

    /// Python, which finds the modules of the tools.
    #[must_use]
    pub fn python(&self) -> Command {
        let libraries = self.root.join(LIBRARIES);
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        command
            .env("PYTHONHOME", self.root.join("usr"))
            .env("PYTHONPATH", self.root.join(XEN).join("lib/python"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .arg("--library-path")
            .arg(libraries)
            .arg(self.root.join("usr/bin/python3"));
        command
    }

    /// The folder that the tools are in.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.root.join(XEN).join("bin")
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = self.python();
        command.arg(self.programs().join(name));
        command
    }

    fn check(&self) -> Result<()> {
        for mut command in [self.verify(), self.convert()] {
            let output = command
                .arg("--help")
                .output()
                .context("cannot run the unpacked Python")?;
            ensure!(
                output.status.success(),
                "Xen's stream tools do not run: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}
