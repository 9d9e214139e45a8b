//! QEMU 7.2, Bochs and a few small programs, unpacked from Debian 12 into the cache and run from there.
//!
//! Nothing is installed, so what the machine has (a newer QEMU, none, another libc) does not matter:
//! the programs run with their own dynamic linker and libraries.  Version 7.2 it must be: newer ones
//! run a Xen inside the emulated machine wrongly, see `lab/README.md`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache;
use crate::debian;
use crate::suite::Suite;

const PACKAGES: &str = include_str!("../../images/tools/packages");
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The unpacked programs.
#[derive(Clone, Debug)]
pub struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Find them, or download and unpack them.
    ///
    /// # Errors
    /// If that fails, or QEMU is not the version that can be used.
    pub fn get() -> Result<Self> {
        let wanted: Vec<String> = debian::lines(PACKAGES).map(str::to_owned).collect();
        Self::find("tools", &wanted, &[], Self::check_qemu)
    }

    /// Programs of other Debian 12 packages, in the cache under `name`.
    ///
    /// # Errors
    /// If they cannot be had or the cache not be written.
    pub fn unpack(name: &str, wanted: &[String]) -> Result<Self> {
        Self::find(name, wanted, &[], |_| Ok(()))
    }

    /// As [`Tools::unpack`], but only what is in these files and folders of the packages, by path prefix.
    ///
    /// # Errors
    /// As of [`Tools::unpack`].
    pub fn unpack_parts(name: &str, wanted: &[String], keep: &[String]) -> Result<Self> {
        Self::find(name, wanted, keep, |_| Ok(()))
    }

    fn find(
        name: &str,
        wanted: &[String],
        keep: &[String],
        check: impl Fn(&Self) -> Result<()>,
    ) -> Result<Self> {
        let packages = debian::packages(Suite::Bookworm, wanted)?;
        let manifest = serde_json::to_vec_pretty(&packages)?;
        let kept = keep.join("\n");
        let mut parts = vec![manifest.as_slice()];
        if !keep.is_empty() {
            parts.push(kept.as_bytes());
        }
        let root = cache::entry(name, &cache::key(parts), |folder| {
            debian::unpack(&packages, folder)?;
            if !keep.is_empty() {
                prune(folder, "", keep)?;
            }
            fs::write(folder.join("manifest.json"), &manifest)?;
            check(&Self {
                root: folder.to_owned(),
            })
        })?;
        Ok(Self { root })
    }

    /// A command that runs one of the programs; all of them are in `usr/bin`.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let libraries = self.root.join(LIBRARIES);
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        let path = libraries.as_os_str().to_owned();
        command
            .arg("--library-path")
            .arg(path)
            .arg(self.root.join("usr/bin").join(program));
        command
    }

    /// The command that runs QEMU, with its modules and firmware.
    #[must_use]
    pub fn qemu(&self) -> Command {
        let mut command = self.command("qemu-system-x86_64");
        command.env("QEMU_MODULE_DIR", self.root.join(LIBRARIES).join("qemu"));
        for firmware in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(self.root.join(firmware));
        }
        command
    }

    /// The command that runs Bochs, with its parts.
    #[must_use]
    pub fn bochs(&self) -> Command {
        let mut command = self.command("bochs-bin");
        let parts = self.root.join(LIBRARIES).join("bochs/plugins");
        command
            .env("LTDL_LIBRARY_PATH", parts)
            .env("BXSHARE", self.path("usr/share/bochs"))
            .env("TERM", "vt100")
            .env("TERMINFO", self.path("usr/lib/terminfo"));
        command
    }

    /// Where a file or folder of the packages is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Which build this is, for keys of what was made with it.
    #[must_use]
    pub fn key(&self) -> String {
        self.root
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    fn check_qemu(&self) -> Result<()> {
        let output = self
            .qemu()
            .arg("--version")
            .output()
            .context("cannot run the unpacked QEMU")?;
        check_version(&String::from_utf8_lossy(&output.stdout))
    }
}

/// Remove all below `root` but what begins with one of the prefixes; links stay, and so do folders on the way.
fn prune(root: &Path, name: &str, keep: &[String]) -> Result<()> {
    for entry in fs::read_dir(root.join(name))? {
        let entry = entry?;
        let leaf = entry.file_name().to_string_lossy().into_owned();
        let path = match name {
            "" => leaf,
            _ => format!("{name}/{leaf}"),
        };
        if keep.iter().any(|prefix| path.starts_with(prefix)) {
            continue;
        }
        let kind = entry.file_type()?;
        let is_on_the_way = keep
            .iter()
            .any(|prefix| prefix.starts_with(&format!("{path}/")));
        if kind.is_dir() && is_on_the_way {
            prune(root, &path, keep)?;
        } else if kind.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if !kind.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Accept QEMU 7.2 only.
fn check_version(text: &str) -> Result<()> {
    let version = text
        .split_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1)
        .unwrap_or("unknown");
    ensure!(
        version.starts_with("7.2"),
        "QEMU {version} cannot be used, the lab needs 7.2: later ones do not report the page faults of nested guests, see lab/README.md"
    );
    Ok(())
}

/// Decompress `data` with one of the programs (`xz -dc`, `lz4 -dc`, …).
///
/// # Errors
/// If the program cannot be run or does not like the data.
pub fn filter(mut command: Command, data: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let mut input = child.stdin.take().expect("asked for above");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that stops reading says why through its exit status.
            let _ = input.write_all(data);
        });
        child.wait_with_output()
    })?;
    ensure!(
        output.status.success(),
        "a decompressor failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{check_version, prune};

    #[test]
    fn only_what_is_kept_stays() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["usr/bin", "usr/share/bochs", "usr/share/icons", "etc"] {
            fs::create_dir_all(root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), "").unwrap();
        }
        let keep = ["usr/bin/fi", "usr/share/bochs"].map(str::to_owned);
        prune(root, "", &keep).unwrap();
        for (name, is_there) in [
            ("usr/bin/file", true),
            ("usr/share/bochs/file", true),
            ("usr/share/icons", false),
            ("etc", false),
        ] {
            assert_eq!(root.join(name).exists(), is_there, "{name}");
        }
    }

    #[test]
    fn a_newer_qemu_is_refused_in_one_sentence() {
        assert!(check_version("QEMU emulator version 7.2.22 (Debian 1:7.2)").is_ok());
        let error = check_version("QEMU emulator version 10.0.2").unwrap_err();
        assert!(error.to_string().starts_with("QEMU 10.0.2 cannot be used"));
        assert!(!error.to_string().contains('\n'));
    }
}
