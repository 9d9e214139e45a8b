//! Programs of this workspace that run inside hosts and guests: built statically, so that they run on
//! any distribution's root or on none; and the shim, which runs on none by nature.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{paths, progress};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A program of the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The lab's agent in dom0.
    Agent,
    /// Process 1 of test guests.
    Workload,
    /// The workload's partner on a host.
    Peer,
    /// The command `unmoved`.
    Unmoved,
    /// The daemon `unmovedd`.
    Unmovedd,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Agent,
        Self::Workload,
        Self::Peer,
        Self::Unmoved,
        Self::Unmovedd,
    ];

    fn package(self) -> &'static str {
        match self {
            Self::Agent => "unmoved-lab-agent",
            Self::Workload | Self::Peer => "unmoved-workload",
            Self::Unmoved | Self::Unmovedd => "unmoved",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Agent => "unmoved-lab-agent",
            Self::Workload => "unmoved-init",
            Self::Peer => "unmoved-peer",
            Self::Unmoved => "unmoved",
            Self::Unmovedd => "unmovedd",
        }
    }

    /// Build it, unless it is up to date, and give its file back.
    ///
    /// # Errors
    /// If cargo cannot.
    pub fn build(self) -> Result<PathBuf> {
        let (package, file) = (self.package(), self.file());
        let arguments = ["--package", package, "--bin", file, "--target", TARGET];
        let flags = "-C target-feature=+crt-static";
        let folder = cargo(file, "static", Profile::Lab, flags, &arguments)?;
        Ok(folder.join(TARGET).join(Profile::Lab.name()).join(file))
    }
}

/// Build the shim, unless it is up to date, and give its image back.
///
/// # Errors
/// If cargo cannot.
pub fn shim() -> Result<PathBuf> {
    image("unmoved-shim")
}

/// Build the hostile PV kernel, unless it is up to date, and give its image back.
///
/// # Errors
/// If cargo cannot.
pub fn hostile() -> Result<PathBuf> {
    image("unmoved-hostile")
}

/// Build a bare-metal image, unless it is up to date, and give it back.
fn image(name: &str) -> Result<PathBuf> {
    let arguments = ["--package", name, "--features", "image"];
    let folder = cargo(name, "image", Profile::Release, "", &arguments)?;
    Ok(folder.join(Profile::Release.name()).join(name))
}

/// How a program is built.
#[derive(Clone, Copy, Debug)]
enum Profile {
    /// As it is shipped: all of it is optimised as one, which takes long to link.
    Release,
    /// As well optimised otherwise.
    Lab,
}

impl Profile {
    /// As in the workspace's `Cargo.toml`; so is the folder of what is built.
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Lab => "lab",
        }
    }
}

/// Build with optimisation into a folder of its own below the target folder, which is given back.
fn cargo(
    what: &str,
    folder: &str,
    profile: Profile,
    flags: &str,
    arguments: &[&str],
) -> Result<PathBuf> {
    let folder = paths::target().join(folder);
    let child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(paths::workspace())
        // A program that ran under cargo passes cargo's own settings on to this one.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", flags)
        .args(["build", "--quiet", "--profile", profile.name()])
        .args(arguments)
        .arg("--target-dir")
        .arg(&folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let output = tell_if_long(what, child)?;
    ensure!(
        output.status.success(),
        "{what} does not build: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(folder)
}

/// Wait for a build, and say what is waited for if it is not done at once.
fn tell_if_long(what: &str, child: Child) -> Result<Output> {
    const LONG: Duration = Duration::from_secs(2);
    let (done, wait) = mpsc::channel();
    let waiting = thread::spawn(move || {
        let output = child.wait_with_output();
        // Nobody waits any more only if this process is about to end.
        let _ = done.send(());
        output
    });
    if wait.recv_timeout(LONG).is_err() {
        let step = progress::step(format!("building {what}"));
        let _ = wait.recv();
        step.done("built");
    }
    let output = waiting
        .join()
        .map_err(|_| anyhow::anyhow!("waiting for cargo failed"))?;
    output.context("cannot run cargo")
}
