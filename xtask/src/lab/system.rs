//! What a guest's kernel runs in, as named on command lines.

use anyhow::Result;
use clap::ValueEnum;
use unmoved_lab::{System, programs};

/// A system by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SystemName {
    /// This project's shim, built if need be
    #[default]
    Unmoved,
    /// Xen's own shim
    XenShim,
    /// None: a plain PV guest
    Pv,
}

impl SystemName {
    /// The system itself.
    ///
    /// # Errors
    /// If the shim does not build.
    pub fn system(self) -> Result<System> {
        Ok(match self {
            Self::Unmoved => System::Shim(programs::shim()?),
            Self::XenShim => System::XenShim,
            Self::Pv => System::Native,
        })
    }
}
