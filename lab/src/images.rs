//! What the lab's machines are made of: dom0 roots, hypervisors, guest kernels, each a cache entry.
//!
//! Recipes are in `images/`; they are compiled in, so a changed recipe gives another key and another
//! image.  Beside each image lies `manifest.json`, the packages that it was made from.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::debian::{self, Package};
use crate::suite::Suite;
use crate::tools::{Tools, filter};
use crate::{bzimage, cache, modules, progress};

const PACKAGES: &str = include_str!("../../images/dom0/packages");
const DROP: &str = include_str!("../../images/dom0/drop");
const MODULES: &str = include_str!("../../images/dom0/modules");
/// What a guest loads on its way to its devices, and what on its way to a Debian root.
const GUEST_MODULES: [(&str, &str); 2] = [
    ("modules", include_str!("../../images/guest/modules")),
    ("root-modules", include_str!("../../images/debian/modules")),
];
/// Bumped when this file makes other images from the same recipes.
const MAKER: &[u8] = b"1";

/// Which Xen a host runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Xen {
    /// Xen 4.17 with the dom0 of Debian 12.
    #[default]
    V4_17,
    /// Xen 4.20 with the dom0 of Debian 13.
    V4_20,
}

impl Xen {
    /// Both, oldest first.
    pub const ALL: [Self; 2] = [Self::V4_17, Self::V4_20];

    /// As in package names and folders.
    #[must_use]
    pub fn version(self) -> &'static str {
        match self {
            Self::V4_17 => "4.17",
            Self::V4_20 => "4.20",
        }
    }

    fn suite(self) -> Suite {
        match self {
            Self::V4_17 => Suite::Bookworm,
            Self::V4_20 => Suite::Trixie,
        }
    }
}

impl std::str::FromStr for Xen {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|xen| xen.version() == text)
            .with_context(|| format!("there is no host image with Xen {text}: choose 4.17 or 4.20"))
    }
}

/// A dom0: the files that QEMU loads.
#[derive(Clone, Debug)]
pub struct Dom0 {
    folder: PathBuf,
}

impl Dom0 {
    /// Find the image, or make it.
    ///
    /// # Errors
    /// If packages cannot be had or the cache not be written.
    pub fn get(xen: Xen, tools: &Tools) -> Result<Self> {
        let wanted: Vec<String> = debian::lines(PACKAGES)
            .map(|line| line.replace("{xen}", xen.version()))
            .collect();
        let packages = debian::packages(xen.suite(), &wanted)?;
        let manifest = serde_json::to_vec_pretty(&packages)?;
        let parts = [MAKER, &manifest, DROP.as_bytes(), MODULES.as_bytes()];
        let name = format!("dom0-{}", xen.version());
        let folder = cache::entry(&name, &cache::key(parts), |folder| {
            let step = progress::step(format!("Xen {}: making the dom0 image", xen.version()));
            make_dom0(folder, xen, &packages, tools)?;
            fs::write(folder.join("manifest.json"), &manifest)?;
            step.done(&folder_size(folder));
            Ok(())
        })?;
        Ok(Self { folder })
    }

    /// The hypervisor, unpacked.
    #[must_use]
    pub fn xen(&self) -> PathBuf {
        self.folder.join("xen")
    }

    /// The dom0 kernel, unpacked.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The packages' part of dom0's root, as an initramfs.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.cpio")
    }

    /// Key of the image.
    #[must_use]
    pub fn key(&self) -> String {
        self.folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

fn make_dom0(folder: &Path, xen: Xen, packages: &[Package], tools: &Tools) -> Result<()> {
    let root = folder.join("root");
    debian::unpack(packages, &root)?;
    let boot = root.join("boot");
    let kernel = bzimage::unpack(&fs::read(find(&boot, "vmlinuz-")?)?, tools)?;
    fs::write(folder.join("vmlinux"), kernel)?;
    let mut gzip = std::process::Command::new("gzip");
    gzip.arg("-dc");
    let packed = fs::read(boot.join(format!("xen-{}-amd64.gz", xen.version())))?;
    fs::write(folder.join("xen"), filter(gzip, &packed)?)?;

    let names: Vec<&str> = debian::lines(MODULES).collect();
    let modules = modules::pick(&root, &names, tools)?;
    let drop: Vec<&str> = debian::lines(DROP).collect();
    let keep = |path: &str| !drop.iter().any(|prefix| path.starts_with(prefix));
    let mut archive = Archive::new(BufWriter::new(File::create(folder.join("root.cpio"))?));
    archive.tree(&root, &keep)?;
    for name in ["dev", "proc", "sys", "tmp", "run", "root"] {
        archive.folder(name)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.device("dev/null", 1, 3)?;
    let mut order = String::new();
    for module in modules {
        archive.file(
            &format!("usr/lib/lab/{}", module.file),
            0o644,
            &module.content,
        )?;
        order += &module.file;
        order.push('\n');
    }
    archive.file("usr/lib/lab/order", 0o644, order.as_bytes())?;
    archive.finish()?;
    cache::remove(&root)
}

/// A kernel for guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKernel {
    /// Debian 12's cloud kernel, Linux 6.1.
    Debian12,
    /// Debian 13's cloud kernel, Linux 6.12.
    Debian13,
    /// GRUB for Xen PV: a boot loader, a guest that never suspends.
    Grub,
}

impl GuestKernel {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Debian12, Self::Debian13, Self::Grub];

    /// As on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Debian12 => "deb12",
            Self::Debian13 => "deb13",
            Self::Grub => "grub",
        }
    }

    /// Find its files, or make them.
    ///
    /// # Errors
    /// If packages cannot be had or the cache not be written.
    pub fn get(self, tools: &Tools) -> Result<KernelFiles> {
        let (suite, package) = match self {
            Self::Debian12 => (Suite::Bookworm, "linux-image-cloud-amd64"),
            Self::Debian13 => (Suite::Trixie, "linux-image-cloud-amd64"),
            Self::Grub => (Suite::Bookworm, "grub-xen-host"),
        };
        let packages = debian::packages(suite, &[package.to_owned()])?;
        let manifest = serde_json::to_vec_pretty(&packages)?;
        let name = format!("kernel-{}", self.name());
        let [(_, devices), (_, root)] = GUEST_MODULES;
        let key = cache::key([MAKER, &manifest, devices.as_bytes(), root.as_bytes()]);
        let folder = cache::entry(&name, &key, |folder| {
            let step = progress::step(format!("guest kernel {}: unpacking", self.name()));
            let root = folder.join("root");
            // Dependencies of a kernel are what makes its initramfs: not wanted here.
            let wanted = if self == Self::Grub {
                "grub-xen-host"
            } else {
                "linux-image-6"
            };
            let packages: Vec<Package> = packages
                .iter()
                .filter(|package| package.name().starts_with(wanted))
                .cloned()
                .collect();
            debian::unpack(&packages, &root)?;
            if self == Self::Grub {
                let loader = root.join("usr/lib/grub-xen/grub-x86_64-xen.bin");
                fs::copy(&loader, folder.join("vmlinux"))
                    .with_context(|| format!("{} is not in its package", loader.display()))?;
            } else {
                let packed = fs::read(find(&root.join("boot"), "vmlinuz-")?)?;
                fs::write(folder.join("vmlinux"), bzimage::unpack(&packed, tools)?)?;
                fs::write(folder.join("vmlinuz"), packed)?;
                for (name, list) in GUEST_MODULES {
                    keep_modules(&root, list, &folder.join(name), tools)?;
                }
            }
            cache::remove(&root)?;
            fs::write(folder.join("manifest.json"), &manifest)?;
            step.done(&folder_size(folder));
            Ok(())
        })?;
        Ok(KernelFiles { folder })
    }
}

/// Keep the modules of a list in `folder`, with their load order.
fn keep_modules(root: &Path, list: &str, folder: &Path, tools: &Tools) -> Result<()> {
    let names: Vec<&str> = debian::lines(list).collect();
    let mut order = String::new();
    fs::create_dir(folder)?;
    for module in modules::pick(root, &names, tools)? {
        fs::write(folder.join(&module.file), &module.content)?;
        order += &module.file;
        order.push('\n');
    }
    Ok(fs::write(folder.join("order"), order)?)
}

impl std::str::FromStr for GuestKernel {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kernel| kernel.name() == text)
            .with_context(|| format!("there is no guest kernel '{text}': choose deb12, deb13, grub or the path of a file"))
    }
}

/// The files of a guest kernel.
#[derive(Clone, Debug)]
pub struct KernelFiles {
    folder: PathBuf,
}

impl KernelFiles {
    /// The kernel as ELF: boots at once.
    #[must_use]
    pub fn unpacked(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The bzImage, as distributed (Linux only).
    #[must_use]
    pub fn packed(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// Key of these files.
    #[must_use]
    pub fn key(&self) -> String {
        self.folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// The modules that a guest loads, in the order of the file `order` there (Linux only).
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.folder.join("modules")
    }

    /// The modules that a guest with a Debian root loads, likewise.
    #[must_use]
    pub fn root_modules(&self) -> PathBuf {
        self.folder.join("root-modules")
    }
}

/// The one file in `folder` whose name begins with `prefix`.
fn find(folder: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(folder)
        .with_context(|| format!("{} is not in the packages", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .with_context(|| format!("no {prefix}… in {}", folder.display()))
}

/// Size of the files directly in `folder`, for people.
pub(crate) fn folder_size(folder: &Path) -> String {
    let bytes: u64 = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.len())
        .sum();
    format!("{} MiB", bytes >> 20)
}
