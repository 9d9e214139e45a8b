//! The emulated machine: one QEMU process with the devices that every lab host has.

mod plan;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::channel::Channel;
use crate::log::Log;
use crate::profile::Sampler;
use crate::qmp::Qmp;

pub use plan::{Memory, PRIVATE_DISK, Plan, Shape, fingerprint};

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    name: String,
    child: Child,
    qmp: Qmp,
    /// A second connection of that kind, until a sampler takes it.
    watch: Mutex<Option<UnixStream>>,
    /// What Xen and dom0's kernel write to the serial port.
    pub serial: Log,
    /// The wire to the agent in dom0.
    pub channel: Channel,
}

impl Machine {
    /// A command of QEMU's control protocol.
    ///
    /// # Errors
    /// If QEMU refuses it or is gone.
    pub fn qmp(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        self.qmp
            .command(name, arguments)
            .with_context(|| format!("host {}", self.name))
    }

    /// Look at what its processor does, this often; once.
    ///
    /// # Errors
    /// The second time.
    pub fn sample(&self, every: Duration) -> Result<Sampler> {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = watch.take();
        let socket = socket.with_context(|| format!("host {} was sampled already", self.name))?;
        Ok(Sampler::start(socket, every))
    }

    /// Write the stopped machine's state, all but its memory, to a file.
    ///
    /// # Errors
    /// If QEMU cannot.
    pub fn save_state(&mut self, to: &Path) -> Result<()> {
        self.prepare_migration()?;
        self.qmp("stop", &json!({}))?;
        self.qmp(
            "migrate",
            &json!({"uri": format!("exec:cat > '{}'", to.display())}),
        )?;
        self.migrated(Duration::from_secs(120))
    }

    /// Take a state that [`Machine::save_state`] wrote, and run on from there.
    ///
    /// # Errors
    /// If it is not a state of such a machine.
    pub fn load_state(&mut self, from: &Path) -> Result<()> {
        self.prepare_migration()?;
        self.qmp(
            "migrate-incoming",
            &json!({"uri": format!("exec:cat '{}'", from.display())}),
        )?;
        self.migrated(Duration::from_secs(60))?;
        self.qmp("cont", &json!({})).map(drop)
    }

    /// The memory's file has the memory, so the state leaves it out.
    fn prepare_migration(&mut self) -> Result<()> {
        let capabilities = json!([
            {"capability": "x-ignore-shared", "state": true},
            {"capability": "events", "state": true},
        ]);
        self.qmp(
            "migrate-set-capabilities",
            &json!({"capabilities": capabilities}),
        )
        .map(drop)
    }

    fn migrated(&mut self, limit: Duration) -> Result<()> {
        let end = self.qmp.event("MIGRATION", limit, |data| {
            data["status"] == "completed" || data["status"] == "failed"
        })?;
        ensure!(
            end["status"] == "completed",
            "host {}: the machine's state could not be moved",
            self.name
        );
        Ok(())
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

    /// Process number of QEMU.
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

/// Where a machine's logs are, relative to its folder.
#[must_use]
pub fn logs(folder: &Path) -> [PathBuf; 2] {
    [folder.join("serial.log"), folder.join("qemu.log")]
}
