//! `cargo xtask lab stress`: a process storm in a Debian guest, with everything checked that can be.
//!
//! stress-ng runs its stressors with `--verify`, while gdb goes through a program step by step again and
//! again: it must get to the same place each time, so a step lost or made twice shows.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use unmoved_lab::tools::Tools;
use unmoved_lab::{GuestPlan, Lab};
use unmoved_tests::shell::{self, MOMENT, Shell};

use super::system::SystemName;

/// What to stress, and for how long.
#[derive(Debug, Args)]
pub struct Stress {
    /// For how long
    #[arg(long, value_name = "N", default_value_t = 5)]
    minutes: u64,
    /// What the kernel runs in
    #[arg(long, value_enum, default_value_t)]
    system: SystemName,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One of each: memory, processes and threads, mappings, context switches, signals, timers, the CPU.
const STRESSORS: [&str; 18] = [
    "vm",
    "fork",
    "vfork",
    "pthread",
    "mmap",
    "mprotect",
    "fault",
    "context",
    "switch",
    "sigq",
    "sigsegv",
    "sigpending",
    "signest",
    "kill",
    "timer",
    "itimer",
    "cpu",
    "ptrace",
];
/// Small enough for an emulated CPU to come round.
const SIZES: &str = "--vm-bytes 4M --mmap-bytes 4M --timer-freq 1000 --itimer-freq 1000";
/// One session: the program's first instructions one by one, then the rest at full speed.
const GDB: &str = "gdb -nx -batch -ex 'set startup-with-shell off' -ex starti -ex 'stepi 1000' \
    -ex 'info registers rip rsp' -ex continue /bin/true";
/// How much longer than asked for stress-ng may need under emulation.
const SLACK: Duration = Duration::from_secs(600);

impl Stress {
    /// Do it.
    ///
    /// # Errors
    /// If a stressor or a gdb session fails, or the guest's kernel or the shim complains.
    pub fn run(self) -> Result<()> {
        let config = shell::host_with_debian()?;
        let plan = GuestPlan::debian("stress", self.system.system()?, &Tools::get()?)?;
        Lab::run("stress", &config, |lab| {
            let host = lab.host(0);
            let mark = host.serial().mark();
            let guest = plan.create(host)?;
            let mut shell = Shell::login(host, &guest)?;
            eprintln!("  ✓ logged in; {} minutes of stress", self.minutes);
            let outcome = self.storm(&mut shell)?;
            let shim = shell::shim_complaints(host.serial(), mark);
            let kernel = shell.kernel_complaints()?;
            outcome.tell();
            for line in shim.iter().chain(&kernel) {
                println!("complaint: {line}");
            }
            crate::json::write(
                self.json.as_deref(),
                &json!({"seconds": outcome.seconds, "stressors": outcome.stressors,
                        "failures": outcome.failures, "gdb_sessions": outcome.sessions,
                        "shim_complaints": shim, "kernel_complaints": kernel}),
            )?;
            ensure!(outcome.failures.is_empty(), "stress-ng or gdb failed");
            ensure!(shim.is_empty(), "the shim complains");
            ensure!(kernel.is_empty(), "the guest's kernel complains");
            Ok(())
        })
    }

    fn storm(&self, shell: &mut Shell<'_>) -> Result<Outcome> {
        let begun = Instant::now();
        // Its sessions end when the file is there; they get ahead of the many others.
        shell.ok(
            &format!(
                "rm -f end steps; ( while [ ! -e end ]; do nice -n -15 {GDB} </dev/null >step 2>&1; \
                 echo $(grep -E '^r[is]p' step) $(grep -o 'exited normally' step) >>steps; done ) &"
            ),
            MOMENT,
        )?;
        let limit = Duration::from_secs(self.minutes * 60);
        let stressors = STRESSORS.map(|name| format!("--{name} 1")).join(" ");
        // Its last words go to a file, or kernel messages could tear them.
        let done = shell.run(
            &format!(
                "stress-ng --verify --metrics-brief {SIZES} {stressors} --timeout {}s >said 2>&1 </dev/null",
                limit.as_secs()
            ),
            limit + SLACK,
        )?;
        let said = shell.ok("cat said", MOMENT)?;
        let steps = shell.ok("touch end; wait; cat steps", MOMENT)?;
        for line in said.lines().filter(|line| !line.contains("metrc:")) {
            println!("  {line}");
        }
        let mut outcome = read(&said, &steps);
        outcome.seconds = begun.elapsed().as_secs();
        if done.code != 0 {
            outcome
                .failures
                .push(format!("stress-ng ended with {}", done.code));
        }
        for name in STRESSORS {
            if outcome.stressors.get(name).and_then(Value::as_u64) < Some(1) {
                outcome.failures.push(format!("{name} did nothing"));
            }
        }
        Ok(outcome)
    }
}

/// What a storm came to.
#[derive(Debug, Default)]
struct Outcome {
    seconds: u64,
    /// Operations of each stressor.
    stressors: Map<String, Value>,
    /// gdb sessions that were made.
    sessions: usize,
    failures: Vec<String>,
}

impl Outcome {
    fn tell(&self) {
        for (name, operations) in &self.stressors {
            println!("{name:12} {operations:>10} operations");
        }
        println!(
            "{} stressors and {} gdb sessions in {} s, {} failures",
            self.stressors.len(),
            self.sessions,
            self.seconds,
            self.failures.len()
        );
        for failure in &self.failures {
            println!("failure: {failure}");
        }
    }
}

/// Read what stress-ng said, and where each gdb session got to.
fn read(said: &str, steps: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in said.lines() {
        if line.contains("fail:") || line.contains("error:") {
            outcome.failures.push(line.to_owned());
        }
        if let Some((name, operations)) = metric(line) {
            outcome.stressors.insert(name.to_owned(), operations.into());
        }
    }
    // The shell tells of its own jobs in between.
    let sessions: Vec<&str> = steps
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('['))
        .collect();
    outcome.sessions = sessions.len();
    let Some(first) = sessions.first() else {
        outcome.failures.push("gdb made no session".to_owned());
        return outcome;
    };
    for session in &sessions {
        if !session.contains("exited normally") {
            outcome.failures.push(format!("gdb: {session}"));
        } else if session != first {
            outcome
                .failures
                .push(format!("gdb got to {session}, not {first}"));
        }
    }
    outcome
}

/// `stress-ng: metrc: [7] fork 1234 30.1 …`: the stressor and its operations.
fn metric(line: &str) -> Option<(&str, u64)> {
    let (_, rest) = line.split_once("metrc: [")?;
    let mut words = rest.split_whitespace().skip(1);
    Some((words.next()?, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::read;

    const STEP: &str = "rip 0x7ffff7fd rsp 0x7ffe exited normally";

    #[test]
    fn figures_and_failures_are_read() {
        let said = "stress-ng: metrc: [7] stressor       bogo ops real time\n\
                    stress-ng: metrc: [7] fork 1234 30.1 1.0 2.0\n\
                    stress-ng: fail:  [9] vm: detected 1 bit errors";
        let outcome = read(said, &format!("{STEP}\n{STEP}\n"));
        assert_eq!(outcome.stressors["fork"], 1234);
        assert_eq!(outcome.stressors.len(), 1);
        assert_eq!((outcome.sessions, outcome.failures.len()), (2, 1));
    }

    #[test]
    fn a_step_too_many_is_a_failure() {
        let outcome = read("", &format!("{STEP}\n{}\n", STEP.replace("7fd", "7ff")));
        assert_eq!(outcome.failures.len(), 1);
        assert_eq!(read("", "").failures.len(), 1);
    }
}
