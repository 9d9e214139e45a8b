//! A host just after its first boot: made once, then every host starts from it within seconds.
//!
//! QEMU's snapshot is a file with the machine's memory and a small one with the rest of its state.  Hosts
//! map the memory file privately, so any number of them start from it without copying.  Bochs's is a folder
//! that it reads when it starts.  A snapshot fits only the machine arguments, image and programs that it was
//! made with; all of them are in its key.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::fs::FallocateFlags;

use crate::cpio::Archive;
use crate::images::{Dom0, Xen};
use crate::machine::{self, Kind, Machine, Origin, Plan, Shape};
use crate::programs::Program;
use crate::tools::Tools;
use crate::{cache, clock, progress};

const INIT: &[u8] = include_bytes!("../../images/dom0/init");
const XL_CONF: &[u8] = include_bytes!("../../images/dom0/xl.conf");
/// The agent by its sources: the binary differs from clone to clone.
const AGENT: [&[u8]; 2] = [
    include_bytes!("../agent/src/main.rs"),
    include_bytes!("../agent/src/lib.rs"),
];
/// Longest time from power-on to an answer of the agent, in QEMU.
const BOOT: Duration = Duration::from_secs(300);

/// What is given back at once, if it is all zero.
const PIECE: u64 = 1 << 16;

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
        let (clock, tools_key) = match shape.kind {
            Kind::Qemu => (clock::machine_key(), tools.key()),
            // Its clock counts instructions.
            Kind::Bochs(_) => (String::new(), machine::bochs_tools()?.key()),
        };
        let dom0_key = dom0.key();
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
        let (name, title) = match shape.kind {
            Kind::Qemu => (
                format!("host-{}", xen.version()),
                format!("Xen {}: first boot of a host", xen.version()),
            ),
            Kind::Bochs(_) => (
                format!("host-{}-{}", shape.kind.name(), xen.version()),
                format!(
                    "Xen {}: first boot of a host on the machine '{}'",
                    xen.version(),
                    shape.kind.name()
                ),
            ),
        };
        let folder = cache::entry(&name, &cache::key(parts), |folder| {
            let step = progress::step(title);
            make(folder, shape, &dom0, tools)?;
            step.done("snapshot taken");
            Ok(())
        })?;
        Ok(Self { folder, dom0 })
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
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
    let plan = Plan {
        name: "snapshot",
        shape,
        dom0,
        origin: Origin::First(&initrd, folder),
        folder,
        shared_disk: &folder.join("shared.img"),
        lan: None,
    };
    let mut machine = Machine::start(plan, tools)?;
    wait_until_ready(&machine, shape)?;
    let limit = BOOT * shape.kind.patience();
    machine.channel.hello(limit)?;
    let xl = machine.channel.start(&["xl", "list"])?.wait(limit)?;
    ensure!(
        xl.code == 0,
        "xl does not work on the new host: {}",
        xl.stderr
    );
    machine.save(folder)?;
    machine.kill();
    dig_holes(&machine::memory_file(shape.kind, folder)?)?;
    for file in [
        "initrd",
        "window.img",
        "disk.img",
        "shared.img",
        "disc.img",
        "window.img.lock",
        "disk.img.lock",
        "shared.img.lock",
        "empty",
        "qemu.out",
    ] {
        let _ = fs::remove_file(folder.join(file));
    }
    Ok(())
}

/// Gives what is all zero in a file back to the disk: Xen clears all memory when it boots, as guests may rely
/// on, and most of it stays so.
fn dig_holes(path: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut piece = vec![0; PIECE as usize];
    for start in (0..length).step_by(PIECE as usize) {
        let piece = &mut piece[..PIECE.min(length - start) as usize];
        file.read_exact_at(piece, start)?;
        if piece.iter().all(|byte| *byte == 0) {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, how, start, piece.len() as u64)?;
        }
    }
    Ok(())
}

/// Wait until a machine that was switched on has its toolstack up.
///
/// # Errors
/// If it does not get there; the error shows the end of its console.
pub fn wait_until_ready(machine: &Machine, shape: Shape) -> Result<()> {
    let limit = BOOT * shape.kind.patience();
    let said = machine.serial.wait_for("init: (ready|broken)", limit)?;
    ensure!(
        said == "init: ready",
        "the toolstack of a new host does not work: {}",
        machine.serial.text()
    );
    // What is said to it before is lost on a serial line.
    machine
        .serial
        .wait_for("lab agent: listens", limit)
        .map(drop)
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
        &fs::read(Program::Agent.build()?)?,
    )?;
    archive.finish()?.flush()?;
    Ok(())
}
