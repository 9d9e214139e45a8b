//! However a lab ends, nothing of it stays: no process, no port, and no folder after the next run.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use unmoved_lab::paths;

/// Processes whose command line has `word`.
fn processes(word: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(word) {
            found.push(pid);
        }
    }
    found
}

/// A lab in a process of its own, which holds until it is killed.
fn start() -> (Child, PathBuf) {
    let child = Command::new(env!("CARGO_BIN_EXE_lab-hold"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let folder = paths::target()
        .join("lab")
        .join(format!("hold-{}-0", child.id()));
    (child, folder)
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_killed_lab_leaves_nothing() {
    // Moments spread over the start of a lab; where exactly each falls differs from run to run.
    for (round, delay) in [20_u64, 150, 400, 900, 1600, 2500, 4000]
        .into_iter()
        .enumerate()
    {
        let (mut child, folder) = start();
        std::thread::sleep(Duration::from_millis(delay));
        let signal = [Signal::KILL, Signal::INT, Signal::TERM][round % 3];
        send(&child, signal);
        child.wait().unwrap();
        let word = folder.to_str().unwrap().to_owned();
        wait_until("a process outlived its lab", || processes(&word).is_empty());
        if signal != Signal::KILL && delay > 1000 {
            assert!(
                !folder.exists(),
                "an interrupted lab left {}",
                folder.display()
            );
        }
    }
    // What SIGKILL left on the disk, the next run sweeps.
    let name = format!("sweep-{}", std::process::id());
    drop(unmoved_lab::run::RunFolder::new(&name).unwrap());
    let left: Vec<_> = fs::read_dir(paths::target().join("lab"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("hold-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
