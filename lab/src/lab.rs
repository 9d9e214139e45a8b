//! A lab: some hosts on one LAN with one shared disk.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use crate::config::Config;
use crate::host::Host;
use crate::lan;
use crate::machine::{Kind, Machine, Origin, PRIVATE_DISK, Plan};
use crate::progress;
use crate::run::RunFolder;
use crate::snapshot::{self, Snapshot};
use crate::tools::Tools;

/// Names of the hosts, in order; the first has address 192.0.2.1.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A folder to copy each host's trace to.
const TRACES: &str = "UNMOVED_LAB_TRACES";

/// Running hosts.  All ends when it is dropped.
#[derive(Debug)]
pub struct Lab {
    /// The hosts: `a`, `b`, ….
    pub hosts: Vec<Host>,
    tools: Tools,
    folder: RunFolder,
    config: Config,
    /// Ends of the LAN for hosts that are switched on again.
    ends: Ends,
}

impl Lab {
    /// Start a lab, use it, end it.  If `job` fails, the logs are kept and the error names their folder.
    ///
    /// # Errors
    /// If the lab does not start or `job` fails.
    pub fn run<T>(
        name: &str,
        config: &Config,
        job: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let folder = RunFolder::new(name)?;
        let step = progress::step(format!("lab {name}"));
        let tools = Tools::get()?;
        let path = folder.path().to_owned();
        let started = start_hosts(config, &path, &tools);
        let mut lab = Self {
            hosts: Vec::new(),
            tools,
            folder,
            config: config.clone(),
            ends: Vec::new(),
        };
        let result = started.and_then(|(hosts, ends)| {
            (lab.hosts, lab.ends) = (hosts, ends);
            let keep_if_panics = Keep(&path);
            let result = job(&mut lab);
            std::mem::forget(keep_if_panics);
            result
        });
        lab.keep_traces(name);
        match result {
            Ok(value) => {
                step.done("ended");
                Ok(value)
            }
            Err(error) => {
                lab.collect_logs();
                lab.hosts.clear();
                let path = lab.folder.keep();
                Err(anyhow!(
                    "{error:#} (the lab's logs are in {})",
                    path.display()
                ))
            }
        }
    }

    /// The host of this index.
    ///
    /// # Panics
    /// If there are not so many hosts.
    #[must_use]
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// Cuts the power of a host, unless that has been done, and switches it on again.  Its disks are as
    /// it left them; all else is as after its first boot.
    ///
    /// # Errors
    /// If the lab's hosts are not revivable, or this one does not start.
    pub fn switch_on(&mut self, index: usize) -> Result<()> {
        let end = self.ends.get(index).and_then(Option::as_ref);
        let end = end.context("this lab's hosts cannot be switched on again")?;
        let end = end.try_clone()?;
        self.hosts[index].kill();
        let snapshot = Snapshot::get(self.config.hosts[index], self.config.shape, &self.tools)?;
        let (folder, shared) = (self.folder.path(), self.folder.path().join("shared.img"));
        self.hosts[index] = start_host(
            index,
            &snapshot,
            &self.config,
            folder,
            &shared,
            Some(end),
            &self.tools,
        )?;
        Ok(())
    }

    /// The programs of the lab.
    #[must_use]
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The run's folder; it goes away with the lab.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Copy what took time to where somebody wants to read it.
    fn keep_traces(&self, lab: &str) {
        let Some(folder) = std::env::var_os(TRACES).map(PathBuf::from) else {
            return;
        };
        // A test does not fail for want of them.
        let _ = fs::create_dir_all(&folder);
        for host in &self.hosts {
            let trace = self.folder.path().join(host.name()).join("trace.log");
            let _ = fs::copy(trace, folder.join(format!("{lab}-{}.trace", host.name())));
        }
    }

    /// Fetch the logs that are inside the hosts; what cannot be had is left out.
    fn collect_logs(&mut self) {
        for host in &mut self.hosts {
            if !host.is_alive() {
                continue;
            }
            let task = host.start(&["sh", "-c", LOGS]);
            let output = task.and_then(|task| task.wait(std::time::Duration::from_secs(30)));
            if let Ok(output) = output {
                let file = self.folder.path().join(host.name()).join("dom0.log");
                let _ = fs::write(file, output.stdout + &output.stderr);
            }
        }
    }
}

/// Prints what a host can tell of a failure: its domains, what its processes do or wait for, all logs.
const LOGS: &str = "xl list
    ps axo pid,stat,wchan:24,time,args
    for daemon in xenstored xenconsoled; do cat \"/proc/$(pgrep -o -x $daemon)/stack\"; done
    xl dmesg | tail -c 60000
    xenstore-ls -f
    dmesg | tail -n 200
    cd /var/log/xen && tail -c 100000 *.log console/*.log";

/// Marks a run's folder as kept when the job panics.
struct Keep<'a>(&'a PathBuf);

impl Drop for Keep<'_> {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("kept"), "");
        eprintln!("the lab's logs are in {}", self.0.display());
    }
}

type Ends = Vec<Option<OwnedFd>>;

fn start_hosts(config: &Config, folder: &Path, tools: &Tools) -> Result<(Vec<Host>, Ends)> {
    let count = config.hosts.len();
    ensure!(
        (1..=NAMES.len()).contains(&count),
        "a lab has 1 to 4 hosts, not {count}"
    );
    let kind = config.shape.kind;
    ensure!(
        kind == Kind::Qemu || (count == 1 && !config.revivable),
        "a machine '{}' has no LAN and no disk that it shares: a lab with it has one host, which is started once",
        kind.name()
    );
    let mut snapshots = Vec::new();
    for xen in &config.hosts {
        snapshots.push(Snapshot::get(*xen, config.shape, tools)?);
    }
    let ends = lan::ends(count, config.revivable)?;
    let kept = match config.revivable {
        true => ends
            .iter()
            .map(|end| end.as_ref().map(OwnedFd::try_clone).transpose())
            .collect::<std::io::Result<Ends>>()?,
        false => Vec::new(),
    };
    let shared = folder.join("shared.img");
    let hosts: Result<Vec<Host>> = thread::scope(|scope| {
        let mut starts = Vec::new();
        for (index, (snapshot, lan)) in snapshots.iter().zip(ends).enumerate() {
            let shared = &shared;
            starts
                .push(scope.spawn(move || {
                    start_host(index, snapshot, config, folder, shared, lan, tools)
                }));
        }
        starts
            .into_iter()
            .map(|start| {
                start
                    .join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
            })
            .collect()
    });
    Ok((hosts?, kept))
}

fn start_host(
    index: usize,
    snapshot: &Snapshot,
    config: &Config,
    folder: &Path,
    shared: &Path,
    lan: Option<OwnedFd>,
    tools: &Tools,
) -> Result<Host> {
    let name = NAMES[index];
    let folder = folder.join(name);
    fs::create_dir_all(&folder)?;
    let initrd = folder.join("initrd.img");
    if config.cold {
        snapshot::write_initrd(snapshot.dom0(), &initrd)?;
    }
    if let Some(content) = &config.disk {
        let disk = folder.join(PRIVATE_DISK);
        // One that is switched on again finds its disk as it left it.
        if !disk.exists() {
            fs::copy(content, &disk).with_context(|| format!("cannot write {}", disk.display()))?;
        }
    }
    let plan = Plan {
        name,
        shape: config.shape,
        dom0: snapshot.dom0(),
        origin: match config.cold {
            true => Origin::PowerOn(&initrd),
            false => Origin::Snapshot(snapshot.folder()),
        },
        folder: &folder,
        shared_disk: shared,
        lan,
    };
    let machine = Machine::start(plan, tools)?;
    if config.cold {
        snapshot::wait_until_ready(&machine, config.shape)?;
    }
    let number = u8::try_from(index + 1).context("a lab has few hosts")?;
    Host::arrive(name, number, config, machine)
}
