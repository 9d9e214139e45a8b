//! Guests on a lab host: written down as an `xl` configuration, created by the stock toolstack.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::channel::Task;
use crate::host::Host;
use crate::log::Log;

/// What a PV kernel runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum System {
    /// Directly on Xen, as a PV guest.
    Native,
    /// In Xen's own shim, as a PVH guest.
    XenShim,
    /// In the shim that is this file (on this machine), as a PVH guest.
    Shim(PathBuf),
}

/// A guest to be created.
#[derive(Clone, Debug)]
pub struct GuestPlan {
    /// Its name.
    pub name: String,
    /// What its kernel runs in.
    pub system: System,
    /// Its kernel (on this machine).
    pub kernel: PathBuf,
    /// Its initramfs (on this machine).
    pub initrd: Option<PathBuf>,
    /// Its kernel's command line.
    pub arguments: String,
    /// Its RAM in MiB, the shim's share included.
    pub memory_mib: u32,
    /// How many CPUs it sees.
    pub vcpus: u32,
    /// Its disks, each in xl's notation (`phy:/dev/vda,xvda,w`).
    pub disks: Vec<String>,
    /// Its network cards, each in xl's notation (`mac=…`).
    pub nics: Vec<String>,
    /// Further lines of its configuration.
    pub lines: Vec<String>,
}

impl GuestPlan {
    /// A guest of 256 MiB with one CPU and no devices.
    #[must_use]
    pub fn new(name: &str, system: System, kernel: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            system,
            kernel,
            initrd: None,
            arguments: "console=hvc0 earlyprintk=xen".to_owned(),
            memory_mib: 256,
            vcpus: 1,
            disks: Vec::new(),
            nics: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Copy the guest's files to `host`.
    ///
    /// # Errors
    /// If a file cannot be read or copied.
    pub fn install(&self, host: &Host) -> Result<()> {
        host.copy_in(&self.kernel, &self.path("kernel"))?;
        if let Some(initrd) = &self.initrd {
            host.copy_in(initrd, &self.path("initrd"))?;
        }
        if let System::Shim(shim) = &self.system {
            host.copy_in(shim, &self.path("shim"))?;
        }
        let task = host.start(&["sh", "-c", "cat >\"$1\"", "sh", &self.path("cfg")])?;
        task.write(self.config().as_bytes())?;
        task.end_input()?;
        task.wait(crate::host::LIMIT).map(drop)
    }

    /// Install and create the guest.
    ///
    /// # Errors
    /// If `xl create` fails; the error is what it said.
    pub fn create(&self, host: &Host) -> Result<Guest> {
        self.install(host)?;
        let guest = Guest::attach(&self.name, host)?;
        host.ok(&["xl", "create", &self.path("cfg")])
            .with_context(|| format!("cannot create guest {}", self.name))?;
        Ok(guest)
    }

    /// Where a file of this guest is on its host: `cfg`, `kernel`, `initrd`, `shim`.
    #[must_use]
    pub fn path(&self, file: &str) -> String {
        format!("/root/guests/{}/{file}", self.name)
    }

    /// The guest as `xl` reads it.
    #[must_use]
    pub fn config(&self) -> String {
        let mut text = format!("name = {}\n", quote(&self.name));
        text += match self.system {
            System::Native => "type = \"pv\"\n",
            System::XenShim | System::Shim(_) => "type = \"pvh\"\npvshim = 1\n",
        };
        if let System::Shim(_) = self.system {
            let _ = writeln!(text, "pvshim_path = {}", quote(&self.path("shim")));
        }
        let _ = writeln!(text, "kernel = {}", quote(&self.path("kernel")));
        if self.initrd.is_some() {
            let _ = writeln!(text, "ramdisk = {}", quote(&self.path("initrd")));
        }
        let _ = writeln!(text, "extra = {}", quote(&self.arguments));
        let _ = writeln!(text, "memory = {}\nvcpus = {}", self.memory_mib, self.vcpus);
        for (key, values) in [("disk", &self.disks), ("vif", &self.nics)] {
            let values: Vec<String> = values.iter().map(|value| quote(value)).collect();
            let _ = writeln!(text, "{key} = [{}]", values.join(", "));
        }
        text += "on_poweroff = \"destroy\"\non_reboot = \"destroy\"\non_crash = \"preserve\"\n";
        for line in &self.lines {
            text += line;
            text.push('\n');
        }
        text
    }
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace(['"', '\n'], "'"))
}

/// A guest on a host, seen through its console.
#[derive(Debug)]
pub struct Guest {
    /// All that its console said on this host, from the guest's creation or arrival on.
    pub console: Log,
    follow: Task,
}

impl Guest {
    /// Read the console of the guest called `name`, which may not exist yet, on `host`.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn attach(name: &str, host: &Host) -> Result<Self> {
        let file = format!("/var/log/xen/console/guest-{name}.log");
        let follow = host.start(&["tail", "-q", "-n", "+1", "-F", &file])?;
        Ok(Self {
            console: follow.stdout.clone(),
            follow,
        })
    }

    /// Wait until the console says something that matches `pattern`.
    ///
    /// # Errors
    /// If it does not within the limit.
    pub fn wait_for(&self, pattern: &str, limit: Duration) -> Result<String> {
        self.console
            .wait_for(pattern, limit)
            .context("guest console")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The host may be gone, and `tail` with it.
        let _ = self.follow.signal(15);
    }
}

#[cfg(test)]
mod tests {
    use super::{GuestPlan, System};

    #[test]
    fn a_shim_is_named_in_the_configuration() {
        let mut plan = GuestPlan::new("g", System::Shim("shim".into()), "k".into());
        plan.disks.push("phy:/dev/vda,xvda,w".to_owned());
        let text = plan.config();
        assert!(
            text.contains("type = \"pvh\"\npvshim = 1\npvshim_path = \"/root/guests/g/shim\"\n")
        );
        assert!(text.contains("disk = [\"phy:/dev/vda,xvda,w\"]\nvif = []\n"));
        plan.system = System::Native;
        assert!(!plan.config().contains("pvshim"));
    }
}
