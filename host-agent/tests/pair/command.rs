//! The command, with a daemon to ask.

use std::process::Command;

use serde_json::Value;
use unmoved::daemon::local;

use crate::daemons::Pair;

#[test]
fn the_command_shows_a_migration() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    local::serve(&pair.left).unwrap();
    let unmoved = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unmoved"));
        command
            .arg("--socket")
            .arg(pair.folder.path().join("a.sock"));
        let output = command.args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    };
    let json = |arguments: &[&str]| -> Value {
        let all = [&["--json"], arguments].concat();
        serde_json::from_str(&unmoved(&all)).unwrap()
    };
    assert_eq!(json(&["check", "guest", "b"])["host"], "b");
    assert_eq!(json(&["hosts"])[1]["reachable"], true);
    let done = json(&["migrate", "guest", "b", "--parallel", "2"]);
    assert_eq!(done["report"]["tool"], "unmoved");
    assert_eq!(done["statistics"]["success"], true);
    let id = done["id"].as_str().unwrap();
    assert!(unmoved(&["status"]).contains("done"));
    assert_eq!(json(&["status", id])["domain"], "guest");
    assert!(unmoved(&["doctor"]).contains("ok       peer b"));
    assert!(unmoved(&["capabilities"]).contains("<live/>"));
    assert!(unmoved(&["completions", "bash"]).contains("migrate"));
}

#[test]
fn a_doctor_without_a_daemon_looks_for_what_keeps_it_from_running() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmoved"));
    command.args(["--json", "--socket", "/nowhere/unmoved.sock", "doctor"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let checks: Vec<_> = found.iter().map(|one| &one["check"]).collect();
    assert_eq!(checks[0], "unmovedd");
    assert!(found[0]["problem"].as_str().unwrap().contains("/nowhere"));
    assert!(checks.contains(&&"configuration".into()) && checks.contains(&&"Xen".into()));
}
