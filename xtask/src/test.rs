//! `cargo xtask test`: everything that must hold before a change lands, and nothing else.
//!
//! Static checks, then all tests of the workspace, then those that start hosts.  All parts run even if
//! one fails; the last line is the sum of the test runners' own summaries.
//!
//! A host is a process that wants a core.  Tests with two hosts leave one of two cores idle half of the
//! time, so those with one host run beside them, a file at a time.  Four hosts on two cores are too many:
//! their control domains get so slow that Xen's toolstack runs into its limits.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use parking_lot::Mutex;
use serde_json::{Value, json};
use unmoved_lab::{paths, progress};

use crate::setup::Setup;

/// Check everything.
#[derive(Debug, Args)]
pub struct Test {
    /// Leave out the tests that start hosts
    #[arg(long)]
    no_lab: bool,
    /// Write the result to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Clippy must see the lab's tests too, which are behind this feature.
const LAB: [&str; 2] = ["--features", "unmoved-tests/lab"];

/// The shim's image is built alone (see its manifest).
const SHIM: [&str; 8] = [
    "clippy",
    "--quiet",
    "--package=unmoved-shim",
    "--features=image",
    "--bins",
    "--",
    "-D",
    "warnings",
];

impl Test {
    /// Do it.
    ///
    /// # Errors
    /// If any check or test fails.
    pub fn run(self) -> Result<()> {
        let mut sum = Sum::default();
        sum.check("format", &["fmt", "--all", "--check"])?;
        let mut clippy = vec!["clippy", "--quiet", "--workspace", "--all-targets"];
        clippy.extend(LAB);
        clippy.extend(["--", "-D", "warnings"]);
        sum.check("lints", &clippy)?;
        sum.check("lints of the shim's image", &SHIM)?;
        sum.tests(
            "tests without hosts",
            &["test", "--workspace", "--no-fail-fast"],
        )?;
        if !self.no_lab {
            Setup::default().run()?;
            let build = ["test", "--quiet", "--package=unmoved-tests", "--no-run"];
            sum.check("building tests with hosts", &[&build[..], &LAB].concat())?;
            sum.lab()?;
        }
        sum.end(self.json.as_deref())
    }
}

/// What has been found so far.
#[derive(Debug, Default)]
struct Sum {
    passed: u64,
    failed: u64,
    parts: Vec<Value>,
    broken: Vec<String>,
}

impl Sum {
    /// A part that is a check of its own.
    fn check(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let step = progress::step(name);
        let begun = Instant::now();
        let status = cargo(arguments).status().context("cannot run cargo")?;
        self.note(name, status.success(), begun);
        step.done(word(status.success()));
        Ok(())
    }

    /// A part whose output has the summaries of test runners.
    fn tests(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let step = progress::step(name);
        let begun = Instant::now();
        let child = spawn(arguments)?;
        let success = self.read(child, |line| println!("{line}"))?;
        self.note(name, success, begun);
        step.done(word(success));
        Ok(())
    }

    /// The tests that start hosts, in two lanes: one runs those with two hosts, and then helps the other.
    fn lab(&mut self) -> Result<()> {
        let step = progress::step("tests with hosts");
        let (pairs, singles) = files()?;
        let (pairs, singles) = (Mutex::new(pairs), Mutex::new(singles));
        let all = Mutex::new(self);
        let lane = |queues: &[&Mutex<VecDeque<String>>]| -> Result<bool> {
            let mut success = true;
            for queue in queues {
                let next = || queue.lock().pop_front();
                while let Some(file) = next() {
                    success &= with_hosts(&file, &all)?;
                }
            }
            Ok(success)
        };
        let success = thread::scope(|scope| -> Result<bool> {
            let beside = scope.spawn(|| lane(&[&singles]));
            let first = lane(&[&pairs, &singles]);
            let second = beside
                .join()
                .map_err(|_| anyhow::anyhow!("reading the tests' output panicked"))?;
            Ok(first? & second?)
        })?;
        step.done(word(success));
        Ok(())
    }

    /// Reads a test runner's output to its end, and gives whether it was content.
    fn read(&mut self, mut child: Child, mut tell: impl FnMut(&str)) -> Result<bool> {
        let output = child.stdout.take().context("cargo has no output")?;
        for line in BufReader::new(output).lines() {
            let line = line?;
            if let Some((passed, failed)) = summary(&line) {
                self.passed += passed;
                self.failed += failed;
            }
            tell(&line);
        }
        Ok(child.wait()?.success())
    }

    fn note(&mut self, name: &str, success: bool, begun: Instant) {
        let seconds = begun.elapsed().as_secs();
        self.parts
            .push(json!({"name": name, "ok": success, "seconds": seconds}));
        if !success {
            self.broken.push(name.to_owned());
        }
    }

    fn end(self, file: Option<&std::path::Path>) -> Result<()> {
        let figures = json!({"passed": self.passed, "failed": self.failed, "parts": self.parts});
        crate::json::write(file, &figures)?;
        println!("{} passed, {} failed", self.passed, self.failed);
        if !self.broken.is_empty() {
            bail!("not all is well: {}", self.broken.join(", "));
        }
        Ok(())
    }
}

/// Tests in files of these names start two hosts, all or some of them.
const PAIRS: [&str; 5] = ["agent", "unnoticed", "crossing", "guests", "lab"];
/// Of the others, these take longest, and are not to be the last.
const LONG: [&str; 3] = ["cuts", "moves", "shim_devices"];

/// The files of tests: those in which two hosts are started, and the others.
fn files() -> Result<(VecDeque<String>, VecDeque<String>)> {
    let mut others = Vec::new();
    for file in fs::read_dir(paths::workspace().join("tests/tests"))? {
        let path = file?.path();
        if path.extension().is_some_and(|kind| kind == "rs")
            && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
            && !PAIRS.contains(&name)
        {
            others.push(name.to_owned());
        }
    }
    others.sort_by_key(|name| (!LONG.contains(&name.as_str()), name.clone()));
    let pairs = PAIRS.map(str::to_owned);
    Ok((pairs.into(), others.into()))
}

/// Runs the tests of one file, one at a time, and tells what they said when all is over.
fn with_hosts(file: &str, all: &Mutex<&mut Sum>) -> Result<bool> {
    let begun = Instant::now();
    let mut arguments = vec!["test", "--package=unmoved-tests", "--no-fail-fast"];
    arguments.extend(LAB);
    arguments.extend(["--test", file, "--", "--test-threads=1", "--nocapture"]);
    let child = spawn(&arguments)?;
    let (mut sum, mut said) = (Sum::default(), Vec::new());
    let success = sum.read(child, |line| said.push(line.to_owned()))?;
    let mut all = all.lock();
    said.iter().for_each(|line| println!("{line}"));
    all.passed += sum.passed;
    all.failed += sum.failed;
    all.note(&format!("{file}, with hosts"), success, begun);
    Ok(success)
}

fn spawn(arguments: &[impl AsRef<str>]) -> Result<Child> {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    cargo(&arguments)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")
}

fn word(success: bool) -> &'static str {
    if success { "ok" } else { "FAILED" }
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::workspace()).args(arguments);
    command
}

/// `test result: ok. 3 passed; 0 failed; …` as numbers.
fn summary(line: &str) -> Option<(u64, u64)> {
    let mut words = line
        .strip_prefix("test result: ")?
        .split_whitespace()
        .skip(1);
    let passed = words.next()?.parse().ok()?;
    let failed = words.nth(1)?.parse().ok()?;
    Some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn summaries_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured";
        assert_eq!(summary(line), Some((12, 3)));
        assert_eq!(summary("test lab::works ... ok"), None);
    }
}
