//! What a machine is to be, whichever emulator becomes it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use unmoved_lab_agent::WINDOW_BYTES;

use super::Kind;
use crate::images::Dom0;

/// Sizes of the disk that all hosts of a lab share, and of the one that each host has to itself.
fn disk_bytes(kind: Kind) -> [u64; 2] {
    match kind {
        Kind::Qemu => [1 << 30, 2 << 30],
        // It writes all of them when it saves its state.
        Kind::Bochs(_) => [256 << 20, 512 << 20],
    }
}

/// The file of the disk that each host has to itself, in the machine's folder.
pub const PRIVATE_DISK: &str = "disk.img";
/// The file behind the window disk, in the machine's folder.
pub const WINDOW: &str = "window.img";

/// `eager-fpu` because a nested guest's first SSE instruction does not trap in QEMU 7.2 when CR0.TS is
/// set: with Xen's lazy switching, guests overwrite the XMM registers of dom0's processes.  No other
/// mitigation is on, here or in dom0: the emulators do not speculate, and each indirect branch costs more.
pub const XEN_ARGUMENTS: &str = "dom0_mem=640M,max:640M dom0_max_vcpus=1 loglvl=all guest_loglvl=all/all \
                             com1=115200,8n1 console=com1 conring_size=1m noreboot bootscrub=1 spec-ctrl=no,eager-fpu";
pub const DOM0_ARGUMENTS: &str = "console=hvc0 loglevel=4 mitigations=off rdinit=/init";

/// What can be chosen about a host's machine; part of the key of its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Emulator and processor.
    pub kind: Kind,
    /// RAM of the whole host, in MiB; dom0 takes 640 of them.
    pub memory_mib: u32,
    /// CPUs that Xen sees; QEMU runs each in a thread.
    pub cpus: u32,
}

impl Shape {
    /// The usual one of this kind.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        Self {
            kind,
            memory_mib: kind.usual_memory_mib(),
            cpus: 1,
        }
    }
}

impl Default for Shape {
    fn default() -> Self {
        Self::of(Kind::default())
    }
}

/// Where a machine begins.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// At power-on, with this initramfs.
    PowerOn(&'a Path),
    /// The same, and its snapshot is to be [saved](Machine::save) to this folder.
    First(&'a Path, &'a Path),
    /// Where the machine was whose snapshot is in this folder.
    Snapshot(&'a Path),
}

/// A machine to be started.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Name of the host, for messages.
    pub name: &'a str,
    /// Its shape.
    pub shape: Shape,
    /// Hypervisor and kernel.
    pub dom0: &'a Dom0,
    /// Where it begins.
    pub origin: Origin<'a>,
    /// Its folder, for logs and disks.
    pub folder: &'a Path,
    /// The disk that it shares with others.
    pub shared_disk: &'a Path,
    /// Its end of the LAN: a stream of frames, each after its length.
    pub lan: Option<OwnedFd>,
}

impl Plan<'_> {
    /// Make the files of its disks that are not there yet.
    pub(super) fn make_disks(&self) -> Result<()> {
        let [shared, private] = disk_bytes(self.shape.kind);
        disk(self.shared_disk, shared)?;
        disk(&self.folder.join(PRIVATE_DISK), private)?;
        disk(&self.folder.join(WINDOW), WINDOW_BYTES)
    }
}

/// What of a plan shapes a machine whatever its emulator, for the key of its snapshot.
pub(super) fn fingerprint(shape: Shape) -> String {
    format!(
        "{XEN_ARGUMENTS} {DOM0_ARGUMENTS} {:?} {WINDOW_BYTES}",
        disk_bytes(shape.kind)
    )
}

/// Make a sparse file of this size, unless it is there.
pub(super) fn disk(path: &Path, bytes: u64) -> Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    if file.metadata()?.len() != bytes {
        file.set_len(bytes)?;
    }
    Ok(())
}
