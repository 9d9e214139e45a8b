//! The disc that a machine in Bochs boots from: GRUB, Xen, dom0's kernel and initramfs.
//!
//! Bochs takes no kernel from its command line, as QEMU does.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::images::Dom0;
use crate::machine::plan::{DOM0_ARGUMENTS, XEN_ARGUMENTS};
use crate::tools::Tools;

/// What Xen is told here only.  Bochs 2.7 loses the upper halves of the YMM registers in XSAVE's compacted
/// format, which Xen and Linux use where they find it: the two instructions that write it are hidden from
/// Xen, and so from dom0 and the guests.  XSAVE and AVX stay.
pub(super) const XEN_ONLY_HERE: &str = "cpuid=no-xsavec,no-xsaves";

/// What the loader can do: read the disc, load Xen.
const MODULES: [&str; 4] = ["biosdisk", "iso9660", "multiboot2", "boot"];

/// Write it.
pub fn write(to: &Path, dom0: &Dom0, initrd: &Path, tools: &Tools) -> Result<()> {
    let [script, loader] = ["cfg", "loader"].map(|end| to.with_extension(end));
    fs::write(
        &script,
        format!(
            "multiboot2 /xen {XEN_ARGUMENTS} {XEN_ONLY_HERE}\n\
             module2 /kernel {DOM0_ARGUMENTS}\nmodule2 /initrd\nboot\n"
        ),
    )?;
    let mut grub = tools.command("grub-mkimage");
    grub.arg("-d").arg(tools.path("usr/lib/grub/i386-pc"));
    grub.args(["-O", "i386-pc-eltorito", "-p", "/"]);
    grub.arg("-c").arg(&script).arg("-o").arg(&loader);
    run(grub.args(MODULES))?;
    let mut xorriso = tools.command("xorriso");
    xorriso
        .args(["-as", "mkisofs", "-quiet", "-R", "-o"])
        .arg(to);
    xorriso.args(["-b", "loader", "-no-emul-boot", "-boot-load-size", "4"]);
    xorriso.args(["-boot-info-table", "-graft-points"]);
    for (name, file) in [
        ("loader", loader.as_path()),
        ("xen", &dom0.xen()),
        ("kernel", &dom0.kernel()),
        ("initrd", initrd),
    ] {
        xorriso.arg(format!("/{name}={}", file.display()));
    }
    run(&mut xorriso)?;
    for file in [script, loader] {
        fs::remove_file(file)?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .context("cannot run what makes a disc for Bochs")?;
    ensure!(
        output.status.success(),
        "cannot make a disc for Bochs: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
