//! `cargo xtask setup`: everything that a lab needs, downloaded and made, so that later runs are quick.

use anyhow::Result;
use clap::Args;
use unmoved_lab::images::{GuestKernel, Xen};
use unmoved_lab::programs::{self, Program};
use unmoved_lab::snapshot::Snapshot;
use unmoved_lab::tools::Tools;
use unmoved_lab::{DebianRoot, Shape, cache, initramfs, paths};

/// What to set up.
#[derive(Debug, Default, Args)]
pub struct Setup {
    /// Forget which package versions were chosen, and choose the newest
    #[arg(long)]
    refresh: bool,
    /// Take Debian packages from this archive instead of the one this machine is configured for
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

/// Builds all programs that run on hosts and in guests.
///
/// # Errors
/// If one does not build.
pub fn programs() -> Result<()> {
    for program in Program::ALL {
        program.build()?;
    }
    programs::shim()?;
    programs::hostile().map(drop)
}

impl Setup {
    /// Do it.
    ///
    /// # Errors
    /// If a package cannot be had or an image not be made.
    pub fn run(self) -> Result<()> {
        if let Some(mirror) = &self.mirror {
            unmoved_lab::mirror::choose(mirror);
        }
        if self.refresh {
            cache::remove(&paths::cache()?.join("resolved"))?;
        }
        let tools = Tools::get()?;
        for kernel in GuestKernel::ALL {
            let files = kernel.get(&tools)?;
            if kernel != GuestKernel::Grub {
                initramfs::busybox(&files)?;
            }
            if kernel == GuestKernel::Debian12 {
                initramfs::debian(&files)?;
            }
        }
        DebianRoot::get()?;
        for xen in Xen::ALL {
            Snapshot::get(xen, Shape::default(), &tools)?;
        }
        eprintln!(
            "  ✓ the lab is ready; images are in {}",
            paths::cache()?.display()
        );
        Ok(())
    }
}
