//! A guest that can not be started says why, on its console and in the log, and its domain ends as
//! crashed; nothing hangs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, GuestKernel, GuestPlan, Host, Lab, System, initramfs, programs};
use unmoved_tests::ended;

const LIMIT: Duration = Duration::from_secs(180);

/// Creates a guest and waits until both its console and the log have said `sentence`.
fn refused(
    host: &Host,
    name: &str,
    sentence: &str,
    change: impl FnOnce(&mut GuestPlan),
) -> Result<()> {
    let kernel = GuestKernel::Debian12.get(&Tools::get()?)?.unpacked();
    let mut plan = GuestPlan::new(name, System::Shim(programs::shim()?), kernel);
    change(&mut plan);
    let mark = host.serial().mark();
    let guest = plan.create(host)?;
    guest
        .wait_for(sentence, LIMIT)
        .with_context(|| format!("{name}: console"))?;
    host.serial()
        .wait_for_after(mark, sentence, LIMIT)
        .with_context(|| format!("{name}: log"))?;
    ended::crashed(host, name)
}

fn file(folder: &Path, name: &str, content: &[u8]) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, content)?;
    Ok(path)
}

#[test]
fn what_can_not_be_started_says_why() {
    Lab::run("bad-input", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        let files = GuestKernel::Debian12.get(&Tools::get()?)?;
        let folder = tempfile::tempdir()?;
        let folder = folder.path();
        let elf = fs::read(files.unpacked())?;
        let packed = fs::read(files.packed())?;

        let text = file(folder, "text", &b"not a kernel\n".repeat(1000))?;
        refused(
            host,
            "text",
            "the kernel is neither an ELF image nor a bzImage",
            |plan| {
                plan.kernel = text;
            },
        )?;

        let mut other = elf.clone();
        // EI_CLASS: 32 bits.
        other[4] = 1;
        let other = file(folder, "elf32", &other)?;
        refused(host, "elf32", "kernel: the kernel[^\\r\\n]+", |plan| {
            plan.kernel = other;
        })?;

        // The notes' owner, wherever it stands, is somebody else.
        let mut foreign = elf;
        let mut at = 0;
        while let Some(next) = find(&foreign[at..], b"Xen\0") {
            foreign[at + next..at + next + 3].copy_from_slice(b"Nex");
            at += next + 4;
        }
        let foreign = file(folder, "no-notes", &foreign)?;
        refused(host, "no-notes", "kernel: the kernel[^\\r\\n]+", |plan| {
            plan.kernel = foreign;
        })?;

        let payload = payload(&packed);
        let mut unknown = packed.clone();
        unknown[payload..payload + 6].copy_from_slice(b"??????");
        let unknown = file(folder, "unknown", &unknown)?;
        refused(
            host,
            "unknown",
            "the kernel's compression is not known",
            |plan| {
                plan.kernel = unknown;
            },
        )?;

        let short = file(folder, "short", &packed[..packed.len() / 2])?;
        refused(host, "short", "the bzImage is truncated", |plan| {
            plan.kernel = short;
        })?;

        let initrd = fs::read(initramfs::workload(&files)?)?;
        let cut = file(folder, "initrd", &initrd[..initrd.len() / 2])?;
        let kernel = files.unpacked();
        refused(host, "cut", "ramdisk: the archive is truncated", |plan| {
            plan.kernel = kernel;
            plan.initrd = Some(cut);
        })?;

        // The toolstack has room for the file, the shim has none for what is in it.
        let whole = files.packed();
        refused(host, "little", "too little memory to unpack it", |plan| {
            plan.kernel = whole;
            plan.memory_mib = 40;
        })?;

        // What the shim does not know it names, and goes on.
        let mark = host.serial().mark();
        let mut plan = GuestPlan::new("option", System::Shim(programs::shim()?), files.unpacked());
        plan.lines.push("pvshim_extra = \"colour=red\"".to_owned());
        plan.create(host)?;
        host.serial()
            .wait_for_after(mark, "unknown option colour=red", LIMIT)?;
        host.ok(&["xl", "destroy", "option"])?;
        Ok(())
    })
    .unwrap();
}

/// Where the compressed image lies in a bzImage (`payload_offset` counts from the 32-bit part).
fn payload(image: &[u8]) -> usize {
    let sectors = usize::from(image[0x1f1]);
    let offset = u32::from_le_bytes([0, 1, 2, 3].map(|byte| image[0x248 + byte]));
    (sectors + 1) * 512 + offset as usize
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
