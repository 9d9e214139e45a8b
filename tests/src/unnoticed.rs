//! The point of it all: an unfriendly guest under load is moved there and back, and can not tell.
//!
//! The guest runs in this project's shim.  Its disk is written and checked, its TCP connections are
//! held by a program on the first host, its clocks are watched, all that it can see is written
//! down before and compared after, and one of its tasks refuses to be frozen all the while.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use unmoved_lab::images::KernelFiles;
use unmoved_lab::migrate;
use unmoved_lab::programs;
use unmoved_lab::{Guest, GuestPlan, Host, Lab, System, initramfs, progress};

use crate::load::Load;
use crate::peer::{self, ADDRESS, PEER, WallError, differences, fingerprint, last_report};

/// Longest time from creation to a running user space, on a loaded machine.
const BOOT: Duration = Duration::from_secs(600);
/// Longest time of a migration, on a loaded machine.
const MOVE: Duration = Duration::from_secs(600);
/// Longest time of anything that takes a moment in the guest.
const MOMENT: Duration = Duration::from_secs(300);
/// The phases of a blackout, as the shim reports them.
const PHASES: [&str; 6] = ["park", "drain", "suspend", "reattach", "connect", "resume"];

/// One move, as the toolstack and the shim saw it.
#[derive(Clone, Debug)]
pub struct Move {
    /// From the command to its end.
    pub total: Duration,
    /// Microseconds of each phase in which the guest did not run, in their order.
    pub phases: [u64; PHASES.len()],
}

impl Move {
    /// How long the guest did not run, microseconds.
    #[must_use]
    pub fn blackout_us(&self) -> u64 {
        self.phases.iter().sum()
    }

    /// As JSON, under the keys that the project's records use.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "total_ms": self.total.as_secs_f64() * 1e3,
            "blackout_ms": self.blackout_us() as f64 / 1e3,
            "phases": self.phases_json(),
        })
    }

    fn phases_json(&self) -> Value {
        let named = PHASES.iter().zip(self.phases);
        let named: Map<String, Value> = named
            .map(|(name, micros)| ((*name).to_owned(), json!(micros)))
            .collect();
        Value::Object(named)
    }

    /// The shim's own share, microseconds: everything but what the toolstack did meanwhile and the
    /// handshakes of devices.
    #[must_use]
    pub fn own_us(&self) -> u64 {
        let [park, drain, _, reattach, _, resume] = self.phases;
        park + drain + reattach + resume
    }

    /// The phases in words, milliseconds.
    fn told(&self) -> String {
        let phases = PHASES
            .iter()
            .zip(self.phases)
            .map(|(name, micros)| format!("{name} {:.1}", micros as f64 / 1e3));
        phases.collect::<Vec<_>>().join(", ")
    }
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Unnoticed {
    /// The moves, in their order.
    pub moves: Vec<Move>,
    /// Lines of the fingerprint that changed.
    pub fingerprint_changes: Vec<String>,
    /// Failed requests and wrong blocks of the disk.
    pub disk_errors: u64,
    /// Blocks that were checked.
    pub disk_verified: u64,
    /// Connections that broke.
    pub tcp_breaks: u64,
    /// Longest time in which a connection gave no answer, milliseconds.
    pub tcp_longest_gap_ms: u64,
    /// Times that a clock of the guest went back.
    pub clock_steps_back: u64,
    /// The guest's wall clock against its host's, before the moves and after them.
    pub wall: [WallError; 2],
}

/// How a guest gets from one host to the other; gives the time that it took.
pub type Mover<'m> = &'m dyn Fn(&str, &Host, &Host) -> Result<Duration>;

/// `xl migrate`, the stock toolstack's way.
///
/// # Errors
/// If the guest does not move.
pub fn by_xl(guest: &str, from: &Host, to: &Host) -> Result<Duration> {
    let migration = migrate::stock(guest, from, to, MOVE)?;
    ensure!(
        migration.migrated,
        "{guest} did not move: {}\n{}",
        migration.sender,
        migration.receiver
    );
    Ok(migration.total)
}

/// The guest that is moved, in the given shim.
///
/// # Errors
/// If the shim or the initramfs can not be built.
pub fn plan(kernel: &KernelFiles, load: Load) -> Result<GuestPlan> {
    let mut plan = GuestPlan::new("web1", System::Shim(programs::shim()?), kernel.unpacked());
    plan.initrd = Some(initramfs::workload(kernel)?);
    // Enough for it to work, and quick to copy: Xen's toolstack sends empty pages too.
    plan.memory_mib = 96;
    plan.arguments += &format!(
        " quiet unmoved.mode=clock,net,disk,unfriendly unmoved.net=ip={ADDRESS}/24 \
         unmoved.disk=dev=/dev/xvda,area=64M,{} unmoved.heartbeat=2",
        load.disk()
    );
    // On a loaded machine an emulated TSC is read late enough for the kernel to distrust it, in dom0
    // as in any guest; what is seen of a move would be lost in that.
    plan.arguments += " tsc=nowatchdog";
    plan.nics.push("mac=02:00:00:00:01:01".to_owned());
    // Otherwise the toolstack invents one for each creation.
    plan.lines
        .push("uuid = \"5e8a3c62-9f01-4b7d-8c24-1d6f0a9b3e57\"".to_owned());
    plan.disks.push("phy:/dev/vda,xvda,w".to_owned());
    Ok(plan)
}

/// Move the guest from the first host to the second and back, `rounds` times, and see what it
/// noticed.
///
/// # Errors
/// If the lab fails or the guest does not move.
pub fn run(lab: &Lab, kernel: &KernelFiles, mover: Mover<'_>, rounds: usize) -> Result<Unnoticed> {
    run_legs(lab, kernel, Load::Steady, &vec![mover; 2 * rounds])
}

/// As [`run`], under a load and each move by a mover of its own; the first is from the first host to the
/// second, the next back, and so on.
///
/// # Errors
/// As [`run`].
pub fn run_legs(
    lab: &Lab,
    kernel: &KernelFiles,
    load: Load,
    movers: &[Mover<'_>],
) -> Result<Unnoticed> {
    let (a, b) = (lab.host(0), lab.host(1));
    let mut plan = plan(kernel, load)?;
    if load == Load::Full {
        plan.memory_mib = 256;
    }
    peer::install(a)?;
    let step =
        progress::step("host a: Debian 12's kernel boots under the shim, unfriendly, and works");
    let guest = plan.create(a)?;
    let ready = guest.ready(BOOT)?;
    guest.report(0, MOMENT, |report| {
        report["ev"] == "alive" && report["disk_verified"].as_u64() > Some(0)
    })?;
    step.done(&format!("{} KiB of RAM", ready["mem_total_kib"]));
    let before = fingerprint(a)?;
    let wall_before = WallError::measure(a)?;
    let [interval, message] = load.tcp();
    let tcp = a.start(&[
        PEER,
        "tcp",
        &format!("to={ADDRESS}:7007"),
        interval,
        message,
    ])?;
    let mut moves = Vec::new();
    let (mut at_home, mut home) = (guest, a);
    for (mover, (from, to)) in movers.iter().zip([(a, b), (b, a)].into_iter().cycle()) {
        let step = progress::step(format!("from {} to {}", from.name(), to.name()));
        // What its console said there before is not a sign of life.
        to.sh("rm -f /var/log/xen/console/guest-web1--*incoming.log")?;
        let arrived = Guest::attach_incoming(&plan.name, to)?;
        let total = mover(&plan.name, from, to)?;
        arrived.alive(MOMENT)?;
        let this = Move {
            total,
            phases: phases(to, &plan.name)?,
        };
        step.done(&format!(
            "{:.1} s, blackout {:.1} ms: {}",
            this.total.as_secs_f64(),
            this.blackout_us() as f64 / 1e3,
            this.told()
        ));
        moves.push(this);
        (at_home, home) = (arrived, to);
    }
    let fingerprint_changes = differences(&before, &fingerprint(a)?);
    let wall = [wall_before, WallError::measure(a)?];
    let clock = at_home.order(home, "clock report", MOMENT)?;
    let disks = at_home.order(home, "disk stop", BOOT)?;
    tcp.signal(15)?;
    let tcp = last_report(&tcp.wait(MOMENT)?.stdout).context("the TCP peer gave no figures")?;
    let count = |value: &Value, what: &str| {
        value
            .as_u64()
            .with_context(|| format!("no figure for {what}: {value}"))
    };
    let disk = &disks["disks"][0];
    Ok(Unnoticed {
        moves,
        fingerprint_changes,
        disk_errors: count(&disk["errors"], "disk errors")?,
        disk_verified: count(&disk["verified_blocks"], "disk blocks")?,
        tcp_breaks: count(&tcp["breaks"], "TCP breaks")? + count(&tcp["corrupt"], "corruption")?,
        tcp_longest_gap_ms: count(&tcp["longest_gap_ms"], "TCP gaps")?,
        clock_steps_back: count(&clock["watch"]["steps_back"], "clock steps")?,
        wall,
    })
}

/// What the shim says of its last move, in the store of the host that it is on now.
fn phases(host: &Host, guest: &str) -> Result<[u64; PHASES.len()]> {
    let domid = host.ok(&["xl", "domid", guest])?;
    let begun = Instant::now();
    let mut found = [0; PHASES.len()];
    for (phase, micros) in PHASES.iter().zip(&mut found) {
        let path = format!(
            "/local/domain/{}/data/unmoved/blackout/{phase}",
            domid.trim()
        );
        // The shim writes when it is back, which may be a moment after the toolstack is done.
        loop {
            let read = host.run(&["xenstore-read", &path])?;
            if let Ok(value) = read.stdout.trim().parse() {
                *micros = value;
                break;
            }
            ensure!(begun.elapsed() < MOMENT, "{path}: {}", read.stderr.trim());
        }
    }
    Ok(found)
}

impl Unnoticed {
    /// What the moves did to the guest's wall clock, milliseconds: it is forward where that is positive.
    /// What the two hosts' clocks differ by is not in it, since it is home again.
    #[must_use]
    pub fn wall_shift_ms(&self) -> f64 {
        let [before, after] = self.wall;
        after.ahead_ms - before.ahead_ms
    }

    /// What the guest noticed, in words; empty if it noticed nothing.
    #[must_use]
    pub fn noticed(&self) -> Vec<String> {
        let mut noticed = self.fingerprint_changes.clone();
        for (count, what) in [
            (self.disk_errors, "disk errors"),
            (self.tcp_breaks, "broken connections"),
            (self.clock_steps_back, "clock steps back"),
        ] {
            if count > 0 {
                noticed.push(format!("{count} {what}"));
            }
        }
        noticed
    }

    /// As JSON, under the keys that the project's records use.
    #[must_use]
    pub fn to_json(&self, tool: &str) -> Value {
        let worst = |of: &dyn Fn(&Move) -> f64| self.moves.iter().map(of).fold(0.0, f64::max);
        let phases: Vec<Value> = self.moves.iter().map(Move::phases_json).collect();
        json!({
            "tool": tool,
            "migrated": !self.moves.is_empty(),
            "moves": self.moves.len(),
            "fingerprint_changes": self.fingerprint_changes.len(),
            "disk_errors": self.disk_errors,
            "disk_verified": self.disk_verified,
            "tcp_breaks": self.tcp_breaks,
            "tcp_longest_gap_ms": self.tcp_longest_gap_ms,
            "clock_steps_back": self.clock_steps_back,
            "wall_error_ms": self.wall[1].ahead_ms,
            "wall_shift_ms": self.wall_shift_ms(),
            "blackout_ms": worst(&|one| one.blackout_us() as f64 / 1e3),
            "own_ms": worst(&|one| one.own_us() as f64 / 1e3),
            "total_ms": worst(&|one| one.total.as_secs_f64() * 1e3),
            "phases_us": phases,
            "phases": phases.last(),
        })
    }

    /// In a few lines.
    pub fn tell(&self, tool: &str) {
        println!("Unmoved (its shim, {tool}), the same kernel, unfriendly and under load:");
        for (number, one) in self.moves.iter().enumerate() {
            println!(
                "  move {}      {:.1} s; blackout {:.1} ms: {}",
                number + 1,
                one.total.as_secs_f64(),
                one.blackout_us() as f64 / 1e3,
                one.told()
            );
        }
        println!(
            "  the guest   {} changes of its fingerprint, {} disk errors in {} blocks, {} broken connections, \
             {} clock steps back, wall clock moved by {:.1} ms against its host's ({:.1} ms since it booted)",
            self.fingerprint_changes.len(),
            self.disk_errors,
            self.disk_verified,
            self.tcp_breaks,
            self.clock_steps_back,
            self.wall_shift_ms(),
            self.wall[1].ahead_ms
        );
    }
}
