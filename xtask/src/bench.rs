//! `cargo xtask bench`: what each way to run a PV kernel costs, on the same host in the same run.
//!
//! The systems take turns, boot by boot, so that a change of the machine's load hits all of them.
//! Absolute figures are those of an emulator; the ratios are what counts.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use unmoved_lab::images::{GuestKernel, KernelFiles};
use unmoved_lab::programs::{self, Program};
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, GuestPlan, Host, Lab, Scripts, System, initramfs, progress};

/// Measure.
#[derive(Debug, Args)]
pub struct Bench {
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure this shim, too, under the name of its file; may be given several times
    #[arg(long, value_name = "FILE")]
    shim: Vec<PathBuf>,
    /// Measure this project's shim a second time, with page tables split (`unmoved.xpti=on`)
    #[arg(long)]
    xpti: bool,
    /// Measure only these systems
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// How often each system is booted and measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
    /// Boot the guests, and measure nothing in them
    #[arg(long)]
    boots_only: bool,
}

/// Longest time of a boot, and of a benchmark.
const LONG: Duration = Duration::from_secs(120);
/// How often stock xen-shim may stall in one turn.
const TRIES: usize = 3;
/// How often each figure is taken in one boot, which the median of counts.
const REPEATS: u32 = 5;
/// The figures, in the order of the table, with the better direction (`true`: more is better).
const FIGURES: [(&str, bool); 14] = [
    // What the toolstack takes to build the domain, and the domain from there to user space.
    ("create_ms", false),
    ("boot_ms", false),
    ("mem_total_kib", true),
    ("null_syscall_ns", false),
    ("ctx_switch_ns", false),
    ("fork_exec_ns", false),
    ("page_fault_ns", false),
    ("mmap_ns", false),
    ("disk_seq_mib_s", true),
    ("disk_rand_iops", true),
    ("disk_latency_us", false),
    ("net_tx_mib_s", true),
    ("net_rx_mib_s", true),
    ("net_rtt_us", false),
];

/// One way to run the kernel, and what was measured of it.
struct Contender {
    name: String,
    system: System,
    /// The shim's options.
    options: &'static str,
    /// What each boot gave, by the figure's name.
    found: BTreeMap<&'static str, Vec<f64>>,
}

impl Bench {
    /// Do it.
    ///
    /// # Errors
    /// If the lab or a guest fails.
    pub fn run(self) -> Result<()> {
        ensure!(
            self.repeat >= 5,
            "a median of fewer than 5 says little: --repeat must be 5 or more"
        );
        let mut contenders = vec![
            Contender::new("pv", System::Native),
            Contender::new("xen-shim", System::XenShim),
        ];
        let shim = System::Shim(programs::shim()?);
        contenders.push(Contender::new("unmoved", shim.clone()));
        if self.xpti {
            contenders.push(Contender {
                options: "unmoved.xpti=on",
                ..Contender::new("unmoved-xpti", shim)
            });
        }
        for shim in self.shim {
            let name = shim.file_name().and_then(OsStr::to_str);
            let name = name.with_context(|| format!("{} has no plain name", shim.display()))?;
            contenders.push(Contender::new(name, System::Shim(shim.clone())));
        }
        for name in &self.only {
            ensure!(
                contenders.iter().any(|contender| contender.name == *name),
                "--only {name}: there is no such system"
            );
        }
        contenders.retain(|one| self.only.is_empty() || self.only.contains(&one.name));
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        let config = Config {
            scripts: Scripts::Xen,
            ..Config::hosts(1)
        };
        Lab::run("bench", &config, |lab| {
            let host = lab.host(0);
            host.copy_in(&Program::Peer.build()?, "/root/unmoved-peer")?;
            let peer = host.start(&["/root/unmoved-peer", "serve"])?;
            for round in 1..=self.repeat {
                for contender in &mut contenders {
                    let step = progress::step(format!(
                        "{}, boot {round} of {}",
                        contender.name, self.repeat
                    ));
                    contender.turn(host, &kernel, !self.boots_only)?;
                    step.done("measured");
                }
            }
            peer.signal(15)
        })?;
        let systems: Map<String, Value> = contenders
            .into_iter()
            .map(|contender| (contender.name.clone(), contender.finish()))
            .collect();
        table(&systems);
        crate::json::write(self.json.as_deref(), &json!({ "systems": systems }))
    }
}

impl Contender {
    fn new(name: &str, system: System) -> Self {
        Self {
            name: name.to_owned(),
            system,
            options: "",
            found: BTreeMap::new(),
        }
    }

    /// Take a turn; once more if stock xen-shim stalls, as it does now and then under emulation
    /// (`lab/README.md`).
    fn turn(&mut self, host: &Host, kernel: &KernelFiles, is_whole: bool) -> Result<()> {
        let mut tries = 0;
        loop {
            let stall = match self.round(host, kernel, is_whole) {
                Err(stall) if self.system == System::XenShim => stall,
                result => return result,
            };
            tries += 1;
            ensure!(tries < TRIES, "stock xen-shim stalls each time: {stall:#}");
            eprintln!("    stock xen-shim stalled; once more: {stall:#}");
            host.run(&["xl", "destroy", &self.name])?;
        }
    }

    /// Boot the guest and measure inside it: each time, so that a moment in which the machine is
    /// slow costs one figure of several and not all of one system's.
    fn round(&mut self, host: &Host, kernel: &KernelFiles, is_whole: bool) -> Result<()> {
        let mut plan = GuestPlan::new(&self.name, self.system.clone(), kernel.unpacked());
        plan.initrd = Some(initramfs::workload(kernel)?);
        plan.arguments +=
            " quiet unmoved.mode=net unmoved.net=ip=192.0.2.100/24 unmoved.heartbeat=0";
        if !self.options.is_empty() {
            plan.lines
                .push(format!("pvshim_extra = \"{}\"", self.options));
        }
        plan.disks.push("phy:/dev/vda,xvda,w".to_owned());
        plan.nics.push("mac=02:00:00:00:01:01".to_owned());
        let guest = self.boot(&plan, host)?;
        let orders = [
            format!("bench micro reps={REPEATS}"),
            format!("bench disk dev=/dev/xvda reps={REPEATS} ms=400"),
            format!("bench net to={}:7010 reps={REPEATS} ms=400", host.address()),
        ];
        for order in orders.into_iter().filter(|_| is_whole) {
            let found = guest.order(host, &order, LONG)?;
            for (name, _) in FIGURES {
                if let Some(figure) = found[name].as_f64() {
                    self.add(name, figure);
                }
            }
        }
        drop(guest);
        host.ok(&["xl", "destroy", &plan.name]).map(drop)
    }

    fn add(&mut self, name: &'static str, figure: f64) {
        self.found.entry(name).or_default().push(figure);
    }

    /// Create the guest, let it run and wait for its user space.
    fn boot(&mut self, plan: &GuestPlan, host: &Host) -> Result<Guest> {
        let log = format!("/var/log/xen/console/guest-{}.log", plan.name);
        let since = |begun: Instant| begun.elapsed().as_secs_f64() * 1000.0;
        // xenconsoled appends to the log of a guest of the same name.
        host.ok(&["rm", "-f", &log])?;
        plan.install(host)?;
        let begun = Instant::now();
        let guest = plan.start_paused(host)?;
        let created = since(begun);
        let begun = Instant::now();
        host.ok(&["xl", "unpause", &plan.name])?;
        guest.ready(LONG)?;
        self.add("create_ms", created);
        self.add("boot_ms", since(begun));
        Ok(guest)
    }

    /// Each figure: the median of the boots, with the least and the most.
    fn finish(self) -> Value {
        let summary = |mut found: Vec<f64>| {
            found.sort_by(f64::total_cmp);
            let last = found.len() - 1;
            json!({ "median": found[found.len() / 2], "least": found[0], "most": found[last] })
        };
        let figures = self.found.into_iter();
        figures
            .map(|(name, found)| (name.to_owned(), summary(found)))
            .collect::<Map<_, _>>()
            .into()
    }
}

/// Print the figures, each system's beside its ratio to plain PV (below 1: worse than PV) and the width
/// of what its boots gave, in percent of the median: a difference below that says nothing.
fn table(systems: &Map<String, Value>) {
    print!("{:18}", "");
    for name in systems.keys() {
        print!("{name:>14}{:>13}", "");
    }
    println!();
    for (figure, more_is_better) in FIGURES {
        print!("{figure:18}");
        let of = |system: &Value, what: &str| system[figure][what].as_f64();
        let of_all = |system: &Value| {
            Some((
                of(system, "median")?,
                of(system, "least")?,
                of(system, "most")?,
            ))
        };
        let base = systems.get("pv").and_then(|pv| of(pv, "median"));
        for system in systems.values() {
            let Some((value, least, most)) = of_all(system) else {
                print!("{:>14}{:>13}", "-", "");
                continue;
            };
            let ratio = base.map_or(1.0, |base| {
                if more_is_better {
                    value / base
                } else {
                    base / value
                }
            });
            let width = (most - least) / value * 100.0;
            print!("{value:>14.1}{:>8}{width:>4.0}%", format!("({ratio:.2})"));
        }
        println!();
    }
}
