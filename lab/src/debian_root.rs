//! The root of a Debian 12 guest: a real distribution with an init of its own, and test programs.
//!
//! Packages are unpacked, never configured: that would need root on this machine.  The few files that
//! their scripts would have written come from `images/debian/overlay/`.  The root is a squashfs, which
//! any user can make with everything in it belonging to root; an initramfs puts a tmpfs over it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::debian::{self, Package};
use crate::guest::{GuestPlan, System};
use crate::images::{GuestKernel, folder_size};
use crate::suite::Suite;
use crate::tools::Tools;
use crate::{cache, initramfs, progress};

const PACKAGES: &str = include_str!("../../images/debian/packages");
const DROP: &str = include_str!("../../images/debian/drop");
const MASKED: &str = include_str!("../../images/debian/masked");
/// Bumped when this file makes another image from the same recipe.
const MAKER: &[u8] = b"1";
/// What makes a squashfs.
const SQUASHFS: &str = "squashfs-tools";

/// Files that the packages' scripts would have made: path, content.
const FILES: [(&str, &str); 10] = [
    (
        "etc/passwd",
        include_str!("../../images/debian/overlay/passwd"),
    ),
    (
        "etc/group",
        include_str!("../../images/debian/overlay/group"),
    ),
    (
        "etc/pam.d/common-auth",
        include_str!("../../images/debian/overlay/common-auth"),
    ),
    (
        "etc/pam.d/common-account",
        include_str!("../../images/debian/overlay/common-account"),
    ),
    (
        "etc/pam.d/common-password",
        include_str!("../../images/debian/overlay/common-password"),
    ),
    (
        "etc/pam.d/common-session",
        include_str!("../../images/debian/overlay/common-session"),
    ),
    (
        "etc/pam.d/common-session-noninteractive",
        include_str!("../../images/debian/overlay/common-session"),
    ),
    ("etc/hostname", "debian\n"),
    ("etc/fstab", ""),
    // A fixed one, or systemd takes each boot for the first and asks questions.
    ("etc/machine-id", "00000000000000000000000000000001\n"),
];

/// Links that the packages' scripts would have made: name, target.
const LINKS: [(&str, &str); 4] = [
    ("usr/bin/awk", "mawk"),
    ("usr/bin/which", "which.debianutils"),
    (
        "etc/systemd/system/default.target",
        "/usr/lib/systemd/system/multi-user.target",
    ),
    ("etc/mtab", "/proc/self/mounts"),
];

/// A Debian 12 root.
#[derive(Clone, Debug)]
pub struct DebianRoot {
    folder: PathBuf,
}

impl DebianRoot {
    /// Find the image, or make it.
    ///
    /// # Errors
    /// If packages cannot be had or the cache not be written.
    pub fn get() -> Result<Self> {
        let wanted: Vec<String> = debian::lines(PACKAGES).map(str::to_owned).collect();
        let packages = debian::packages(Suite::Bookworm, &wanted)?;
        let manifest = serde_json::to_vec_pretty(&packages)?;
        let mut parts = vec![MAKER, &manifest, DROP.as_bytes(), MASKED.as_bytes()];
        for (name, content) in FILES.iter().chain(&LINKS) {
            parts.extend([name.as_bytes(), content.as_bytes()]);
        }
        let key = cache::key(parts);
        let folder = cache::entry("debian-root", &key, |folder| {
            let step = progress::step("Debian 12: making a guest's root");
            make(folder, &packages)?;
            fs::write(folder.join("manifest.json"), &manifest)?;
            step.done(&folder_size(folder));
            Ok(())
        })?;
        Ok(Self { folder })
    }

    /// The squashfs: what a host's private disk (`/dev/vdb` there) is to begin with.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.folder.join("root.squashfs")
    }
}

fn make(folder: &Path, packages: &[Package]) -> Result<()> {
    let root = folder.join("root");
    debian::unpack(packages, &root)?;
    for prefix in debian::lines(DROP) {
        drop_prefix(&root, prefix)?;
    }
    for (name, content) in FILES {
        let path = root.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    let masked =
        debian::lines(MASKED).map(|unit| (format!("etc/systemd/system/{unit}"), "/dev/null"));
    let links = LINKS.map(|(name, target)| (name.to_owned(), target));
    for (name, target) in links.into_iter().chain(masked) {
        let path = root.join(name);
        if path.symlink_metadata().is_err() {
            symlink(target, &path).with_context(|| format!("cannot make {}", path.display()))?;
        }
    }
    squash(&root, &folder.join("root.squashfs"))?;
    cache::remove(&root)
}

/// Remove all below `root` whose path begins with `prefix`.
fn drop_prefix(root: &Path, prefix: &str) -> Result<()> {
    let (parent, leaf) = prefix.rsplit_once('/').unwrap_or(("", prefix));
    // `folder/` empties the folder and keeps it.
    for entry in fs::read_dir(root.join(parent))
        .into_iter()
        .flatten()
        .flatten()
    {
        if !entry.file_name().to_string_lossy().starts_with(leaf) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            cache::remove(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn squash(root: &Path, image: &Path) -> Result<()> {
    let tools = Tools::unpack(SQUASHFS, &[SQUASHFS.to_owned()])?;
    let output = tools
        .command("mksquashfs")
        .arg(root)
        .arg(image)
        // LZ4, because an emulated CPU unpacks it; no times, so that the same packages give the same bytes.
        .args([
            "-all-root",
            "-comp",
            "lz4",
            "-all-time",
            "0",
            "-mkfs-time",
            "0",
        ])
        .args(["-no-progress", "-quiet", "-no-xattrs", "-processors", "2"])
        .output()
        .context("cannot run mksquashfs")?;
    ensure!(
        output.status.success(),
        "mksquashfs failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

impl GuestPlan {
    /// A guest that boots Debian 12 to a login prompt (root, no password), on a host whose private disk
    /// begins with [`DebianRoot::image`].
    ///
    /// # Errors
    /// If packages cannot be had or the cache not be written.
    pub fn debian(name: &str, system: System, tools: &Tools) -> Result<Self> {
        let kernel = GuestKernel::Debian12.get(tools)?;
        let mut plan = Self::new(name, system, kernel.unpacked());
        plan.initrd = Some(initramfs::debian(&kernel)?);
        plan.arguments += " quiet";
        plan.memory_mib = 512;
        plan.disks.push("phy:/dev/vdb,xvda,r".to_owned());
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::drop_prefix;
    use std::fs;

    #[test]
    fn a_prefix_drops_files_and_folders_but_a_slash_keeps_the_folder() {
        let root = std::env::temp_dir().join(format!("drop-prefix-{}", std::process::id()));
        for folder in ["usr/dri/a", "usr/keep/b"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("usr/dribble"), "").unwrap();
        drop_prefix(&root, "usr/dri").unwrap();
        drop_prefix(&root, "usr/keep/").unwrap();
        drop_prefix(&root, "not/there").unwrap();
        assert!(!root.join("usr/dri").exists() && !root.join("usr/dribble").exists());
        assert!(root.join("usr/keep").exists() && !root.join("usr/keep/b").exists());
        fs::remove_dir_all(&root).unwrap();
    }
}
