//! `cargo xtask lab boots`: does every kind of guest boot every time?
//!
//! One host, one guest after the other; each must get to where it is of use: the workload alive, the
//! boot loader answering a key, Debian at its login prompt.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Map, json};
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Guest, GuestPlan, Host, Kind as Machine, Lab, Shape, System, initramfs};
use unmoved_tests::shell;

use super::system::SystemName;

/// What to boot, and how often.
#[derive(Debug, Args)]
pub struct Boots {
    /// How many times each
    #[arg(long, value_name = "N", default_value_t = 20)]
    count: usize,
    /// Only this kind of guest (may be repeated)
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// The host's machine: qemu (AMD), or Bochs with a processor: intel, intel-haswell, intel-icelake,
    /// intel-tigerlake, amd-bochs
    #[arg(long, value_name = "MACHINE", default_value = "qemu")]
    machine: Machine,
    /// What they run in
    #[arg(long, value_enum, default_value_t)]
    system: SystemName,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A kind of guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Debian 12's kernel and the workload
    Deb12,
    /// Debian 13's kernel and the workload
    Deb13,
    /// GRUB, to its prompt
    Grub,
    /// Debian 12, to its login prompt
    Debian,
}

const BOOT: Duration = Duration::from_secs(300);
const MOMENT: Duration = Duration::from_secs(60);

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Deb12 => "deb12",
            Self::Deb13 => "deb13",
            Self::Grub => "grub",
            Self::Debian => "debian",
        }
    }

    fn plan(self, system: System, tools: &Tools) -> Result<GuestPlan> {
        let kernel = match self {
            Self::Debian => return GuestPlan::debian(self.name(), system, tools),
            Self::Deb12 => GuestKernel::Debian12,
            Self::Deb13 => GuestKernel::Debian13,
            Self::Grub => GuestKernel::Grub,
        };
        let files = kernel.get(tools)?;
        let mut plan = GuestPlan::new(self.name(), system, files.unpacked());
        if kernel != GuestKernel::Grub {
            plan.initrd = Some(initramfs::workload(&files)?);
            plan.arguments += " quiet unmoved.heartbeat=1";
        }
        Ok(plan)
    }

    /// Wait until the guest is of use.
    fn arrive(self, guest: &Guest, host: &Host) -> Result<()> {
        match self {
            Self::Deb12 | Self::Deb13 => {
                guest.ready(BOOT)?;
                guest.alive(MOMENT).map(drop)
            }
            Self::Grub => {
                guest.wait_for("grub> ?", BOOT)?;
                let mark = guest.console.mark();
                // The product appears only if GRUB has read and carried out the line.
                guest.type_line(host, "set product=un$unset; echo ${product}moved")?;
                let console = &guest.console;
                console
                    .wait_for_after(mark, "[\r\n]unmoved", MOMENT)
                    .map(drop)
            }
            Self::Debian => guest.wait_for("login: ", shell::BOOT).map(drop),
        }
    }
}

impl Boots {
    /// Do it.
    ///
    /// # Errors
    /// If a guest does not boot, or the shim complains.
    pub fn run(self) -> Result<()> {
        let kinds = if self.kind.is_empty() {
            Kind::value_variants().to_vec()
        } else {
            self.kind.clone()
        };
        let mut config = shell::host_with_debian()?;
        config.shape = Shape::of(self.machine);
        let tools = Tools::get()?;
        let system = self.system.system()?;
        let (mut figures, mut failures) = (Map::new(), Vec::new());
        for kind in kinds {
            let plan = kind.plan(system.clone(), &tools)?;
            // A failure keeps the logs of its own lab only.
            let result = Lab::run("boots", &config, |lab| {
                self.boot_all(kind, &plan, lab.host(0))
            });
            let (good, seconds) = match result {
                Ok((good, seconds)) => (good, seconds),
                Err(error) => {
                    failures.push(format!("{}: {error:#}", kind.name()));
                    continue;
                }
            };
            let line = format!("{}: {good} of {} boots", kind.name(), self.count);
            println!("{line}; {seconds:.1} s each");
            figures.insert(
                kind.name().to_owned(),
                json!({"boots": self.count, "good": good, "seconds_each": seconds}),
            );
        }
        let json = json!({"kinds": figures, "failures": failures});
        crate::json::write(self.json.as_deref(), &json)?;
        failures.iter().for_each(|failure| println!("{failure}"));
        ensure!(failures.is_empty(), "not every guest booted");
        Ok(())
    }

    fn boot_all(&self, kind: Kind, plan: &GuestPlan, host: &Host) -> Result<(usize, f64)> {
        plan.install(host)?;
        let (mark, begun) = (host.serial().mark(), Instant::now());
        for number in 1..=self.count {
            let start = Instant::now();
            let guest = plan.start(host)?;
            kind.arrive(&guest, host)
                .map_err(|error| error.context(format!("boot {number} of {}", self.count)))?;
            println!(
                "{} {number:3}: {:.1} s",
                kind.name(),
                start.elapsed().as_secs_f64()
            );
            drop(guest);
            host.ok(&["xl", "destroy", &plan.name])?;
            // The next one's console must not begin with this one's.
            host.sh(&format!(
                "rm -f /var/log/xen/console/guest-{}.log",
                plan.name
            ))?;
        }
        let each = begun.elapsed().as_secs_f64() / f64::from(u32::try_from(self.count)?);
        let complaints = shell::shim_complaints(host.serial(), mark);
        ensure!(
            complaints.is_empty(),
            "the shim complains: {}",
            complaints.join("; ")
        );
        Ok((self.count, each))
    }
}
