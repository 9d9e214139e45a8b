//! The two programs as programs: the worker as an ordinary process on this machine, and the peer
//! against it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;
use unmoved_workload::fingerprint::wire::Collector;
use unmoved_workload::report::parse_line;

struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_unmoved-init"))
            .arg("--worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut this = Self {
            child,
            input,
            output,
        };
        assert_eq!(this.next()["ev"], "ready");
        this
    }

    fn next(&mut self) -> Value {
        loop {
            let mut line = String::new();
            let length = self.output.read_line(&mut line).expect("readable");
            assert_ne!(length, 0, "the worker ended");
            if let Some(report) = parse_line(&line) {
                return report.expect("whole");
            }
        }
    }

    /// Gives an order; its reports, the last being `done`.
    fn order(&mut self, line: &str) -> Vec<Value> {
        writeln!(self.input, "#t {line}").expect("written");
        let mut reports = Vec::new();
        loop {
            let report = self.next();
            if report["re"] != "t" {
                continue;
            }
            let done = report["ev"] == "done";
            reports.push(report);
            if done {
                return reports;
            }
        }
    }

    fn good(&mut self, line: &str) -> Value {
        let reports = self.order(line);
        let done = reports.last().expect("done");
        assert_eq!(done["ok"], true, "{line}: {done}");
        reports[0].clone()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_storm_passes_on_this_machine() {
    let storm = Worker::start().good("storm seconds=1 workers=2");
    assert_eq!(storm["failures"], 0, "{storm}");
    assert!(storm["runs"]["ptrace"].as_u64() >= Some(2), "{storm}");
}

#[test]
fn micro_benchmarks_give_all_figures() {
    let found = Worker::start().good("bench micro reps=5");
    for name in [
        "null_syscall_ns",
        "ctx_switch_ns",
        "fork_exec_ns",
        "page_fault_ns",
        "mmap_ns",
        "signal_ns",
        "mem_total_kib",
    ] {
        assert!(found[name].as_f64() > Some(0.0), "{name}: {found}");
    }
    assert_eq!(found["all"]["mmap_ns"].as_array().map(Vec::len), Some(5));
}

#[test]
fn a_fingerprint_comes_whole_and_twice_the_same() {
    let mut worker = Worker::start();
    let mut take = || {
        let mut collector = Collector::default();
        let reports = worker.order("fingerprint");
        let mut found = reports.iter().filter_map(|report| collector.take(report));
        found.next().expect("an end").expect("whole")
    };
    let (one, two) = (take(), take());
    assert!(one.len() > 100);
    // Not Xen here: the forced form must have been survived.
    assert_eq!(one.get("cpuid-forced"), Some("(invalid instruction)"));
    let sections = (one.section_hashes(), two.section_hashes());
    for stable in ["cpuid", "boot", "cpu"] {
        assert_eq!(sections.0[stable], sections.1[stable], "{stable}");
    }
}

#[test]
fn an_unfriendly_guest_holds_tasks_and_lets_them_go() {
    let mut worker = Worker::start();
    let reports = worker.order("unfriendly start tasks=2");
    if reports[0]["ev"] == "done" {
        // Only root may use userfaultfd for the kernel's own faults.
        assert!(
            !std::fs::read_to_string("/proc/self/status")
                .is_ok_and(|status| { status.lines().any(|line| line.starts_with("Uid:\t0")) })
        );
        return;
    }
    assert_eq!(reports[0]["states"], serde_json::json!(["D", "D"]));
    assert_eq!(
        worker.good("unfriendly stop")["states"],
        serde_json::json!([])
    );
}

#[test]
fn the_peer_says_by_its_exit_code_whether_all_was_well() {
    let peer = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_unmoved-peer"))
            .args(words)
            .output()
            .expect("starts");
        output.status.code()
    };
    let folder = tempfile::tempdir().expect("folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (one, two) = (write("one", "a\t1\nb\t2\n"), write("two", "a\t1\nb\t3\n"));
    let (before, after) = (format!("before={one}"), format!("after={two}"));
    assert_eq!(peer(&["diff", &before, &format!("after={one}")]), Some(0));
    assert_eq!(peer(&["diff", &before, &after]), Some(1));
    assert_eq!(peer(&["diff", &before]), Some(2));
    assert_eq!(peer(&[]), Some(2));
    assert_eq!(
        peer(&["tcp", "to=127.0.0.1:1", "connect=0", "seconds=1"]),
        Some(1)
    );
}

#[test]
fn the_peer_reaches_a_guest_by_its_control_port() {
    let mut worker = Worker::start();
    // The usual ports may be taken by another worker on this machine; then there is nothing to do.
    if worker.order("net start")[0]["ok"] != true {
        return;
    }
    let peer = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_unmoved-peer"))
            .args(words)
            .output()
            .expect("starts");
        assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        let last = text.lines().last().and_then(parse_line);
        last.expect("a report").expect("whole")
    };
    let control = "to=127.0.0.1:7009";
    assert_eq!(peer(&["order", control, "line=clock report"])["ok"], true);
    let wall = peer(&["wall", control]);
    let (error, doubt) = (&wall["wall_error_ns"], &wall["uncertainty_ns"]);
    assert!(error.as_i64().map(i64::abs) <= doubt.as_i64(), "{wall}");
    let file = tempfile::NamedTempFile::new().expect("file");
    let path = format!("file={}", file.path().display());
    assert!(peer(&["fingerprint", control, &path])["entries"].as_u64() > Some(100));
    let end = peer(&["tcp", "to=127.0.0.1:7007", "seconds=1"]);
    assert_eq!((&end["final"], &end["breaks"]), (&true.into(), &0.into()));
    let end = peer(&["udp", "to=127.0.0.1:7008", "seconds=1"]);
    assert_eq!((&end["lost"], &end["corrupt"]), (&0.into(), &0.into()));
}
