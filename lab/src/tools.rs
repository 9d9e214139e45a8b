//! QEMU 7.2 and a few small programs, unpacked from Debian 12 into the cache and run from there.
//!
//! Nothing is installed, so what the machine has (a newer QEMU, none, another libc) does not matter:
//! the programs run with their own dynamic linker and libraries.  Version 7.2 it must be: newer ones
//! run a Xen inside the emulated machine wrongly, see `lab/README.md`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache;
use crate::debian::{self, Suite};

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
        Self::find("tools", &wanted, Self::check_qemu)
    }

    /// Programs of other Debian 12 packages, in the cache under `name`.
    ///
    /// # Errors
    /// If they cannot be had or the cache not be written.
    pub fn unpack(name: &str, wanted: &[String]) -> Result<Self> {
        Self::find(name, wanted, |_| Ok(()))
    }

    fn find(name: &str, wanted: &[String], check: impl Fn(&Self) -> Result<()>) -> Result<Self> {
        let packages = debian::packages(Suite::Bookworm, wanted)?;
        let manifest = serde_json::to_vec_pretty(&packages)?;
        let root = cache::entry(name, &cache::key([manifest.as_slice()]), |folder| {
            debian::unpack(&packages, folder)?;
            std::fs::write(folder.join("manifest.json"), &manifest)?;
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
    use super::check_version;

    #[test]
    fn a_newer_qemu_is_refused_in_one_sentence() {
        assert!(check_version("QEMU emulator version 7.2.22 (Debian 1:7.2)").is_ok());
        let error = check_version("QEMU emulator version 10.0.2").unwrap_err();
        assert!(error.to_string().starts_with("QEMU 10.0.2 cannot be used"));
        assert!(!error.to_string().contains('\n'));
    }
}
