//! A host just after its first boot: made once, then every host starts from it within seconds.
//!
//! The snapshot is a file with the machine's memory and a small one with the rest of its state.  Hosts
//! map the memory file privately, so any number of them start from it without copying.  It fits only
//! the machine arguments, image and programs that it was made with; all of them are in its key.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use crate::cpio::Archive;
use crate::images::{Dom0, Xen};
use crate::machine::{self, Machine, Memory, Plan, Shape};
use crate::tools::Tools;
use crate::{cache, clock, paths, progress};

const INIT: &[u8] = include_bytes!("../../images/dom0/init");
const XL_CONF: &[u8] = include_bytes!("../../images/dom0/xl.conf");
/// The agent by its sources: the binary differs from clone to clone.
const AGENT: [&[u8]; 2] = [
    include_bytes!("../agent/src/main.rs"),
    include_bytes!("../agent/src/lib.rs"),
];
/// Longest time from power-on to an answer of the agent.
const BOOT: Duration = Duration::from_secs(300);
/// Snapshots that nobody started from for this long are removed when another is made.
const STALE: Duration = Duration::from_secs(3 * 24 * 3600);

/// A snapshot in the cache.
#[derive(Clone, Debug)]
pub struct Snapshot {
    folder: PathBuf,
    dom0: Dom0,
}

impl Snapshot {
    /// Find the snapshot of such a host, or boot one and take it.
    ///
    /// # Errors
    /// If an image cannot be made or the host does not boot.
    pub fn get(xen: Xen, shape: Shape, tools: &Tools) -> Result<Self> {
        let dom0 = Dom0::get(xen, tools)?;
        let machine = machine::fingerprint(shape);
        let clock = clock::machine_key();
        let (dom0_key, tools_key) = (dom0.key(), tools.key());
        let parts = [
            machine.as_bytes(),
            clock.as_bytes(),
            dom0_key.as_bytes(),
            tools_key.as_bytes(),
            INIT,
            XL_CONF,
            AGENT[0],
            AGENT[1],
        ];
        let name = format!("host-{}", xen.version());
        let folder = cache::entry(&name, &cache::key(parts), |folder| {
            remove_stale(&name)?;
            let step = progress::step(format!("Xen {}: first boot of a host", xen.version()));
            make(folder, shape, &dom0, tools)?;
            step.done("snapshot taken");
            Ok(())
        })?;
        // For `remove_stale`; a read-only cache is none of our business.
        let _ = File::create(folder.join("used"));
        Ok(Self { folder, dom0 })
    }

    /// The memory's file.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.folder.join("memory")
    }

    /// The state's file.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The image that the host was booted from.
    #[must_use]
    pub fn dom0(&self) -> &Dom0 {
        &self.dom0
    }
}

fn make(folder: &Path, shape: Shape, dom0: &Dom0, tools: &Tools) -> Result<()> {
    let initrd = folder.join("initrd");
    write_initrd(dom0, &initrd)?;
    let memory = folder.join("memory");
    let plan = Plan {
        name: "snapshot",
        shape,
        dom0,
        initrd: Some(&initrd),
        memory: Memory::Into(&memory),
        incoming: false,
        folder,
        shared_disk: &folder.join("shared.img"),
        lan: None,
    };
    let mut machine = plan.start(tools)?;
    machine.serial.wait_for("init: ready", BOOT)?;
    machine.channel.hello(BOOT)?;
    let xl = machine.channel.start(&["xl", "list"])?.wait(BOOT)?;
    ensure!(
        xl.code == 0,
        "xl does not work on the new host: {}",
        xl.stderr
    );
    machine.save_state(&folder.join("state"))?;
    machine.kill();
    for file in [
        "initrd",
        "window.img",
        "disk.img",
        "shared.img",
        "empty",
        "qemu.out",
    ] {
        let _ = fs::remove_file(folder.join(file));
    }
    Ok(())
}

/// Wait until a machine that was switched on has its toolstack up.
///
/// # Errors
/// If it does not get there; the error shows the end of its console.
pub fn wait_until_ready(machine: &Machine) -> Result<()> {
    let said = machine.serial.wait_for("init: (ready|broken)", BOOT)?;
    ensure!(
        said == "init: ready",
        "the toolstack of a new host does not work: {}",
        machine.serial.text()
    );
    Ok(())
}

/// The whole initramfs of a host: the packages' part, then ours over it.
///
/// # Errors
/// If the agent cannot be built or the file not be written.
pub fn write_initrd(dom0: &Dom0, to: &Path) -> Result<()> {
    let mut out = BufWriter::new(File::create(to)?);
    std::io::copy(&mut File::open(dom0.root())?, &mut out)?;
    let mut archive = Archive::new(out);
    archive.file("init", 0o755, INIT)?;
    archive.file("etc/xen/xl.conf", 0o644, XL_CONF)?;
    archive.file(
        "usr/lib/unmoved/lab-agent",
        0o755,
        &fs::read(build_agent()?)?,
    )?;
    archive.finish()?.flush()?;
    Ok(())
}

/// Build the agent as a static program, so that it runs on any dom0.
fn build_agent() -> Result<PathBuf> {
    build_static("unmoved-lab-agent")
}

/// Build the program of one of the workspace's packages statically.
///
/// # Errors
/// If cargo cannot.
pub fn build_static(package: &str) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let folder = paths::target().join("static");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(paths::workspace())
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args(["build", "--quiet", "--release", "--target", TARGET])
        .args(["--package", package, "--target-dir"])
        .arg(&folder)
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "{package} does not build: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(folder.join(TARGET).join("release").join(package))
}

fn remove_stale(name: &str) -> Result<()> {
    for entry in fs::read_dir(paths::cache()?)?.flatten() {
        let used = entry.path().join("used");
        let ours = entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{name}-"));
        let age = fs::metadata(used)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        if ours && age.is_some_and(|age| age > STALE) {
            cache::remove(&entry.path())?;
        }
    }
    Ok(())
}
