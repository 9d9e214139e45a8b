//! What a machine is to be, and the command line by which QEMU becomes it.
//!
//! The same arguments serve the first boot and every start from its snapshot; only what is behind the
//! devices differs (files, sockets, the memory's file).  Why each flag is what it is: `lab/README.md`.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;

use anyhow::{Context, Result};
use unmoved_lab_agent::{PORT_NAME, WINDOW_BYTES, WINDOW_SERIAL};

use super::Machine;
use crate::channel::Channel;
use crate::images::Dom0;
use crate::log::Log;
use crate::process;
use crate::qmp::Qmp;
use crate::tools::Tools;
use crate::trace::Trace;

/// Size of the disk that all hosts of a lab share.
pub const SHARED_DISK_BYTES: u64 = 1 << 30;
/// Size of the disk that each host has to itself.
pub const PRIVATE_DISK_BYTES: u64 = 2 << 30;
/// Its file in the machine's folder.
pub const PRIVATE_DISK: &str = "disk.img";

/// `EPYC` because Xen inside the guest refuses QEMU's own models; MWAIT and SMAP are emulated wrongly,
/// and XCR0 of a nested guest is lost when it has any bit that Xen does not set by itself (AVX).
const CPU: &str = "EPYC,-monitor,-smap,-avx,-avx2,-fma,-f16c";
/// `eager-fpu` because a nested guest's first SSE instruction does not trap in QEMU 7.2 when CR0.TS is
/// set: with Xen's lazy switching, guests overwrite the XMM registers of dom0's processes.  No other
/// mitigation is on, here or in dom0: the emulator does not speculate, and each indirect branch costs it more.
const XEN_ARGUMENTS: &str = "dom0_mem=640M,max:640M dom0_max_vcpus=1 loglvl=all guest_loglvl=all/all \
                             com1=115200,8n1 console=com1 conring_size=1m noreboot bootscrub=1 spec-ctrl=no,eager-fpu";
const DOM0_ARGUMENTS: &str = "console=hvc0 loglevel=4 mitigations=off rdinit=/init";

/// What can be chosen about a host's machine; part of the key of its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// RAM of the whole host, in MiB; dom0 takes 640 of them.
    pub memory_mib: u32,
    /// CPUs that Xen sees; QEMU runs each in a thread.
    pub cpus: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            memory_mib: 1536,
            cpus: 1,
        }
    }
}

/// Where the machine's memory lives.
#[derive(Clone, Copy, Debug)]
pub enum Memory<'a> {
    /// In this file, which keeps what the machine wrote: for making a snapshot.
    Into(&'a Path),
    /// In this file, but what the machine writes stays private: for starting from a snapshot.
    From(&'a Path),
    /// Nowhere: gone when the machine ends.
    Private,
}

/// A machine to be started.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Name of the host, for messages.
    pub name: &'a str,
    /// Its shape.
    pub shape: Shape,
    /// Hypervisor and kernel.
    pub dom0: &'a Dom0,
    /// The initramfs; one from a snapshot never looks at it and gets an empty one.
    pub initrd: Option<&'a Path>,
    /// Its memory.
    pub memory: Memory<'a>,
    /// Wait for a state instead of booting.
    pub incoming: bool,
    /// Its folder, for logs and disks.
    pub folder: &'a Path,
    /// The disk that it shares with others.
    pub shared_disk: &'a Path,
    /// Its end of the LAN: a stream of frames, each after its length.
    pub lan: Option<OwnedFd>,
}

impl Plan<'_> {
    /// Start the machine.
    ///
    /// # Errors
    /// If QEMU cannot be run or refuses its arguments.
    pub fn start(self, tools: &Tools) -> Result<Machine> {
        let (control, qmp_end) = UnixStream::pair()?;
        let (watch, watch_end) = UnixStream::pair()?;
        let (agent, agent_end) = UnixStream::pair()?;
        let (serial, serial_end) = UnixStream::pair()?;
        let window = self.folder.join("window.img");
        disk(&window, WINDOW_BYTES)?;
        let own_disk = self.folder.join(PRIVATE_DISK);
        disk(&own_disk, PRIVATE_DISK_BYTES)?;
        disk(self.shared_disk, SHARED_DISK_BYTES)?;

        let mut qemu = tools.qemu();
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        qemu.args(["-accel", "tcg", "-cpu", CPU]);
        qemu.arg("-smp").arg(self.shape.cpus.to_string());
        self.memory_arguments(&mut qemu);
        self.boot_arguments(&mut qemu)?;
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
        drive(
            &mut qemu,
            "shared",
            "shared",
            self.shared_disk,
            "directsync",
        );
        // Hosts tell shared disks from others by these.
        let own_serial = format!("own-{:.16}", self.name);
        drive(&mut qemu, "private", &own_serial, &own_disk, "unsafe");
        drive(&mut qemu, WINDOW_SERIAL, WINDOW_SERIAL, &window, "unsafe");
        let mut descriptors: Vec<OwnedFd> = vec![
            qmp_end.into(),
            watch_end.into(),
            agent_end.into(),
            serial_end.into(),
        ];
        match self.lan {
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
        let errors = self.folder.join("qemu.log");
        qemu.stdin(std::process::Stdio::null())
            .stdout(File::create(self.folder.join("qemu.out"))?)
            .stderr(File::create(&errors)?);
        let child = process::spawn(qemu, descriptors).context("cannot run QEMU")?;

        let log = Log::to_file(&self.folder.join("serial.log"))?;
        log.read_from(serial);
        let mut guard = Killed(Some(child));
        let qmp = Qmp::connect(control).with_context(|| {
            let said = fs::read_to_string(&errors).unwrap_or_default();
            format!("host {} did not start: {}", self.name, said.trim())
        })?;
        let child = guard.0.take().expect("set above");
        let trace = Trace::new(self.folder, child.id());
        Ok(Machine {
            name: self.name.to_owned(),
            child,
            qmp,
            watch: Mutex::new(Some(watch)),
            serial: log,
            channel: Channel::new(agent, window, trace)?,
        })
    }

    fn memory_arguments(&self, qemu: &mut Command) {
        let size = self.shape.memory_mib;
        let backend = match self.memory {
            Memory::Into(file) => {
                format!("memory-backend-file,mem-path={},share=on", file.display())
            }
            Memory::From(file) => {
                format!("memory-backend-file,mem-path={},share=off", file.display())
            }
            Memory::Private => "memory-backend-ram".to_owned(),
        };
        qemu.arg("-object")
            .arg(format!("{backend},id=ram,size={size}M"));
        qemu.arg("-m").arg(format!("{size}M"));
        qemu.args(["-machine", "pc,memory-backend=ram,hpet=on"]);
    }

    fn boot_arguments(&self, qemu: &mut Command) -> Result<()> {
        qemu.arg("-kernel").arg(self.dom0.xen());
        qemu.args(["-append", XEN_ARGUMENTS]);
        // Only the size of the loader's ROM counts for a snapshot, and that is always the same.
        let empty = self.folder.join("empty");
        let (kernel, initrd) = match self.initrd {
            Some(initrd) => (self.dom0.kernel(), initrd.to_owned()),
            None => {
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
        if self.incoming {
            qemu.args(["-incoming", "defer"]);
        }
        Ok(())
    }
}

/// All that shapes a machine, for the key of its snapshot.
#[must_use]
pub fn fingerprint(shape: Shape) -> String {
    format!(
        "1 {shape:?} {CPU} {XEN_ARGUMENTS} {DOM0_ARGUMENTS} {SHARED_DISK_BYTES} {PRIVATE_DISK_BYTES} {WINDOW_BYTES}"
    )
}

/// Make a sparse file of this size, unless it is there.
fn disk(path: &Path, bytes: u64) -> Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    if file.metadata()?.len() != bytes {
        file.set_len(bytes)?;
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

/// Kills the process unless it is taken out.
struct Killed(Option<Child>);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
