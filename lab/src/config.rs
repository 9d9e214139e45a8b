//! What a lab is to be made of: what its tests and commands say.

use std::path::PathBuf;

use crate::images::Xen;
use crate::machine::{Kind, Shape};

/// What a lab is to be made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Xen of each host: as many hosts as there are entries, at most four.
    pub hosts: Vec<Xen>,
    /// Their machines.
    pub shape: Shape,
    /// Boot from power-on instead of starting from the snapshot.
    pub cold: bool,
    /// What each host's private disk begins with; nothing else is on it.
    pub disk: Option<PathBuf>,
    /// Hotplug scripts of each host.
    pub scripts: Scripts,
    /// Hosts are to be [switched on](crate::Lab::switch_on) again; their LAN is slower.
    pub revivable: bool,
}

impl Config {
    /// This many hosts of the default kind.
    #[must_use]
    pub fn hosts(count: usize) -> Self {
        Self {
            hosts: vec![Xen::default(); count],
            shape: Shape::default(),
            cold: false,
            disk: None,
            scripts: Scripts::default(),
            revivable: false,
        }
    }

    /// One host on a machine of this kind.
    #[must_use]
    pub fn on(kind: Kind) -> Self {
        Self {
            shape: Shape::of(kind),
            ..Self::hosts(1)
        }
    }
}

/// Which hotplug scripts a host has for disks and cards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scripts {
    /// Short ones that do the same for what a lab has.
    #[default]
    Quick,
    /// Xen's own, as a host out there has them; slow under emulation.
    Xen,
}

impl Scripts {
    /// As `arrive` knows it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Xen => "xen",
        }
    }
}
