//! `cargo xtask lab profile`: what the processor does while a guest boots.
//!
//! The host's registers are looked at from outside, a hundred times a second, from the moment in which the
//! guest is unpaused until its user space runs.  What is seen is counted by who runs: Xen, dom0, the shim,
//! the guest; and inside the shim by function.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use elf::ElfBytes;
use elf::abi::{STT_FUNC, STT_NOTYPE};
use elf::endian::LittleEndian;
use serde_json::{Map, json};
use unmoved_lab::images::GuestKernel;
use unmoved_lab::profile::Sample;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, GuestPlan, Host, Lab, System, initramfs};

use super::system::SystemName;

/// What to look at.
#[derive(Debug, Args)]
pub struct Profile {
    /// What the guest runs in
    #[arg(long, value_enum, default_value_t)]
    system: SystemName,
    /// How many boots
    #[arg(long, value_name = "N", default_value_t = 5)]
    boots: usize,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const EVERY: Duration = Duration::from_millis(10);
/// How long the host is looked at with no guest, to know its own hypervisor.
const QUIET: Duration = Duration::from_secs(1);
const BOOT: Duration = Duration::from_secs(300);
/// Functions of the shim that are told.
const FUNCTIONS: usize = 20;
/// Addresses from here on are a kernel's.
const KERNEL: u64 = 1 << 63;

/// Who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Nobody,
    Xen,
    Dom0Kernel,
    Dom0Programs,
    Shim,
    GuestKernel,
    GuestPrograms,
}

impl Who {
    /// Without a shim the guest's code runs directly on the host's Xen, as dom0's does.
    fn name(self, system: SystemName) -> &'static str {
        let is_pv = system == SystemName::Pv;
        match self {
            Self::Nobody => "halted",
            Self::Xen => "the host's Xen",
            // The host's lies at the same addresses.
            Self::Shim if system == SystemName::XenShim => "xen-shim, and the host's Xen for it",
            Self::Dom0Kernel if is_pv => "kernels of dom0 and guest",
            Self::Dom0Kernel => "dom0's kernel",
            Self::Dom0Programs if is_pv => "programs of dom0 and guest",
            Self::Dom0Programs => "dom0's programs",
            Self::Shim => "the shim",
            Self::GuestKernel => "the guest's kernel",
            Self::GuestPrograms => "the guest's programs",
        }
    }

    /// Xen leaves the guest's task state segment in place while it sees to one of its exits; so our own shim
    /// is told from it by where its functions are.
    fn of(sample: &Sample, host: u64, functions: &[Function]) -> Self {
        let is_low = sample.rip < KERNEL;
        let is_shim = functions.is_empty() || is_low || function(functions, sample.rip).is_some();
        match (sample.tss == host, sample.ring, sample.rip >= KERNEL) {
            _ if sample.is_halted => Self::Nobody,
            (true, 0, _) => Self::Xen,
            (false, 0, _) if !is_shim => Self::Xen,
            (true, _, true) => Self::Dom0Kernel,
            (true, _, false) => Self::Dom0Programs,
            (false, 0, _) => Self::Shim,
            (false, _, true) => Self::GuestKernel,
            (false, _, false) => Self::GuestPrograms,
        }
    }
}

/// What was seen in all boots.
#[derive(Debug, Default)]
struct Seen {
    who: BTreeMap<Who, usize>,
    functions: BTreeMap<String, usize>,
    all: usize,
    boots: Vec<Duration>,
}

impl Profile {
    /// Do it.
    ///
    /// # Errors
    /// If the lab fails or the guest does not boot.
    pub fn run(self) -> Result<()> {
        let files = GuestKernel::Debian12.get(&Tools::get()?)?;
        let system = self.system.system()?;
        let functions = match &system {
            System::Shim(file) => functions(file)?,
            _ => Vec::new(),
        };
        let mut plan = GuestPlan::new("profiled", system, files.unpacked());
        plan.initrd = Some(initramfs::workload(&files)?);
        plan.arguments += " quiet unmoved.heartbeat=0";
        let seen = Lab::run("profile", &Config::hosts(1), |lab| {
            self.look(lab.host(0), &plan, &functions)
        })?;
        self.tell(&seen)
    }

    fn look(&self, host: &Host, plan: &GuestPlan, functions: &[Function]) -> Result<Seen> {
        let mut seen = Seen::default();
        let begun = Instant::now();
        let sampler = host.sample(EVERY)?;
        std::thread::sleep(QUIET);
        let mut boots = Vec::new();
        for _ in 0..self.boots {
            host.sh("rm -f /var/log/xen/console/guest-profiled.log")?;
            plan.install(host)?;
            let guest = plan.start_paused(host)?;
            let from = begun.elapsed();
            host.ok(&["xl", "unpause", &plan.name])?;
            guest.ready(BOOT)?;
            boots.push(from..begun.elapsed());
            host.ok(&["xl", "destroy", &plan.name])?;
        }
        let samples = sampler.finish()?;
        let first = samples.first().context("nothing was seen")?;
        let host_tss = first.tss;
        for sample in samples
            .iter()
            .filter(|s| boots.iter().any(|b| b.contains(&s.at)))
        {
            let who = Who::of(sample, host_tss, functions);
            *seen.who.entry(who).or_default() += 1;
            seen.all += 1;
            if who == Who::Shim {
                let name = function(functions, sample.rip).unwrap_or("before its own page tables");
                *seen.functions.entry(name.to_owned()).or_default() += 1;
            }
        }
        ensure!(seen.all > 0, "nothing was seen while the guest booted");
        seen.boots = boots
            .into_iter()
            .map(|boot| boot.end - boot.start)
            .collect();
        Ok(seen)
    }

    fn tell(&self, seen: &Seen) -> Result<()> {
        let share = |count: usize| count as f64 / seen.all as f64;
        let mean = seen.boots.iter().sum::<Duration>() / seen.boots.len().max(1) as u32;
        println!(
            "{} boots of {:.1} s, {} looks",
            seen.boots.len(),
            mean.as_secs_f64(),
            seen.all
        );
        let mut shares = Map::new();
        for (who, count) in &seen.who {
            let name = who.name(self.system);
            println!("{:5.1} %  {name}", share(*count) * 100.0);
            shares.insert(name.to_owned(), json!(share(*count)));
        }
        let mut functions: Vec<_> = seen.functions.iter().collect();
        functions.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (name, count) in functions.into_iter().take(FUNCTIONS) {
            println!("         {:5.1} %  {name}", share(*count) * 100.0);
        }
        if let Some(file) = &self.json {
            let figures =
                json!({"boot_ms": mean.as_secs_f64() * 1e3, "looks": seen.all, "shares": shares});
            std::fs::write(file, format!("{figures:#}\n"))?;
        }
        Ok(())
    }
}

/// A function: its first address and its name.
type Function = (u64, String);
/// The symbol behind the last function.
const TEXT_END: &str = "__text_end";

/// The functions of a program, in the order of their addresses.
fn functions(file: &Path) -> Result<Vec<Function>> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let wrong = || format!("{} has no symbols", file.display());
    let program = ElfBytes::<LittleEndian>::minimal_parse(&bytes).with_context(wrong)?;
    let (symbols, names) = program.symbol_table()?.with_context(wrong)?;
    let mut functions: Vec<Function> = symbols
        .iter()
        // What is written in assembly has no type.
        .filter(|symbol| matches!(symbol.st_symtype(), STT_FUNC | STT_NOTYPE))
        .filter_map(|symbol| {
            let name = names.get(symbol.st_name as usize).ok()?;
            Some((
                symbol.st_value,
                format!("{:#}", rustc_demangle::demangle(name)),
            ))
        })
        .collect();
    functions.sort();
    let end = functions.iter().position(|(_, name)| name == TEXT_END);
    functions.truncate(end.with_context(wrong)? + 1);
    Ok(functions)
}

/// The function at an address, if it is one of these.
fn function(functions: &[Function], address: u64) -> Option<&str> {
    let after = functions.partition_point(|(from, _)| *from <= address);
    let (_, name) = functions.get(after.checked_sub(1)?)?;
    (name != TEXT_END).then_some(name)
}
