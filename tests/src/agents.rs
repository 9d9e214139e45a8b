//! The host agents' daemons on lab hosts: installed with certificates, started, asked, killed.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use unmoved_lab::channel::Task;
use unmoved_lab::programs::Program;
use unmoved_lab::{Host, Lab};

use crate::direct::UNMOVED;

/// Longest time of a migration, on a loaded machine.
const MOVE: Duration = Duration::from_secs(600);
/// Longest time of anything that takes a moment.
const MOMENT: Duration = Duration::from_secs(300);
const DAEMON: &str = "/root/unmovedd";
const FOLDER: &str = "/etc/unmoved";
/// Where the daemons keep their journals, and the disk of each host that can be mounted there.
const STATE: &str = "/var/lib/unmoved";
const STATE_DISK: &str = "/dev/vdb";
/// Beside the toolstack's own, where the logs of a failed lab are collected.
const LOG: &str = "/var/log/xen/unmovedd.log";
/// A folder for the daemons' logs of migrations, for who wants to know where the time goes.
const LOGS: &str = "UNMOVED_LAB_LOGS";
/// Starts the daemon without any tie to who starts it, and waits until it answers.
const START: &str = "RUST_LOG=unmoved=debug,info setsid \"$1\" >>\"$2\" 2>&1 </dev/null & pid=$!
    until \"$3\" status >/dev/null 2>&1; do
        kill -0 $pid || { tail -n 20 \"$2\" >&2; exit 1; }
        sleep 0.1
    done";

/// An option for moves whose blackout is measured: without it, each is verified.
pub const NO_VERIFY: &str = "--no-verify";

/// Installs command, daemon, certificates and configuration on all hosts, and starts the daemons; returns
/// when each host reaches all others.
///
/// # Errors
/// If something does not build, a daemon does not start, or a host is not reached.
pub fn start(lab: &Lab) -> Result<()> {
    install(lab)?;
    for host in &lab.hosts {
        run_daemon(host)?;
    }
    for host in &lab.hosts {
        let peers = ask(host, &["hosts"])?;
        for peer in peers.as_array().into_iter().flatten() {
            ensure!(peer["reachable"] == true, "{}: {peer}", host.name());
        }
    }
    Ok(())
}

/// Puts everything on all hosts, without starting it.
///
/// # Errors
/// If something does not build, or cannot be copied.
pub fn install(lab: &Lab) -> Result<()> {
    let unmoved = Program::Unmoved.build()?;
    // A host that joins later gets the same programs, whatever is built meanwhile.
    for (program, file) in [
        (&unmoved, "unmoved"),
        (&Program::Unmovedd.build()?, "unmovedd"),
    ] {
        std::fs::copy(program, lab.folder().join(file))
            .with_context(|| format!("cannot copy {}", program.display()))?;
    }
    let pki = lab.folder().join("pki");
    papers(&unmoved, &pki, &["init"])?;
    for host in &lab.hosts {
        papers(&unmoved, &pki, &["issue", host.name(), &host.address()])?;
    }
    for host in &lab.hosts {
        install_on(lab, host)?;
    }
    Ok(())
}

/// Puts everything on one host, after [`install`] has made it.
///
/// # Errors
/// If it cannot be copied.
pub fn install_on(lab: &Lab, host: &Host) -> Result<()> {
    host.copy_in(&lab.folder().join("unmoved"), UNMOVED)?;
    host.copy_in(&lab.folder().join("unmovedd"), DAEMON)?;
    let (pki, name) = (lab.folder().join("pki"), host.name());
    for file in ["ca.pem", &format!("{name}.pem"), &format!("{name}.key")] {
        host.copy_in(&pki.join(file), &format!("{FOLDER}/{file}"))?;
    }
    let mut config = format!(
        "name = \"{name}\"\nmetrics = \"127.0.0.1:9777\"\nverify = true\n[tls]\nauthority = \"{FOLDER}/ca.pem\"\n\
         certificate = \"{FOLDER}/{name}.pem\"\nkey = \"{FOLDER}/{name}.key\"\n\
         [allow]\nvolumes = [\"/dev/vd*\", \"/dev/loop*\"]\nbridges = [\"br0\"]\nfiles = [\"/root/guests/*/*\"]\n"
    );
    for peer in lab.hosts.iter().filter(|peer| peer.name() != name) {
        let (name, address) = (peer.name(), peer.address());
        let _ = write!(
            config,
            "[[peer]]\nname = \"{name}\"\naddress = \"{address}:7711\"\n"
        );
    }
    let file = lab.folder().join(format!("{name}.toml"));
    std::fs::write(&file, config)?;
    host.copy_in(&file, &format!("{FOLDER}/unmoved.toml"))
}

fn papers(unmoved: &Path, folder: &Path, words: &[&str]) -> Result<()> {
    let mut command = Command::new(unmoved);
    command.arg("pki").args(words).arg("--folder").arg(folder);
    let output = command.output().context("cannot run unmoved")?;
    ensure!(
        output.status.success(),
        "no certificates: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Puts the daemon's state on the host's own disk, which outlives a loss of power.
///
/// # Errors
/// If the disk cannot be used.
pub fn keep_state(host: &Host, is_new: bool) -> Result<()> {
    // What was read of the disk before the host's snapshot was taken is not true any more.
    host.ok(&["blockdev", "--flushbufs", STATE_DISK])?;
    if is_new {
        host.ok(&["mkfs.ext4", "-q", STATE_DISK])?;
    }
    host.ok(&["mkdir", "-p", STATE])?;
    // Its own journal is played back here after a loss of power.
    host.ok(&["mount", "-t", "ext4", STATE_DISK, STATE])
        .map(drop)
}

/// Starts an installed daemon.
///
/// # Errors
/// If it ends, or does not answer.
pub fn run_daemon(host: &Host) -> Result<()> {
    host.ok(&["sh", "-c", START, "sh", DAEMON, LOG, UNMOVED])
        .map(drop)
}

/// What the daemon answers to a command.
///
/// # Errors
/// If the command fails; with what it said.
pub fn ask(host: &Host, words: &[&str]) -> Result<Value> {
    let words = [&[UNMOVED, "--json"], words].concat();
    Ok(serde_json::from_str(&host.ok(&words)?)?)
}

/// Why the command is refused.
///
/// # Errors
/// If it is not.
pub fn refused(host: &Host, words: &[&str]) -> Result<String> {
    let output = host.run(&[&[UNMOVED], words].concat())?;
    ensure!(output.code != 0, "{words:?} was not refused");
    Ok(output.stderr)
}

/// Begins to move a guest, with these options; gives the job.
///
/// # Errors
/// If the daemon refuses.
pub fn begin(guest: &str, from: &Host, to: &Host, options: &[&str]) -> Result<String> {
    let words = [&["migrate", "--detach", guest, to.name()], options].concat();
    let begun = ask(from, &words)?;
    let job = begun["job"].as_str();
    Ok(job.context("the daemon returned no job")?.to_owned())
}

/// Follows a job on its host; each line is an event.
///
/// # Errors
/// If the host is gone.
pub fn watch(host: &Host, job: &str) -> Result<Task> {
    let task = host.start(&[UNMOVED, "status", "--watch", job])?;
    task.end_input()?;
    Ok(task)
}

/// Shows what a command says on its standard error, line by line, until it ends or the time is over.
fn show(task: &Task, until: Instant) {
    let (mut mark, mut text) = (0, Vec::new());
    while let Some(new) = task
        .stderr
        .more(mark, until.saturating_duration_since(Instant::now()))
    {
        mark += new.len();
        text.extend(new);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            eprint!("      {}", String::from_utf8_lossy(&line));
        }
    }
}

/// Asks `unmoved check` what a move would take, as an operator does before it, and shows that.
///
/// # Errors
/// If something stands in the way of the move.
pub fn check(guest: &str, from: &Host, to: &Host, options: &[&str]) -> Result<Value> {
    let found = ask(from, &[&["check", guest, to.name()], options].concat())?;
    let expected = |what: &str| found["prediction"][what].as_f64().unwrap_or_default();
    eprintln!(
        "      unmoved check: {:.1} s in {} rounds, blackout {:.0} ms",
        expected("total_ms") / 1000.0,
        expected("rounds"),
        expected("blackout_ms")
    );
    Ok(found)
}

/// Moves a guest with `unmoved migrate` and these options; the time it took, and the job's report.  Shows
/// how it goes.
///
/// # Errors
/// If the guest does not move; with what the command said.
pub fn migrate(guest: &str, from: &Host, to: &Host, options: &[&str]) -> Result<(Duration, Value)> {
    let begun = Instant::now();
    let task = from.start(&[&[UNMOVED, "migrate", guest, to.name()], options].concat())?;
    task.end_input()?;
    show(&task, begun + MOVE);
    let output = task.wait(MOMENT)?;
    let total = begun.elapsed();
    if let Some(folder) = std::env::var_os(LOGS) {
        std::fs::create_dir_all(&folder)?;
        for host in [from, to] {
            let file = Path::new(&folder).join(format!("unmovedd-{}.log", host.name()));
            host.copy_out(LOG, &file)?;
        }
    }
    if output.code != 0 {
        bail!("{guest} did not move: {}{}", output.stderr, output.stdout);
    }
    for line in output.stdout.lines() {
        eprintln!("      {line}");
    }
    let jobs = ask(from, &["status"])?;
    let mut jobs = jobs.as_array().into_iter().flatten();
    let last = jobs.rfind(|job| job["direction"] == "outgoing");
    let report = last.context("there is no job")?["report"].clone();
    ensure!(report["tool"] == "unmoved", "no report: {report}");
    Ok((total, report))
}
