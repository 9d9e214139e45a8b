//! Initramfs archives of guests, each fitting one kernel because it carries that kernel's modules.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache;
use crate::cpio::Archive;
use crate::debian::{self, Suite};
use crate::images::KernelFiles;
use crate::programs::Program;

/// What the kernel runs when the host asks for the guest's end.
const POWER: [&str; 2] = ["sbin/poweroff", "sbin/reboot"];

const INIT: &[u8] = include_bytes!("../../images/guest/init");
const DEBIAN_INIT: &[u8] = include_bytes!("../../images/debian/init");

/// A guest of busybox that boots, counts seconds and answers pings: the smallest thing that is alive.
///
/// # Errors
/// If packages cannot be had or the cache not be written.
pub fn busybox(kernel: &KernelFiles) -> Result<PathBuf> {
    with_busybox("guest-busybox", INIT, kernel, &kernel.modules())
}

/// Busybox that mounts the Debian root on the guest's first disk and starts what is there.
///
/// # Errors
/// If packages cannot be had or the cache not be written.
pub fn debian(kernel: &KernelFiles) -> Result<PathBuf> {
    with_busybox("guest-debian", DEBIAN_INIT, kernel, &kernel.root_modules())
}

fn with_busybox(name: &str, init: &[u8], kernel: &KernelFiles, modules: &Path) -> Result<PathBuf> {
    let packages = debian::packages(Suite::Bookworm, &["busybox-static".to_owned()])?;
    let manifest = serde_json::to_vec_pretty(&packages)?;
    let kernel_key = kernel.key();
    let key = cache::key([manifest.as_slice(), kernel_key.as_bytes(), init]);
    let folder = cache::entry(name, &key, |folder| {
        let root = folder.join("root");
        let only: Vec<_> = packages
            .iter()
            .filter(|package| package.name() == "busybox-static")
            .cloned()
            .collect();
        debian::unpack(&only, &root)?;
        let mut archive = start(&folder.join("initrd"))?;
        archive.file("bin/busybox", 0o755, &fs::read(root.join("bin/busybox"))?)?;
        archive.file("init", 0o755, init)?;
        add_modules(&mut archive, modules)?;
        archive.finish()?;
        cache::remove(&root)
    })?;
    Ok(folder.join("initrd"))
}

/// The guest workload as process 1, without anything else.
///
/// # Errors
/// If the program does not build or the cache cannot be written.
pub fn workload(kernel: &KernelFiles) -> Result<PathBuf> {
    let program = Program::Workload.build()?;
    let (hash, kernel_key) = (cache::sha256(&program)?, kernel.key());
    let key = cache::key([
        hash.as_bytes(),
        kernel_key.as_bytes(),
        POWER.concat().as_bytes(),
    ]);
    let folder = cache::entry("guest-workload", &key, |folder| {
        let mut archive = start(&folder.join("initrd"))?;
        archive.file("init", 0o755, &fs::read(&program)?)?;
        for name in POWER {
            archive.link(name, "/init")?;
        }
        add_modules(&mut archive, &kernel.modules())?;
        archive.finish().map(drop)
    })?;
    Ok(folder.join("initrd"))
}

/// An archive with the console that process 1 begins with.
fn start(path: &Path) -> Result<Archive<BufWriter<File>>> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    archive.device("dev/console", 5, 1)?;
    archive.device("dev/null", 1, 3)?;
    Ok(archive)
}

/// The kernel's modules and their load order, in `/modules`.
fn add_modules(archive: &mut Archive<BufWriter<File>>, modules: &Path) -> Result<()> {
    archive.folder("modules")?;
    archive.tree_as(modules, "modules")
}
