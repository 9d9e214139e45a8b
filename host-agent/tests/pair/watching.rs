//! `unmoved status --watch` without a job: what happens to all of them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use unmoved::daemon::local;
use unmoved::job::JobOptions;

use crate::daemons::Pair;
use crate::ended;

fn watch(pair: &Pair, more: &[&str]) -> (Child, impl Iterator<Item = String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmoved"));
    command
        .arg("--socket")
        .arg(pair.folder.path().join("a.sock"))
        .args(["status", "--watch"])
        .args(more)
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines.map(Result::unwrap))
}

#[test]
fn all_jobs_are_followed_until_somebody_interrupts() {
    let pair = Pair::start();
    local::serve(&pair.left).unwrap();
    let migrate = |name: &str| {
        let job = pair.left.migrate("test", name, "b", JobOptions::default());
        job.unwrap()
    };
    pair.a.add("first", "u-1");
    pair.a.add("second", "u-2");
    // It runs when the first look is taken, however late that is.
    pair.a.hold_live(true);
    let first = migrate("first");
    let (mut plain, mut lines) = watch(&pair, &[]);
    let line = lines.next().unwrap();
    assert!(
        line.starts_with(&format!("{:.8}  first  ", first.id)),
        "{line}"
    );
    let (mut objects, statuses) = watch(&pair, &["--json"]);
    let mut statuses = statuses.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    assert_eq!(statuses.next().unwrap()["id"], *first.id);
    // One that begins meanwhile is followed, too, when the other is over.
    pair.a.hold_live(false);
    ended(&first).unwrap();
    let second = migrate("second");
    ended(&second).unwrap();
    let is_end = |line: &String| line.starts_with(&second.id[..8]) && line.ends_with("  done");
    assert!(lines.any(|line| is_end(&line)));
    let over: Vec<Value> = statuses
        .by_ref()
        .filter(|status| status["is_over"] == true && status["events"] != Value::Array(Vec::new()))
        .take_while(|status| status["id"] != *second.id)
        .collect();
    assert!(over.iter().any(|status| status["id"] == *first.id));
    for child in [&mut plain, &mut objects] {
        // Still there.
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
