//! A guest written down as an `xl` configuration, and created from it.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::Guest;
use crate::host::Host;

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
    /// How its TSC is presented (`tsc_mode` in xl.cfg).
    pub tsc: Tsc,
    /// Further lines of its configuration.
    pub lines: Vec<String>,
}

/// How a guest's TSC is presented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tsc {
    /// As the host's own, as any host does by default whose TSC is invariant.  QEMU's is, but does not
    /// say so in CPUID, and then Xen would emulate each RDTSC of a guest in a PVH container: half of
    /// its boot under emulation would be that.
    #[default]
    Native,
    /// As Xen decides.
    Default,
}

impl Tsc {
    /// As in xl.cfg.
    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Default => "default",
        }
    }
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
            tsc: Tsc::default(),
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
    /// If `xl create` fails; the error is the first that it complained of.
    pub fn create(&self, host: &Host) -> Result<Guest> {
        self.install(host)?;
        self.start(host)
    }

    /// Create the guest, whose files are installed.
    ///
    /// # Errors
    /// If `xl create` fails; the error is the first that it complained of.
    pub fn start(&self, host: &Host) -> Result<Guest> {
        self.run_create(host, &["xl", "create", &self.path("cfg")])
    }

    /// Create the guest, whose files are installed, but do not let it run: `xl unpause` does.
    ///
    /// # Errors
    /// If `xl create` fails; the error is the first that it complained of.
    pub fn start_paused(&self, host: &Host) -> Result<Guest> {
        self.run_create(host, &["xl", "create", "-p", &self.path("cfg")])
    }

    fn run_create(&self, host: &Host, command: &[&str]) -> Result<Guest> {
        let guest = Guest::attach(&self.name, host)?;
        let output = host.run(command)?;
        if output.code != 0 {
            // The toolstack says first what went wrong, then at length what follows from that.
            let why = output
                .stderr
                .lines()
                .find(|line| line.contains("error") || line.contains("panic"))
                .unwrap_or("xl gave no reason");
            bail!(
                "host {}: cannot create guest {}: {why}",
                host.name(),
                self.name
            );
        }
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
        let _ = writeln!(text, "tsc_mode = {}", quote(self.tsc.name()));
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
