//! Guests on a lab host: written down as an `xl` configuration, created by the stock toolstack.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use unmoved_workload::report::parse_line;

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

/// A guest on a host, seen through its console.
#[derive(Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// All that its console said on this host, from the guest's creation or arrival on.
    pub console: Log,
    follow: Task,
}

/// Puts a line into the console of a guest; arguments: its name, the line.
const TYPE_LINE: &str =
    "printf '%s\\n' \"$2\" >\"$(xenstore-read \"/local/domain/$(xl domid \"$1\")/console/tty\")\"";

impl Guest {
    /// Read the console of the guest called `name`, which may not exist yet, on `host`.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn attach(name: &str, host: &Host) -> Result<Self> {
        Self::follow(name, name, host)
    }

    /// Read the console of a guest that arrives (or will arrive) by migration.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn attach_incoming(name: &str, host: &Host) -> Result<Self> {
        // xenconsoled names the file when the domain appears, and it appears under this name.
        Self::follow(name, &format!("{name}--incoming"), host)
    }

    fn follow(name: &str, file: &str, host: &Host) -> Result<Self> {
        let file = format!("/var/log/xen/console/guest-{file}.log");
        let follow = host.start(&["tail", "-q", "-n", "+1", "-F", &file])?;
        Ok(Self {
            name: name.to_owned(),
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
            .with_context(|| format!("console of guest {}", self.name))
    }

    /// Wait for a report of the guest's workload that came after `mark` (of [`Log::mark`]) and for
    /// which `wanted` says yes.
    ///
    /// # Errors
    /// If none comes within the limit, or the workload refuses what its command line asks for.
    pub fn report(
        &self,
        mark: usize,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let end = Instant::now() + limit;
        let (mut mark, mut text) = (mark, Vec::new());
        let mut last = String::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(new) = self.console.more(mark, left) else {
                bail!(
                    "guest {} did not report what was waited for within {} s; it ended with: {last}{}",
                    self.name,
                    limit.as_secs(),
                    String::from_utf8_lossy(&text)
                );
            };
            mark += new.len();
            text.extend_from_slice(&new);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                last = String::from_utf8_lossy(&line).into_owned();
                // A report torn by a kernel message is waited for in vain: the limit says so.
                let Some(Ok(report)) = parse_line(&last) else {
                    continue;
                };
                ensure!(
                    !is_refused_boot_order(&report),
                    "guest {}: {} at boot: {}",
                    self.name,
                    report["order"],
                    report["why"]
                );
                if wanted(&report) {
                    return Ok(report);
                }
            }
        }
    }

    /// Wait until the guest's workload says that it is up.
    ///
    /// # Errors
    /// If it does not within the limit.
    pub fn ready(&self, limit: Duration) -> Result<Value> {
        self.report(0, limit, |report| report["ev"] == "ready")
    }

    /// Wait for a sign of life that is yet to come.
    ///
    /// # Errors
    /// If none comes within the limit.
    pub fn alive(&self, limit: Duration) -> Result<Value> {
        self.report(self.console.mark(), limit, |report| report["ev"] == "alive")
    }

    /// Type a line on the guest's console.
    ///
    /// # Errors
    /// If the guest has no console, or the host is gone.
    pub fn type_line(&self, host: &Host, line: &str) -> Result<()> {
        host.ok(&["sh", "-c", TYPE_LINE, "sh", &self.name, line])
            .map(drop)
    }

    /// Give the workload an order on its console and wait for the result: the report that carries the
    /// order's own name, or null if it has none.
    ///
    /// # Errors
    /// If the guest does not carry it out within the limit.
    pub fn order(&self, host: &Host, line: &str, limit: Duration) -> Result<Value> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let tag = format!("lab{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mark = self.console.mark();
        let line = format!("#{tag} {line}");
        self.type_line(host, &line)?;
        let done = self.report(mark, limit, |report| {
            report["re"] == *tag && report["ev"] == "done"
        })?;
        ensure!(
            done["ok"] == true,
            "guest {}: `{line}`: {}",
            self.name,
            done["why"]
        );
        let order = done["order"].clone();
        let result = self.report(mark, Duration::ZERO, |report| {
            report["re"] == *tag && report["ev"] == order
        });
        Ok(result.unwrap_or_default())
    }
}

/// Orders on the kernel's command line carry no tag, so nobody waits for what becomes of them.
fn is_refused_boot_order(report: &Value) -> bool {
    report["ev"] == "done" && report["ok"] == false && report.get("re").is_none()
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
