//! The emulated machine: one process of an emulator with the devices that every lab host has.

mod bochs;
mod kind;
mod plan;
mod qemu;

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde_json::json;

use crate::channel::Channel;
use crate::log::Log;
use crate::profile::Sampler;
use crate::tools::Tools;

pub use bochs::{INSTRUCTIONS_PER_SECOND, tools as bochs_tools};
pub use kind::{Kind, Processor};
pub use plan::{Origin, PRIVATE_DISK, Plan, Shape};

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    name: String,
    child: Child,
    emulator: Emulator,
    /// What Xen and dom0's kernel write to the serial port.
    pub serial: Log,
    /// The wire to the agent in dom0.
    pub channel: Channel,
}

/// What each emulator can be told.
#[derive(Debug)]
enum Emulator {
    Qemu(qemu::Qemu),
    Bochs(bochs::Bochs),
}

impl Machine {
    /// Start a machine; one from a snapshot runs on at once.
    ///
    /// # Errors
    /// If the emulator cannot be run, refuses its arguments, or the snapshot is not of such a machine.
    pub fn start(plan: Plan<'_>, tools: &Tools) -> Result<Self> {
        plan.make_disks()?;
        match plan.shape.kind {
            Kind::Qemu => qemu::start(plan, tools),
            Kind::Bochs(processor) => bochs::start(plan, processor),
        }
    }

    /// Look at what its processor does, this often; once.
    ///
    /// # Errors
    /// The second time, or if it is not QEMU.
    pub fn sample(&self, every: Duration) -> Result<Sampler> {
        match &self.emulator {
            Emulator::Qemu(qemu) => qemu.sample(every),
            Emulator::Bochs(_) => Err(self.cannot("be looked into")),
        }
        .with_context(|| format!("host {}", self.name))
    }

    /// Save the machine of [`Origin::First`] to the folder that was named there; it does not go on.
    ///
    /// # Errors
    /// If the emulator cannot.
    pub fn save(&mut self, folder: &Path) -> Result<()> {
        match &mut self.emulator {
            Emulator::Qemu(qemu) => qemu.save(folder),
            Emulator::Bochs(bochs) => bochs.save(&mut self.child),
        }
        .with_context(|| format!("host {}", self.name))
    }

    /// Stop it where it is.
    ///
    /// # Errors
    /// If the emulator is gone.
    pub fn pause(&mut self) -> Result<()> {
        match &mut self.emulator {
            Emulator::Qemu(qemu) => qemu.command("stop", &json!({})).map(drop),
            // Its clock counts instructions, so this is the same.
            Emulator::Bochs(_) => self.signal(Signal::STOP),
        }
        .with_context(|| format!("host {}", self.name))
    }

    /// Let it go on.
    ///
    /// # Errors
    /// If the emulator is gone.
    pub fn unpause(&mut self) -> Result<()> {
        match &mut self.emulator {
            Emulator::Qemu(qemu) => qemu.command("cont", &json!({})).map(drop),
            Emulator::Bochs(_) => self.signal(Signal::CONT),
        }
        .with_context(|| format!("host {}", self.name))
    }

    /// Pull its cable out of the LAN, or put it back.
    ///
    /// # Errors
    /// If the emulator is gone or has no LAN.
    pub fn set_link(&mut self, up: bool) -> Result<()> {
        match &mut self.emulator {
            Emulator::Qemu(qemu) => qemu
                .command("set_link", &json!({"name": "lan", "up": up}))
                .map(drop),
            Emulator::Bochs(_) => Err(self.cannot("lose its cable, for it has none")),
        }
        .with_context(|| format!("host {}", self.name))
    }

    /// What only QEMU can do.
    fn cannot(&self, what: &str) -> anyhow::Error {
        anyhow::anyhow!("a machine in Bochs cannot {what}: use one in QEMU (`--machine qemu`)")
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|_| self.is_alive()) else {
            bail!("the machine is gone");
        };
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Does it still run?
    #[must_use]
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// End it as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Process number of the emulator.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills the process unless it is taken out.
struct Killed(Option<Child>);

impl Killed {
    fn new(child: Child) -> Self {
        Self(Some(child))
    }

    fn id(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    fn process(&mut self) -> &mut Child {
        self.0.as_mut().expect("set when it was made")
    }

    fn keep(mut self) -> Child {
        self.0.take().expect("set when it was made")
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// All that shapes a machine, for the key of its snapshot.
#[must_use]
pub fn fingerprint(shape: Shape) -> String {
    let own = match shape.kind {
        Kind::Qemu => qemu::fingerprint(),
        Kind::Bochs(_) => bochs::fingerprint(),
    };
    format!("2 {shape:?} {own} {}", plan::fingerprint(shape))
}

/// The file with the memory in the folder of a snapshot that [`Machine::save`] has just made, of which what is
/// no use to anybody else is removed.
///
/// # Errors
/// If the snapshot is not whole.
pub fn memory_file(kind: Kind, folder: &Path) -> Result<PathBuf> {
    match kind {
        Kind::Qemu => Ok(qemu::memory_file(folder)),
        Kind::Bochs(_) => bochs::finish_state(folder),
    }
}
