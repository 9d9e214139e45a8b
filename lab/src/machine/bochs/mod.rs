//! Bochs as a machine: its configuration, and what surrounds a run of it.
//!
//! It was written independently of QEMU, and has Intel's processors.  It interprets one instruction after the
//! other, and its clock counts them: whatever else this computer does, the same run takes the same time in
//! there.  Debian's build draws on a terminal or on a screen that is seen by RFB, and has a debugger, which
//! stands before the first instruction.  Why each option is what it is: `lab/README.md`.

mod disc;
mod line;
mod screen;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use unmoved_lab_agent::WINDOW_SERIAL;

use super::plan::{Origin, PRIVATE_DISK, Plan, WINDOW, disk};
use super::{Emulator, Killed, Machine, Processor};
use crate::channel::Channel;
use crate::debian;
use crate::log::Log;
use crate::process;
use crate::tools::Tools;
use crate::trace::Trace;
use line::Line;
use screen::Screen;

const PACKAGES: &str = include_str!("../../../../images/bochs/packages");
const KEEP: &str = include_str!("../../../../images/bochs/keep");

/// Instructions in one second of the machine's clock.
pub const INSTRUCTIONS_PER_SECOND: u64 = 100_000_000;
/// A saved state, in the machine's folder and in that of a snapshot.
const STATE: &str = "state";
/// Written last when a state is saved.
const LAST_OF_STATE: &str = "virt_timer";
/// Where the machine's memory is in it.
const MEMORY: &str = "memory.ram";
/// What the machine boots from, in its folder.
const DISC: &str = "disc.img";
const LOG: &str = "bochs.log";
/// Which parts of Bochs there are, the same for a state as for the machine that was saved.
const PLUGINS: &str = "voodoo=false, biosdev=true, usb_uhci=false, busmouse=false, iodebug=false, ne2k=false, \
                       parallel=false, es1370=false, pcidev=false, usb_ohci=false, usb_ehci=false, \
                       gameport=false, usb_xhci=false, sb16=false, pcipnic=false, e1000=false, \
                       extfpuirq=true, speaker=false, serial=true, unmapped=true";

/// A running Bochs.
#[derive(Debug)]
pub struct Bochs {
    /// That of a machine which is to be saved.
    screen: Option<Screen>,
}

/// The emulator, and what makes a disc for it.
///
/// # Errors
/// If the packages cannot be had or the cache not be written.
pub fn tools() -> Result<Tools> {
    let lines = |text| debian::lines(text).map(str::to_owned).collect();
    let (wanted, keep): (Vec<String>, Vec<String>) = (lines(PACKAGES), lines(KEEP));
    Tools::unpack_parts("bochs", &wanted, &keep)
}

/// What of this file shapes a machine.
pub fn fingerprint() -> String {
    format!(
        "{INSTRUCTIONS_PER_SECOND} {PLUGINS} {}",
        disc::XEN_ONLY_HERE
    )
}

/// Start it.
pub fn start(plan: Plan<'_>, processor: Processor) -> Result<Machine> {
    ensure!(
        plan.lan.is_none(),
        "a machine in Bochs has no LAN: a lab with it has one host"
    );
    let tools = tools()?;
    let [serial, agent] = [Line::new()?, Line::new()?];
    let display = match plan.origin {
        Origin::First(..) => "rfb, options=\"timeout=0\"",
        _ => "term",
    };
    let mut text = configuration(&plan, processor, display, &tools);
    for (number, line) in [&serial, &agent].into_iter().enumerate() {
        let _ = writeln!(
            text,
            "com{}: enabled=1, mode=socket-client, dev={}",
            number + 1,
            line.address()
        );
    }
    let mut bochs = tools.bochs();
    bochs.arg("-q");
    match plan.origin {
        Origin::PowerOn(initrd) | Origin::First(initrd, _) => {
            disc::write(&plan.folder.join(DISC), plan.dom0, initrd, &tools)?;
            fs::write(plan.folder.join("bochsrc"), text)?;
            bochs.args(["-f", "bochsrc"]);
        }
        Origin::Snapshot(from) => {
            prepare_state(&plan, &from.join(STATE))?;
            fs::write(plan.folder.join(STATE).join("config"), text)?;
            bochs.args(["-r", STATE]);
        }
    }
    // The debugger's first and only command.
    fs::write(plan.folder.join("go"), "c\n")?;
    bochs.args(["-rc", "go"]).current_dir(plan.folder);
    let said = Log::to_file(&plan.folder.join("bochs.out"))?;
    terminal(&mut bochs, &said)?;
    let child = process::spawn(bochs, Vec::new()).context("cannot run Bochs")?;
    let mut child = Killed::new(child);

    let log = plan.folder.join(LOG);
    let failed = |error: anyhow::Error| {
        let said = fs::read_to_string(&log).unwrap_or_default() + &said.text();
        let why = said.lines().find(|line| line.contains("PANIC"));
        error.context(format!(
            "host {} did not start: {}",
            plan.name,
            why.unwrap_or("Bochs gave no reason").trim()
        ))
    };
    let (serial, agent) = serial
        .accept(child.process())
        .and_then(|serial| Ok((serial, agent.accept(child.process())?)))
        .map_err(failed)?;
    let screen = match plan.origin {
        Origin::First(..) => Some(Screen::find(child.id()).map_err(failed)?),
        _ => None,
    };
    let console = Log::to_file(&plan.folder.join("serial.log"))?;
    console.read_from(serial);
    let trace = Trace::new(plan.folder, child.id());
    let window = plan.folder.join(WINDOW);
    let (reader, writer) = agent.split()?;
    Ok(Machine {
        name: plan.name.to_owned(),
        child: child.keep(),
        emulator: Emulator::Bochs(Bochs { screen }),
        serial: console,
        channel: Channel::new(reader, writer, window, trace),
    })
}

impl Bochs {
    /// Save the state to the machine's folder, which ends it.
    pub fn save(&mut self, child: &mut Child) -> Result<()> {
        let Some(screen) = &mut self.screen else {
            bail!("this machine has no screen, and cannot be saved without");
        };
        screen.save(child, STATE)
    }
}

/// What is left to do with a saved state, whose memory's file is given back: the disks' contents are none.
///
/// # Errors
/// If the state is not whole.
pub fn finish_state(folder: &Path) -> Result<PathBuf> {
    let state = folder.join(STATE);
    ensure!(
        state.join(LAST_OF_STATE).exists(),
        "Bochs ended before its state was saved"
    );
    for (_, image) in disks() {
        fs::remove_file(state.join(image))?;
    }
    fs::remove_file(state.join("config"))?;
    Ok(state.join(MEMORY))
}

/// The places of the disks, and where a state has their contents.
fn disks() -> [(&'static str, &'static str); 3] {
    [
        ("ata0-slave", "hard_drive.0.drive1.image"),
        ("ata1-master", "hard_drive.1.drive0.image"),
        ("ata1-slave", "hard_drive.1.drive1.image"),
    ]
}

/// A state for this machine alone: what is in the snapshot's, and its own disks' contents, from where Bochs
/// copies them to the disks.
fn prepare_state(plan: &Plan<'_>, from: &Path) -> Result<()> {
    let state = plan.folder.join(STATE);
    // That of a host which is switched on again.
    crate::cache::remove(&state)?;
    fs::create_dir(&state)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        symlink(entry.path(), state.join(entry.file_name()))?;
    }
    let files = [
        plan.folder.join(WINDOW),
        plan.shared_disk.to_owned(),
        plan.folder.join(PRIVATE_DISK),
    ];
    for (file, (_, image)) in files.iter().zip(disks()) {
        let bytes = file.metadata()?.len();
        fs::rename(file, state.join(image))?;
        disk(file, bytes)?;
    }
    // It was booted from; nobody reads it any more.
    disk(&plan.folder.join(DISC), 1 << 20)
}

/// The machine but for its serial ports.
fn configuration(plan: &Plan<'_>, processor: Processor, display: &str, tools: &Tools) -> String {
    let (size, cpus) = (plan.shape.memory_mib, plan.shape.cpus);
    let model = processor.model();
    let mut text = format!(
        "plugin_ctrl: {PLUGINS}\n\
         config_interface: textconfig\n\
         display_library: {display}\n\
         cpu: model={model}, count={cpus}, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=1\n\
         memory: guest={size}, host={size}\n"
    );
    let firmware = tools.path("usr/share/bochs");
    for (what, file) in [
        ("romimage", "BIOS-bochs-latest"),
        ("vgaromimage", "VGABIOS-lgpl-latest"),
    ] {
        let _ = writeln!(text, "{what}: file=\"{}\"", firmware.join(file).display());
    }
    text += "vga: extension=none, update_freq=1\n\
             pci: enabled=1, chipset=i440fx\n\
             ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15\n";
    let _ = writeln!(
        text,
        "ata0-master: type=cdrom, path={DISC}, status=inserted"
    );
    let (window, own) = (Path::new(WINDOW), Path::new(PRIVATE_DISK));
    let files = [
        (window, WINDOW_SERIAL),
        (plan.shared_disk, "shared"),
        (own, "own"),
    ];
    for ((place, _), (file, name)) in disks().into_iter().zip(files) {
        let _ = writeln!(
            text,
            "{place}: type=disk, mode=flat, path=\"{}\", cylinders=0, model=\"{name}\"",
            file.display()
        );
    }
    let _ = write!(
        text,
        "boot: cdrom\n\
         clock: sync=none, time0=utc\n\
         log: {LOG}\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n\
         debug: action=ignore\n"
    );
    text
}

/// Gives the program a terminal to draw on, which nobody looks at.
fn terminal(command: &mut Command, said: &Log) -> Result<()> {
    let master =
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("this machine has no pseudo terminals for Bochs")?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = File::from(rustix::fs::open(name.as_c_str(), flags, Mode::empty())?);
    command
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal);
    said.read_from(File::from(master));
    Ok(())
}
