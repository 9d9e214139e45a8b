//! `cargo xtask lab run`: one host, one guest, everything it says; for bringing a shim up.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use regex::Regex;
use unmoved_lab::images::{GuestKernel, KernelFiles};
use unmoved_lab::tools::Tools;
use unmoved_lab::{
    Config, DebianRoot, GuestPlan, Host, Kind, Lab, Log, Scripts, System, Xen, bzimage, initramfs,
    programs,
};

/// Which guest to run, in what, for how long.
///
/// Standard output gets the guest's console as it is (`guest|`) and Xen's serial console, where a
/// shim's port-0xE9 output appears as `(d1) …` (`xen|`).
#[derive(Debug, Args)]
pub struct Run {
    /// The shim: `unmoved` for this project's (built if need be), `xen-shim` for Xen's own, or a file
    #[arg(
        long,
        value_name = "SHIM",
        conflicts_with = "native",
        default_value = "unmoved"
    )]
    shim: String,
    /// No shim: a plain PV guest
    #[arg(long)]
    native: bool,
    /// The guest's kernel: deb12, deb13, grub, or a file
    #[arg(long, value_name = "KERNEL", default_value = "deb12")]
    kernel: String,
    /// Give Debian's kernel as distributed (a bzImage) instead of unpacked
    #[arg(long)]
    packed: bool,
    /// The guest's initramfs: workload (the test guests' program; what Debian's kernels get unless told
    /// otherwise), busybox, none (what others get), or a file
    #[arg(long, value_name = "INITRD")]
    initrd: Option<Initrd>,
    /// A distribution instead of a kernel with an initramfs: debian (12, to its login prompt)
    #[arg(long, value_name = "ROOT", conflicts_with_all = ["kernel", "packed", "initrd", "mode"])]
    root: Option<Root>,
    /// The guest's RAM in MiB, if not 256 (512 with a root)
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// The guest's CPUs
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// The host's Xen: 4.17 or 4.20
    #[arg(long, default_value = "4.17")]
    xen: Xen,
    /// The host's machine: qemu (AMD), or Bochs with a processor: intel, intel-haswell, intel-icelake,
    /// intel-tigerlake, amd-bochs
    #[arg(long, value_name = "MACHINE", default_value = "qemu")]
    machine: Kind,
    /// The host's RAM in MiB (another snapshot is made for each size), if not the machine's usual
    #[arg(long, value_name = "MIB")]
    host_memory: Option<u32>,
    /// The host's CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    host_cpus: u32,
    /// Added to the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    extra: String,
    /// A line for the guest's xl configuration (may be repeated)
    #[arg(long, value_name = "LINE")]
    config: Vec<String>,
    /// What the workload does from the start: disk, net, clock, … (see its `orders`)
    #[arg(long, value_name = "MODES")]
    mode: Option<String>,
    /// Give the guest a disk (xvda; xvdb if it has a root) and a network card on the host's bridge
    #[arg(long)]
    devices: bool,
    /// Stop after this many seconds
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Stop, successfully, when a line of the guest or of Xen matches; not matching in time is a failure
    #[arg(long, value_name = "REGEX")]
    until: Option<Regex>,
    /// Copy a file to the host first (may be repeated)
    #[arg(long, value_name = "FILE:PATH")]
    put: Vec<String>,
    /// When stopping, run this in dom0 and show its output (may be repeated)
    #[arg(long, value_name = "COMMAND")]
    then: Vec<String>,
}

/// A guest's initramfs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Initrd {
    None,
    Workload,
    Busybox,
    File(PathBuf),
}

impl From<&str> for Initrd {
    fn from(word: &str) -> Self {
        match word {
            "none" => Self::None,
            "workload" => Self::Workload,
            "busybox" => Self::Busybox,
            file => Self::File(file.into()),
        }
    }
}

impl Initrd {
    /// What was asked for; if nothing was, GRUB and kernels from elsewhere get none.
    fn of(asked: Option<&Self>, is_debian: bool) -> Self {
        asked.cloned().unwrap_or(match is_debian {
            true => Self::Workload,
            false => Self::None,
        })
    }
}

/// A distribution that can be booted.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Root {
    /// Debian 12
    Debian,
}

impl Run {
    /// Do it.
    ///
    /// # Errors
    /// If the lab or the guest does not start, or `--until` is not met.
    pub fn run(self) -> Result<()> {
        let tools = Tools::get()?;
        let plan = self.plan(&tools)?;
        let mut config = Config::on(self.machine);
        config.hosts = vec![self.xen];
        config.scripts = Scripts::Xen;
        config.shape.memory_mib = self.host_memory.unwrap_or(config.shape.memory_mib);
        config.shape.cpus = self.host_cpus;
        if let Some(Root::Debian) = self.root {
            config.disk = Some(DebianRoot::get()?.image());
        }
        let begun = Instant::now();
        Lab::run("run", &config, |lab| {
            let host = lab.host(0);
            eprintln!("  ✓ host ready ({:.1} s)", begun.elapsed().as_secs_f32());
            let mut xen = Shown::new("xen  ", host.serial().clone(), host.serial().mark());
            for put in &self.put {
                let (file, path) = put.split_once(':').context("--put wants FILE:PATH")?;
                host.copy_in(file.as_ref(), path)?;
            }
            let created = plan.create(host);
            let mut watched = vec![];
            let guest = match created {
                Ok(guest) => guest,
                Err(error) => {
                    xen.show(None);
                    return Err(error);
                }
            };
            watched.push(Shown::new("guest", guest.console.clone(), 0));
            watched.push(xen);
            let met = self.watch(&mut watched);
            self.finish(host)?;
            ensure!(
                met || self.until.is_none(),
                "/{}/ did not appear within {} s",
                self.until.as_ref().map_or("", Regex::as_str),
                self.seconds
            );
            Ok(())
        })
    }

    fn plan(&self, tools: &Tools) -> Result<GuestPlan> {
        let system = match self.shim.as_str() {
            _ if self.native => System::Native,
            "unmoved" => System::Shim(programs::shim()?),
            "xen-shim" => System::XenShim,
            file => {
                let path = PathBuf::from(file);
                ensure!(path.is_file(), "there is no shim {file}");
                System::Shim(path)
            }
        };
        let mut plan = match self.root {
            Some(Root::Debian) => GuestPlan::debian("guest", system, tools)?,
            None => self.plan_kernel(system, tools)?,
        };
        plan.memory_mib = self.memory.unwrap_or(plan.memory_mib);
        plan.vcpus = self.vcpus;
        if !self.extra.is_empty() {
            plan.arguments = format!("{} {}", plan.arguments, self.extra);
        }
        if self.devices {
            let name = if self.root.is_some() { "xvdb" } else { "xvda" };
            plan.disks.push(format!("phy:/dev/vda,{name},w"));
            plan.nics.push("mac=02:00:00:00:01:01".to_owned());
        }
        plan.lines.clone_from(&self.config);
        Ok(plan)
    }

    /// A guest that is a kernel with an initramfs.
    fn plan_kernel(&self, system: System, tools: &Tools) -> Result<GuestPlan> {
        let (kernel, files) = self.kernel(tools)?;
        let mut plan = GuestPlan::new("guest", system, kernel);
        plan.initrd = match Initrd::of(self.initrd.as_ref(), files.is_some()) {
            Initrd::None => None,
            Initrd::Workload => Some(match files {
                Some(files) => initramfs::workload(&files)?,
                None => initramfs::workload_alone()?,
            }),
            Initrd::Busybox => Some(match files {
                Some(files) => initramfs::busybox(&files)?,
                None => initramfs::busybox_alone()?,
            }),
            Initrd::File(file) => {
                ensure!(
                    file.is_file(),
                    "there is no initramfs {}: name workload, busybox, none, or a file",
                    file.display()
                );
                Some(file)
            }
        };
        if let Some(mode) = &self.mode {
            plan.arguments += &format!(" unmoved.mode={mode}");
        }
        Ok(plan)
    }

    /// The kernel's file, and for Debian's kernels what belongs to it.
    fn kernel(&self, tools: &Tools) -> Result<(PathBuf, Option<KernelFiles>)> {
        match self.kernel.parse::<GuestKernel>() {
            Ok(GuestKernel::Grub) => Ok((GuestKernel::Grub.get(tools)?.unpacked(), None)),
            Ok(kernel) => {
                let files = kernel.get(tools)?;
                let file = if self.packed {
                    files.packed()
                } else {
                    files.unpacked()
                };
                Ok((file, Some(files)))
            }
            Err(error) => {
                let path = PathBuf::from(&self.kernel);
                if !path.is_file() {
                    bail!("{error}");
                }
                let image = std::fs::read(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                ensure!(
                    bzimage::is_kernel(&image),
                    "{} is no kernel: neither ELF nor bzImage",
                    path.display()
                );
                Ok((path, None))
            }
        }
    }

    /// Show until the time is over or `--until` is met (then `true`).
    fn watch(&self, watched: &mut [Shown]) -> bool {
        let end = Instant::now() + Duration::from_secs(self.seconds);
        loop {
            for shown in watched.iter_mut() {
                if shown.show(self.until.as_ref()) {
                    return true;
                }
            }
            if Instant::now() >= end {
                return false;
            }
            // Two logs and no way to wait for both: wait briefly for the one, then look at the other.
            let first = &watched[0];
            let _ = first.log.more(first.mark, Duration::from_millis(100));
        }
    }

    fn finish(&self, host: &Host) -> Result<()> {
        for command in &self.then {
            let output = host.run(&["sh", "-c", command])?;
            println!("dom0 | # {command}\n{}{}", output.stdout, output.stderr);
        }
        Ok(())
    }
}

/// A log of which everything up to `mark` has been shown.
struct Shown {
    name: &'static str,
    log: Log,
    mark: usize,
}

impl Shown {
    fn new(name: &'static str, log: Log, mark: usize) -> Self {
        Self { name, log, mark }
    }

    /// Show the complete lines that are new; did one match?
    fn show(&mut self, until: Option<&Regex>) -> bool {
        let new = self.log.more(self.mark, Duration::ZERO).unwrap_or_default();
        let complete = new
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&new[..complete]);
        // A reader that went away ends the program with the next signal anyway.
        let mut out = std::io::stdout().lock();
        for line in text.lines() {
            let _ = writeln!(out, "{}| {}", self.name, line.trim_end());
        }
        let _ = out.flush();
        let met = until.is_some_and(|until| {
            until.is_match(&text) || until.is_match(&String::from_utf8_lossy(&new[complete..]))
        });
        self.mark += complete;
        met
    }
}

#[cfg(test)]
mod tests {
    use super::Initrd;

    #[test]
    fn what_is_asked_for_is_given_whatever_the_kernel() {
        for word in ["workload", "busybox", "none", "my.img"] {
            let asked = Initrd::from(word);
            for is_debian in [true, false] {
                assert_eq!(Initrd::of(Some(&asked), is_debian), asked, "{word}");
            }
        }
        assert_eq!(Initrd::from("my.img"), Initrd::File("my.img".into()));
        assert_eq!(Initrd::of(None, true), Initrd::Workload);
        assert_eq!(Initrd::of(None, false), Initrd::None);
    }
}
