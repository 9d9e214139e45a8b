//! The tests that start hosts: which there are, what each costs, and in what order they run.
//!
//! A host is a process that wants a core, but waits now and then.  So one host more runs than there are
//! cores; with two more, control domains get so slow that Xen's toolstack runs into its limits.  Each test
//! is a process of its own; those that take most hosts and time begin first, and smaller ones fill what
//! is left.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use unmoved_lab::{paths, progress};

/// The package that they are in.
const PACKAGE: &str = "unmoved-tests";
/// Its feature without which they are not built.
const FEATURE: &str = "lab";
/// What each test costs: its name, hosts, seconds.
const COSTS: &str = "tests/costs";

/// What a test costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Hosts that run at a time.
    pub hosts: usize,
    /// How long it takes.
    pub seconds: u64,
}

impl Default for Cost {
    /// A test that nobody has measured yet begins early.
    fn default() -> Self {
        Self {
            hosts: 2,
            seconds: 300,
        }
    }
}

/// A test.
#[derive(Clone, Debug)]
pub struct Test {
    /// File and function.
    pub name: String,
    program: PathBuf,
    function: String,
    cost: Cost,
}

/// How one ended.
#[derive(Debug)]
pub struct Done {
    /// The test.
    pub test: Test,
    /// All that it said.
    pub said: String,
    /// How many tests its runner counted as passed and failed.
    pub counts: (u64, u64),
    /// Whether the runner was content.
    pub success: bool,
    /// How long it took.
    pub took: Duration,
}

/// Reads the file of costs.
///
/// # Errors
/// If a line is not a name and two numbers.
fn costs(text: &str) -> Result<BTreeMap<String, Cost>> {
    let mut costs = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let mut next = || words.next().with_context(|| format!("{COSTS}: {line:?}"));
        let name = next()?.to_owned();
        let cost = Cost {
            hosts: next()?.parse()?,
            seconds: next()?.parse()?,
        };
        ensure!(words.next().is_none(), "{COSTS}: {line:?}");
        costs.insert(name, cost);
    }
    Ok(costs)
}

/// Writes the times of a run into the file of costs.
///
/// # Errors
/// If it cannot be written.
pub fn record(done: &[Done]) -> Result<()> {
    let mut lines: Vec<String> = done
        .iter()
        .map(|done| {
            let (name, hosts) = (&done.test.name, done.test.cost.hosts);
            format!("{name} {hosts} {}\n", done.took.as_secs())
        })
        .collect();
    lines.sort();
    let file = paths::workspace().join(COSTS);
    let old = fs::read_to_string(&file).unwrap_or_default();
    let head = old.lines().filter(|line| line.starts_with('#'));
    let head: String = head.map(|line| format!("{line}\n")).collect();
    fs::write(&file, head + &lines.concat())
        .with_context(|| format!("cannot write {}", file.display()))
}

/// All of them, after they have been built; the costliest first.
///
/// # Errors
/// If cargo does not say what it has built, or a program does not list its tests.
pub fn find() -> Result<Vec<Test>> {
    let file = paths::workspace().join(COSTS);
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut costs = costs(&text)?;
    let mut tests = Vec::new();
    for (file, program) in programs()? {
        let list = command(&program)
            .args(["--list", "--format", "terse"])
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        for line in String::from_utf8_lossy(&list.stdout).lines() {
            let Some(function) = line.strip_suffix(": test") else {
                continue;
            };
            let name = format!("{file}::{function}");
            tests.push(Test {
                cost: costs.remove(&name).unwrap_or_default(),
                name,
                program: program.clone(),
                function: function.to_owned(),
            });
        }
    }
    for name in costs.keys() {
        eprintln!("  {COSTS} has {name}, which is no test any more");
    }
    tests.sort_by_key(|test| std::cmp::Reverse((test.cost.hosts, test.cost.seconds)));
    Ok(tests)
}

/// The programs of tests that are built with the feature only, by their names.
fn programs() -> Result<BTreeMap<String, PathBuf>> {
    let mut build = super::cargo(&["test", "--no-run", "--message-format=json"]);
    build.args(super::WHOLE);
    let built = said(&mut build)?;
    let mut metadata = super::cargo(&["metadata", "--no-deps", "--format-version=1"]);
    let metadata: Value = serde_json::from_str(&said(&mut metadata)?)?;
    let wanted = behind_the_feature(&metadata);
    Ok(built
        .lines()
        .filter_map(|line| built_program(line, &wanted))
        .collect())
}

/// A test program of this name that cargo says it has built.
fn built_program(line: &str, wanted: &[String]) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let name = message["target"]["name"].as_str()?;
    let is_test = message["target"]["kind"][0] == "test";
    let is_wanted = is_test && wanted.iter().any(|wanted| wanted == name);
    let program = message["executable"].as_str().filter(|_| is_wanted)?;
    Some((name.to_owned(), program.into()))
}

fn behind_the_feature(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages
        .filter(|package| package["name"] == PACKAGE)
        .filter_map(|package| package["targets"].as_array())
        .flatten();
    targets
        .filter(|target| target["required-features"][0] == FEATURE)
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect()
}

fn said(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "{command:?} failed");
    Ok(String::from_utf8(output.stdout)?)
}

/// A program of tests, run as cargo runs it.
fn command(program: &PathBuf) -> Command {
    let mut command = Command::new(program);
    command.current_dir(paths::workspace().join("tests"));
    command
}

/// How many hosts run at a time.
fn room() -> usize {
    thread::available_parallelism()
        .map_or(2, usize::from)
        .max(2)
        + 1
}

/// Runs all of them, and hands each over to `tell` as it ends.
///
/// # Errors
/// If one cannot be started.
pub fn run(tests: Vec<Test>, mut tell: impl FnMut(&Done)) -> Result<Vec<Done>> {
    let (mut waiting, mut done) = (tests, Vec::new());
    let (mut free, mut under_way) = (room(), 0);
    let (sender, ended) = mpsc::channel();
    thread::scope(|scope| {
        while !waiting.is_empty() || under_way > 0 {
            while let Some(next) = next(&waiting, free, under_way) {
                let test = waiting.remove(next);
                free -= test.cost.hosts.min(free);
                under_way += 1;
                let sender = sender.clone();
                scope.spawn(move || {
                    // Nobody listens any more once something could not be run.
                    let _ = sender.send(run_one(test));
                });
            }
            let one = ended.recv().context("nobody runs tests")??;
            under_way -= 1;
            free = (free + one.test.cost.hosts).min(room());
            tell(&one);
            done.push(one);
        }
        Ok(done)
    })
}

/// The first that there is room for; one that takes more than there ever is runs alone.
fn next(waiting: &[Test], free: usize, under_way: usize) -> Option<usize> {
    let fits = |test: &Test| test.cost.hosts <= free || under_way == 0;
    waiting.iter().position(fits)
}

fn run_one(test: Test) -> Result<Done> {
    let step = progress::step(test.name.clone());
    let begun = Instant::now();
    let mut child = command(&test.program)
        .args(["--exact", &test.function, "--nocapture", "--test-threads=1"])
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", test.program.display()))?;
    let (mut said, mut counts) = (String::new(), (0, 0));
    let output = child.stdout.take().context("a test has no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if let Some((passed, failed)) = super::summary(&line) {
            counts = (counts.0 + passed, counts.1 + failed);
        }
        let _ = writeln!(said, "{line}");
    }
    let success = child.wait()?.success();
    step.done(super::word(success));
    Ok(Done {
        test,
        said,
        counts,
        success,
        took: begun.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use unmoved_lab::paths;

    use super::{COSTS, Cost, Test, behind_the_feature, built_program, costs, next};

    fn test(hosts: usize) -> Test {
        Test {
            name: "f::t".to_owned(),
            program: "f".into(),
            function: "t".to_owned(),
            cost: Cost { hosts, seconds: 1 },
        }
    }

    #[test]
    fn costs_are_read_and_nonsense_is_refused() {
        let read = costs("# what\na::b 2 300\n").unwrap();
        let expected = Cost {
            hosts: 2,
            seconds: 300,
        };
        assert_eq!(read["a::b"], expected);
        for wrong in ["a::b 2", "a::b two 3", "a::b 2 3 4"] {
            assert!(costs(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_file_of_costs_can_be_read() {
        let text = std::fs::read_to_string(paths::workspace().join(COSTS)).unwrap();
        assert!(costs(&text).unwrap().len() > 10);
    }

    #[test]
    fn what_fits_goes_first_and_what_never_fits_alone() {
        let waiting = [test(4), test(2), test(1)];
        assert_eq!(next(&waiting, 3, 1), Some(1));
        assert_eq!(next(&waiting, 1, 1), Some(2));
        assert_eq!(next(&waiting, 0, 1), None);
        assert_eq!(next(&waiting, 3, 0), Some(0));
        assert_eq!(next(&[], 3, 0), None);
    }

    #[test]
    fn programs_behind_the_feature_are_found() {
        let metadata = json!({"packages": [
            {"name": "other", "targets": [{"name": "no", "required-features": ["lab"]}]},
            {"name": "unmoved-tests", "targets": [
                {"name": "cuts", "required-features": ["lab"]}, {"name": "mistakes"}]},
        ]});
        let wanted = behind_the_feature(&metadata);
        assert_eq!(wanted, ["cuts"]);
        let built = json!({"target": {"name": "cuts", "kind": ["test"]}, "executable": "/x"});
        let found = built_program(&built.to_string(), &wanted);
        assert_eq!(found, Some(("cuts".to_owned(), "/x".into())));
        assert_eq!(built_program("{}", &wanted), None);
    }
}
