//! `cargo xtask lab …`: the lab by hand.

mod boots;
mod cuts;
mod devices;
mod hostile;
mod hotplug;
mod lan;
mod moves;
mod profile;
mod run;
mod shell;
mod soak;
mod stress;
mod system;

use anyhow::Result;
use clap::Subcommand;

/// What to do in the lab.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start one host, create a guest under a shim, and show what both say
    Run(run::Run),
    /// Start hosts and run commands from standard input on them
    Shell(shell::Shell),
    /// Start the lab many times over, and count
    Soak(soak::Soak),
    /// Move a guest many times, and see that nothing grows
    Moves(moves::Moves),
    /// Cut migrations by the agents in all kinds of ways, and see what becomes of the guest
    Cuts(cuts::Cuts),
    /// Attack the shim with a hostile guest kernel
    Hostile(hostile::Hostile),
    /// Boot every kind of guest many times
    Boots(boots::Boots),
    /// Tell what the processor does while a guest boots
    Profile(profile::Profile),
    /// Run a storm of processes in a Debian guest
    Stress(stress::Stress),
    /// Load a Debian guest's disk and network card, everything checked
    Devices(devices::Devices),
    /// Plug and unplug a disk and a card under load
    Hotplug(hotplug::Hotplug),
    /// Measure the LAN between two hosts
    Lan(lan::Lan),
}

impl Command {
    /// Do it.
    ///
    /// # Errors
    /// If the lab does not start, or what was waited for does not happen.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Run(run) => run.run(),
            Self::Shell(shell) => shell.run(),
            Self::Soak(soak) => soak.run(),
            Self::Moves(moves) => moves.run(),
            Self::Cuts(cuts) => cuts.run(),
            Self::Hostile(hostile) => hostile.run(),
            Self::Boots(boots) => boots.run(),
            Self::Profile(profile) => profile.run(),
            Self::Stress(stress) => stress.run(),
            Self::Devices(devices) => devices.run(),
            Self::Hotplug(hotplug) => hotplug.run(),
            Self::Lan(lan) => lan.run(),
        }
    }
}
