//! Initramfs archives of guests, each fitting one kernel because it carries that kernel's modules.
//!
//! A kernel from elsewhere gets one without modules: what it needs has to be built in.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache;
use crate::cpio::Archive;
use crate::debian;
use crate::images::KernelFiles;
use crate::programs::Program;
use crate::suite::Suite;

/// What the kernel runs when the host asks for the guest's end.
const POWER: [&str; 2] = ["sbin/poweroff", "sbin/reboot"];

const INIT: &[u8] = include_bytes!("../../images/guest/init");
const DEBIAN_INIT: &[u8] = include_bytes!("../../images/debian/init");

/// A guest of busybox that boots, counts seconds and answers pings: the smallest thing that is alive.
///
/// # Errors
/// If packages cannot be had or the cache not be written.
pub fn busybox(kernel: &KernelFiles) -> Result<PathBuf> {
    with_busybox(
        "guest-busybox",
        INIT,
        Some((&kernel.key(), &kernel.modules())),
    )
}

/// The same for a kernel that needs no modules.
///
/// # Errors
/// If packages cannot be had or the cache not be written.
pub fn busybox_alone() -> Result<PathBuf> {
    with_busybox("guest-busybox", INIT, None)
}

/// Busybox that mounts the Debian root on the guest's first disk and starts what is there.
///
/// # Errors
/// If packages cannot be had or the cache not be written.
pub fn debian(kernel: &KernelFiles) -> Result<PathBuf> {
    let modules = (kernel.key(), kernel.root_modules());
    with_busybox("guest-debian", DEBIAN_INIT, Some((&modules.0, &modules.1)))
}

/// A kernel's key and its modules, if it has any.
type Modules<'a> = Option<(&'a str, &'a Path)>;

/// What stands for the kernel in an archive's key.
fn kernel_key<'a>(modules: Modules<'a>) -> &'a str {
    modules.map_or("", |(key, _)| key)
}

fn with_busybox(name: &str, init: &[u8], modules: Modules<'_>) -> Result<PathBuf> {
    let packages = debian::packages(Suite::Bookworm, &["busybox-static".to_owned()])?;
    let manifest = serde_json::to_vec_pretty(&packages)?;
    let key = cache::key([manifest.as_slice(), kernel_key(modules).as_bytes(), init]);
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
    with_workload(Some((&kernel.key(), &kernel.modules())))
}

/// The same for a kernel that needs no modules.
///
/// # Errors
/// If the program does not build or the cache cannot be written.
pub fn workload_alone() -> Result<PathBuf> {
    with_workload(None)
}

fn with_workload(modules: Modules<'_>) -> Result<PathBuf> {
    let program = Program::Workload.build()?;
    let hash = cache::sha256(&program)?;
    let key = cache::key([
        hash.as_bytes(),
        kernel_key(modules).as_bytes(),
        POWER.concat().as_bytes(),
    ]);
    let folder = cache::entry("guest-workload", &key, |folder| {
        let mut archive = start(&folder.join("initrd"))?;
        archive.file("init", 0o755, &fs::read(&program)?)?;
        for name in POWER {
            archive.link(name, "/init")?;
        }
        add_modules(&mut archive, modules)?;
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

/// The kernel's modules and their load order, in `/modules`; without any, nothing is to be loaded.
fn add_modules(archive: &mut Archive<impl Write>, modules: Modules<'_>) -> Result<()> {
    archive.folder("modules")?;
    match modules {
        Some((_, folder)) => archive.tree_as(folder, "modules"),
        None => archive.file("modules/order", 0o644, b""),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{add_modules, kernel_key};
    use crate::cpio::Archive;

    #[test]
    fn without_modules_the_order_is_there_and_empty() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("order"), "xen-netfront.ko\n").unwrap();
        let made = [None, Some(("key", folder.path()))].map(|modules| {
            let mut archive = Archive::new(Vec::new());
            add_modules(&mut archive, modules).unwrap();
            String::from_utf8(archive.finish().unwrap()).unwrap()
        });
        assert!(
            made.iter()
                .all(|archive| archive.contains("modules/order\0"))
        );
        assert!(!made[0].contains("xen-netfront") && made[1].contains("xen-netfront"));
        // Another kernel's archive is never taken for that of one without.
        assert_ne!(kernel_key(None), kernel_key(Some(("key", folder.path()))));
    }
}
