//! `cargo xtask test`: everything that must hold before a change lands, and nothing else.
//!
//! Static checks, then all tests of the workspace, then those that start hosts.  All parts run even if
//! one fails; at the end stands where the time went, and the last line is the sum of the test runners' own
//! summaries.  The lab is set up beside what needs no hosts.

mod hosts;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde_json::{Value, json};
use unmoved_lab::{paths, progress};

use crate::setup::Setup;

/// Check everything.
#[derive(Debug, Args)]
pub struct Test {
    /// Leave out the tests that start hosts
    #[arg(long)]
    no_lab: bool,
    /// Run nothing but tests with hosts in whose names this is
    #[arg(long, value_name = "WORD", conflicts_with = "no_lab")]
    only: Option<String>,
    /// Repeat what chance has a part in far more often: some hours
    #[arg(long, conflicts_with = "no_lab")]
    long: bool,
    /// Write down what each test with hosts costs, in `tests/costs`, for the order of later runs
    #[arg(long, conflicts_with = "only")]
    record: bool,
    /// Write the result to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// All of the workspace with the lab's tests, which are behind a feature; the same for every command that
/// builds, or cargo would build the same crates once more with other features.
const WHOLE: [&str; 3] = ["--workspace", "--features", "unmoved-tests/lab"];

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

/// What `--long` repeats, as commands of this program: moves, cuts, attacks.
const LONG: [&[&str]; 4] = [
    &["lab", "moves", "--count", "100"],
    &["lab", "cuts", "--count", "30"],
    &["lab", "hostile", "--count", "1000000"],
    &["lab", "boots", "--count", "20"],
];

/// What is done beside checks without hosts.
const SET_UP: &str = "set-up of the lab, beside lints and tests without hosts";

/// So many of what took longest are shown at the end.
const SLOWEST: usize = 12;

impl Test {
    /// Do it.
    ///
    /// # Errors
    /// If any check or test fails.
    pub fn run(self) -> Result<()> {
        let mut sum = Sum::default();
        // Downloads, and boots on one processor, have room beside compilers.
        let setup = thread::scope(|scope| {
            let setup = (!self.no_lab).then(|| scope.spawn(set_up));
            self.without_hosts(&mut sum)?;
            let join = |setup: thread::ScopedJoinHandle<'_, _>| {
                let panicked = |_| Err(anyhow!("the set-up panicked"));
                setup.join().unwrap_or_else(panicked)
            };
            Ok::<_, anyhow::Error>(setup.map(join))
        })?;
        match setup {
            None => {}
            Some(Ok(seconds)) => {
                sum.add(SET_UP, true, seconds);
                self.with_hosts(&mut sum)?;
            }
            Some(Err(error)) => {
                eprintln!("error: {error:#}");
                sum.add(SET_UP, false, 0);
            }
        }
        sum.end(self.json.as_deref())
    }

    fn without_hosts(&self, sum: &mut Sum) -> Result<()> {
        if self.only.is_some() {
            return Ok(());
        }
        sum.check("format", &["fmt", "--all", "--check"])?;
        let mut clippy = vec!["clippy", "--quiet", "--all-targets"];
        clippy.extend(WHOLE);
        clippy.extend(["--", "-D", "warnings"]);
        sum.check("lints", &clippy)?;
        sum.check("lints of the shim's image", &SHIM)?;
        sum.tests(
            "tests without hosts",
            &["test", "--workspace", "--no-fail-fast"],
        )
    }

    fn with_hosts(&self, sum: &mut Sum) -> Result<()> {
        let step = progress::step("building tests with hosts");
        let begun = Instant::now();
        let mut tests = hosts::find()?;
        tests.retain(|test| {
            self.only
                .as_ref()
                .is_none_or(|word| test.name.contains(word))
        });
        sum.note("building tests with hosts", true, begun);
        step.done("ok");
        let step = progress::step(format!("{} tests with hosts", tests.len()));
        let done = hosts::run(tests, |one| {
            print!("{}", one.said);
            sum.passed += one.counts.0;
            sum.failed += one.counts.1;
            sum.add(&one.test.name, one.success, one.took.as_secs());
        })?;
        step.done(word(done.iter().all(|one| one.success)));
        if self.record {
            hosts::record(&done)?;
        }
        if self.long {
            let program = std::env::current_exe().context("this program has no file")?;
            for words in LONG {
                let begun = Instant::now();
                let status = Command::new(&program).args(words).status()?;
                sum.note(&words.join(" "), status.success(), begun);
            }
        }
        Ok(())
    }
}

/// Makes what hosts are made of, and the programs that run on them; gives the seconds that it took.
fn set_up() -> Result<u64> {
    let begun = Instant::now();
    Setup::default().run()?;
    crate::setup::programs()?;
    Ok(begun.elapsed().as_secs())
}

/// What has been found so far.
#[derive(Debug, Default)]
struct Sum {
    passed: u64,
    failed: u64,
    parts: Vec<Part>,
}

/// A part of it.
#[derive(Debug)]
struct Part {
    name: String,
    success: bool,
    seconds: u64,
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
        let child = cargo(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run cargo")?;
        let success = self.read(child)?;
        self.note(name, success, begun);
        step.done(word(success));
        Ok(())
    }

    /// Shows a test runner's output to its end, and gives whether it was content.
    fn read(&mut self, mut child: Child) -> Result<bool> {
        let output = child.stdout.take().context("cargo has no output")?;
        for line in BufReader::new(output).lines() {
            let line = line?;
            if let Some((passed, failed)) = summary(&line) {
                self.passed += passed;
                self.failed += failed;
            }
            println!("{line}");
        }
        Ok(child.wait()?.success())
    }

    fn note(&mut self, name: &str, success: bool, begun: Instant) {
        self.add(name, success, begun.elapsed().as_secs());
    }

    fn add(&mut self, name: &str, success: bool, seconds: u64) {
        self.parts.push(Part {
            name: name.to_owned(),
            success,
            seconds,
        });
    }

    fn end(self, file: Option<&Path>) -> Result<()> {
        let parts = self
            .parts
            .iter()
            .map(|part| json!({"name": part.name, "ok": part.success, "seconds": part.seconds}));
        let parts: Vec<Value> = parts.collect();
        let figures = json!({"passed": self.passed, "failed": self.failed, "parts": parts});
        crate::json::write(file, &figures)?;
        print!("{}", slowest(&self.parts));
        println!("{} passed, {} failed", self.passed, self.failed);
        let broken = self.parts.iter().filter(|part| !part.success);
        let broken: Vec<&str> = broken.map(|part| part.name.as_str()).collect();
        if !broken.is_empty() {
            bail!("not all is well: {}", broken.join(", "));
        }
        Ok(())
    }
}

/// The parts that took longest, a line each.
fn slowest(parts: &[Part]) -> String {
    let mut parts: Vec<&Part> = parts.iter().collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.seconds));
    let line = |part: &&Part| format!("{:>6} s  {}\n", part.seconds, part.name);
    parts.iter().take(SLOWEST).map(line).collect()
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
    use super::{Part, slowest, summary};

    #[test]
    fn summaries_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured";
        assert_eq!(summary(line), Some((12, 3)));
        assert_eq!(summary("test lab::works ... ok"), None);
    }

    #[test]
    fn the_longest_is_told_first() {
        let part = |name: &str, seconds| Part {
            name: name.to_owned(),
            success: true,
            seconds,
        };
        let told = slowest(&[part("a", 5), part("b", 600)]);
        assert_eq!(told, "   600 s  b\n     5 s  a\n");
    }
}
