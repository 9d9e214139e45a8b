//! QEMU as a machine: its command line, and what its control protocol is used for.
//!
//! The same arguments serve the first boot and every start from its snapshot; only what is behind the
//! devices differs (files, sockets, the memory's file).  Why each flag is what it is: `lab/README.md`.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use unmoved_lab_agent::{PORT_NAME, WINDOW_SERIAL};

use super::plan::{DOM0_ARGUMENTS, Origin, PRIVATE_DISK, Plan, WINDOW, XEN_ARGUMENTS};
use super::{Emulator, Killed, Machine};
use crate::channel::Channel;
use crate::log::Log;
use crate::process;
use crate::profile::Sampler;
use crate::qmp::Qmp;
use crate::tools::Tools;
use crate::trace::Trace;

/// `EPYC` because Xen inside the guest refuses QEMU's own models; MWAIT and SMAP are emulated wrongly,
/// and XCR0 of a nested guest is lost when it has any bit that Xen does not set by itself (AVX).
const CPU: &str = "EPYC,-monitor,-smap,-avx,-avx2,-fma,-f16c";
/// A snapshot's memory, in its folder.
const MEMORY: &str = "memory";
/// The rest of a snapshot.
const STATE: &str = "state";

/// The wires to a running QEMU.
#[derive(Debug)]
pub struct Qemu {
    qmp: Qmp,
    /// A second connection of that kind, until a sampler takes it.
    watch: Mutex<Option<UnixStream>>,
}

/// What of this file shapes a machine.
pub fn fingerprint() -> String {
    CPU.to_owned()
}

/// Where a snapshot's memory is.
pub fn memory_file(folder: &Path) -> PathBuf {
    folder.join(MEMORY)
}

/// Start it.
pub fn start(plan: Plan<'_>, tools: &Tools) -> Result<Machine> {
    let (control, qmp_end) = UnixStream::pair()?;
    let (watch, watch_end) = UnixStream::pair()?;
    let (agent, agent_end) = UnixStream::pair()?;
    let (serial, serial_end) = UnixStream::pair()?;
    let mut qemu = tools.qemu();
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    qemu.args(["-accel", "tcg", "-cpu", CPU]);
    qemu.arg("-smp").arg(plan.shape.cpus.to_string());
    memory_arguments(&plan, &mut qemu);
    boot_arguments(&plan, &mut qemu)?;
    socket(&mut qemu, "control", &qmp_end);
    socket(&mut qemu, "watch", &watch_end);
    for monitor in ["control", "watch"] {
        qemu.args(["-mon", &format!("chardev={monitor},mode=control")]);
    }
    socket(&mut qemu, "serial0", &serial_end);
    qemu.args(["-serial", "chardev:serial0"]);
    socket(&mut qemu, "agent", &agent_end);
    qemu.args(["-device", "virtio-serial-pci,id=ports,max_ports=4"]);
    qemu.arg("-device").arg(format!(
        "virtserialport,bus=ports.0,nr=1,chardev=agent,name={PORT_NAME}"
    ));
    let (window, own) = (plan.folder.join(WINDOW), plan.folder.join(PRIVATE_DISK));
    drive(
        &mut qemu,
        "shared",
        "shared",
        plan.shared_disk,
        "directsync",
    );
    // Hosts tell shared disks from others by these.
    let own_serial = format!("own-{:.16}", plan.name);
    drive(&mut qemu, "private", &own_serial, &own, "unsafe");
    drive(&mut qemu, WINDOW_SERIAL, WINDOW_SERIAL, &window, "unsafe");
    let mut descriptors: Vec<OwnedFd> = vec![
        qmp_end.into(),
        watch_end.into(),
        agent_end.into(),
        serial_end.into(),
    ];
    match plan.lan {
        Some(end) => {
            qemu.arg("-netdev")
                .arg(format!("socket,id=lan,fd={}", end.as_raw_fd()));
            descriptors.push(end);
        }
        None => {
            qemu.args(["-netdev", "hubport,id=lan,hubid=0"]);
        }
    }
    qemu.args([
        "-device",
        "virtio-net-pci,netdev=lan,romfile=,mac=02:00:00:00:00:01",
    ]);
    let errors = plan.folder.join("qemu.log");
    qemu.stdin(std::process::Stdio::null())
        .stdout(File::create(plan.folder.join("qemu.out"))?)
        .stderr(File::create(&errors)?);
    let child = Killed::new(process::spawn(qemu, descriptors).context("cannot run QEMU")?);

    let log = Log::to_file(&plan.folder.join("serial.log"))?;
    log.read_from(serial);
    let qmp = Qmp::connect(control).with_context(|| {
        let said = fs::read_to_string(&errors).unwrap_or_default();
        format!("host {} did not start: {}", plan.name, said.trim())
    })?;
    let mut qemu = Qemu {
        qmp,
        watch: Mutex::new(Some(watch)),
    };
    if let Origin::Snapshot(folder) = plan.origin {
        qemu.load_state(&folder.join(STATE))
            .with_context(|| format!("host {}", plan.name))?;
    }
    let trace = Trace::new(plan.folder, child.id());
    Ok(Machine {
        name: plan.name.to_owned(),
        child: child.keep(),
        emulator: Emulator::Qemu(qemu),
        serial: log,
        channel: Channel::new(agent.try_clone()?, agent, window, trace),
    })
}

impl Qemu {
    /// A command of its control protocol.
    pub fn command(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        self.qmp.command(name, arguments)
    }

    /// Look at what its processor does, this often; once.
    pub fn sample(&self, every: Duration) -> Result<Sampler> {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = watch.take().context("it was sampled already")?;
        Ok(Sampler::start(socket, every))
    }

    /// Write the stopped machine's state, all but its memory, which its file has, to a snapshot's folder.
    pub fn save(&mut self, folder: &Path) -> Result<()> {
        self.prepare_migration()?;
        self.command("stop", &json!({}))?;
        let to = folder.join(STATE);
        self.command(
            "migrate",
            &json!({"uri": format!("exec:cat > '{}'", to.display())}),
        )?;
        self.migrated(Duration::from_secs(120))
    }

    /// Take a state that was saved, and run on from there.
    fn load_state(&mut self, from: &Path) -> Result<()> {
        self.prepare_migration()?;
        self.command(
            "migrate-incoming",
            &json!({"uri": format!("exec:cat '{}'", from.display())}),
        )?;
        self.migrated(Duration::from_secs(60))?;
        self.command("cont", &json!({})).map(drop)
    }

    /// The memory's file has the memory, so the state leaves it out.
    fn prepare_migration(&mut self) -> Result<()> {
        let capabilities = json!([
            {"capability": "x-ignore-shared", "state": true},
            {"capability": "events", "state": true},
        ]);
        self.command(
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
            "the machine's state could not be moved"
        );
        Ok(())
    }
}

/// The memory is a file: shared while a snapshot is made, private to each machine that starts from it.
fn memory_arguments(plan: &Plan<'_>, qemu: &mut Command) {
    let size = plan.shape.memory_mib;
    let file = |folder: &Path, share: &str| {
        let path = memory_file(folder);
        format!(
            "memory-backend-file,mem-path={},share={share}",
            path.display()
        )
    };
    let backend = match plan.origin {
        Origin::First(_, folder) => file(folder, "on"),
        Origin::Snapshot(folder) => file(folder, "off"),
        Origin::PowerOn(_) => "memory-backend-ram".to_owned(),
    };
    qemu.arg("-object")
        .arg(format!("{backend},id=ram,size={size}M"));
    qemu.arg("-m").arg(format!("{size}M"));
    qemu.args(["-machine", "pc,memory-backend=ram,hpet=on"]);
}

fn boot_arguments(plan: &Plan<'_>, qemu: &mut Command) -> Result<()> {
    qemu.arg("-kernel").arg(plan.dom0.xen());
    qemu.args(["-append", XEN_ARGUMENTS]);
    let (kernel, initrd) = match plan.origin {
        Origin::PowerOn(initrd) | Origin::First(initrd, _) => {
            (plan.dom0.kernel(), initrd.to_owned())
        }
        Origin::Snapshot(_) => {
            // Only the size of the loader's ROM counts for a snapshot, and that is always the same.
            let empty = plan.folder.join("empty");
            fs::write(&empty, " ")?;
            (empty.clone(), empty)
        }
    };
    qemu.arg("-initrd").arg(format!(
        "{} {},{}",
        kernel.display(),
        DOM0_ARGUMENTS,
        initrd.display()
    ));
    if let Origin::Snapshot(_) = plan.origin {
        qemu.args(["-incoming", "defer"]);
    }
    Ok(())
}

fn socket(qemu: &mut Command, id: &str, end: &UnixStream) {
    qemu.arg("-chardev")
        .arg(format!("socket,id={id},fd={}", end.as_raw_fd()));
}

fn drive(qemu: &mut Command, id: &str, serial: &str, file: &Path, cache: &str) {
    qemu.arg("-drive").arg(format!(
        "if=none,id={id},file={},format=raw,cache={cache},file.locking=off,discard=unmap",
        file.display()
    ));
    qemu.arg("-device")
        .arg(format!("virtio-blk-pci,drive={id},serial={serial}"));
}
