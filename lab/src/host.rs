//! One lab host: commands in its dom0, files in and out, power and cable.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::channel::{Output, Task};
use crate::config::Config;
use crate::log::Log;
use crate::machine::Machine;
use crate::profile::Sampler;

/// Limit of commands and copies for which none is given, in QEMU: long enough for a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(600);

/// What makes a host out of the common snapshot; not in the image, so that it can change without a boot.
const ARRIVE: &str = include_str!("../../images/dom0/arrive");

/// A running host.
#[derive(Debug)]
pub struct Host {
    name: String,
    number: u8,
    patience: u32,
    machine: Machine,
}

impl Host {
    /// Take over a machine that is up, and give it its name, address, the time of day and hotplug scripts.
    ///
    /// # Errors
    /// If its agent does not answer.
    pub(crate) fn arrive(
        name: &str,
        number: u8,
        config: &Config,
        machine: Machine,
    ) -> Result<Self> {
        let patience = config.shape.kind.patience();
        machine
            .channel
            .hello(LIMIT * patience)
            .with_context(|| format!("host {name}"))?;
        let host = Self {
            name: name.to_owned(),
            number,
            patience,
            machine,
        };
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .context("this machine's clock is before 1970")?;
        let (number, now) = (number.to_string(), format!("{:.3}", now.as_secs_f64()));
        let scripts = config.scripts.word();
        host.ok(&["sh", "-c", ARRIVE, "arrive", name, &number, &now, scripts])
            .map_err(|error| anyhow::anyhow!("host {name} did not arrive: {error}"))?;
        Ok(host)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the LAN.
    #[must_use]
    pub fn address(&self) -> String {
        format!("192.0.2.{}", self.number)
    }

    /// A limit that is right in QEMU, as it is on this host's machine.
    #[must_use]
    pub fn patient(&self, limit: Duration) -> Duration {
        limit * self.patience
    }

    /// How many times longer than QEMU its machine may take.
    pub(crate) fn patience(&self) -> u32 {
        self.patience
    }

    /// Xen's and dom0's serial console.
    #[must_use]
    pub fn serial(&self) -> &Log {
        &self.machine.serial
    }

    /// Process number of its emulator.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Look at what its processor does, this often; once in its life.
    ///
    /// # Errors
    /// The second time, or if it is not a QEMU.
    pub fn sample(&self, every: Duration) -> Result<Sampler> {
        self.machine.sample(every)
    }

    /// Start a command in dom0.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn start(&self, words: &[&str]) -> Result<Task> {
        self.machine
            .channel
            .start(words)
            .with_context(|| format!("host {}", self.name))
    }

    /// Run a command in dom0 to its end, within [`LIMIT`] as [`Host::patient`] has it.
    ///
    /// # Errors
    /// If it cannot be started or does not end in time; its exit code is no error.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        let task = self.start(words)?;
        task.end_input()?;
        task.wait(self.patient(LIMIT))
            .with_context(|| format!("host {}", self.name))
    }

    /// Run a command that must succeed; its standard output.
    ///
    /// # Errors
    /// As [`Host::run`], or if its exit code is not 0.
    pub fn ok(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        if output.code != 0 {
            bail!(
                "host {}: `{}` failed with {}: {}",
                self.name,
                words.join(" "),
                output.code,
                output.stderr.trim()
            );
        }
        Ok(output.stdout)
    }

    /// Run a shell script that must succeed; its standard output.
    ///
    /// # Errors
    /// As [`Host::ok`].
    pub fn sh(&self, script: &str) -> Result<String> {
        self.ok(&["sh", "-c", script])
    }

    /// Copy a file into dom0.
    ///
    /// # Errors
    /// If either side cannot be read or written.
    pub fn copy_in(&self, from: &Path, to: &str) -> Result<()> {
        self.machine
            .channel
            .copy_in(from, to, self.patient(LIMIT))
            .with_context(|| format!("host {}", self.name))
    }

    /// Copy a file out of dom0.
    ///
    /// # Errors
    /// If either side cannot be read or written.
    pub fn copy_out(&self, from: &str, to: &Path) -> Result<()> {
        self.machine
            .channel
            .copy_out(from, to, self.patient(LIMIT))
            .with_context(|| format!("host {}", self.name))
    }

    /// Stop the whole host where it is.
    ///
    /// # Errors
    /// If its emulator is gone.
    pub fn pause(&mut self) -> Result<()> {
        self.machine.pause()
    }

    /// Let a paused host go on.
    ///
    /// # Errors
    /// If its emulator is gone.
    pub fn unpause(&mut self) -> Result<()> {
        self.machine.unpause()
    }

    /// Pull the host's cable out of the LAN, or put it back.
    ///
    /// # Errors
    /// If its emulator is gone, or has no LAN.
    pub fn set_link(&mut self, up: bool) -> Result<()> {
        self.machine.set_link(up)
    }

    /// Cut its power.
    pub fn kill(&mut self) {
        self.machine.kill();
    }

    /// Is its emulator running?
    #[must_use]
    pub fn is_alive(&mut self) -> bool {
        self.machine.is_alive()
    }
}
