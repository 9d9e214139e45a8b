//! `unmoved stream` as a user meets it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use unmoved_stream::legacy::Width;
use unmoved_stream::libxc::PvInfo;
use unmoved_stream::testing::{Guest, LegacySample, Sample};

fn unmoved(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmoved"));
    command.arg("stream").args(words).stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Output {
    unmoved(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_good_file_is_described() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = Sample::new(Guest::Hvm).xl(Vec::new()).unwrap();
    let file = write(folder.path(), "good.save", &bytes);
    for more in [&[][..], &["--read-all"], &["--format", "xl"]] {
        let output = run(&[&["verify", &file], more].concat());
        assert!(output.status.success());
        let said = text(&output.stdout);
        assert!(said.contains("layers:   xl, libxl, libxc"), "{said}");
        assert!(said.contains("written by Xen 4.17"), "{said}");
    }
    let output = run(&["verify", &file, "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["pages"], 5);
    assert_eq!(report["bytes"], bytes.len());
    let output = run(&["inspect", &file]);
    assert!(text(&output.stdout).contains("libxc HVM_CONTEXT, 1003 bytes"));
    let lines = text(&output.stdout).lines().count();
    let output = run(&["inspect", &file, "--json"]);
    let said = text(&output.stdout);
    let entries: Vec<serde_json::Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(entries.len(), lines);
    let context = entries.iter().find(|entry| entry["type"] == 9).unwrap();
    assert_eq!(context["layer"], "libxc");
    assert_eq!(context["record"], "HVM_CONTEXT");
    assert_eq!(context["length"], 1003);
    let pages = entries.iter().find(|entry| entry["record"] == "PAGE_DATA");
    assert_eq!(pages.unwrap()["pages"], 5);
}

#[test]
fn a_pipe_is_read_too() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = Sample::new(Guest::Hvm).libxl(Vec::new()).unwrap();
    let file = write(folder.path(), "good.save", &bytes);
    let mut cat = Command::new("cat")
        .arg(file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = unmoved(&["verify"])
        .stdin(cat.stdout.take().unwrap())
        .output()
        .unwrap();
    cat.wait().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_bad_file_is_one_line_with_offset_and_record() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = Sample::new(Guest::Hvm).libxc(Vec::new()).unwrap();
    bytes.truncate(bytes.len() - 9);
    let file = write(folder.path(), "bad.save", &bytes);
    let output = run(&["verify", &file]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("bad.save: at byte "), "{said}");
    assert_eq!(said.matches("truncated").count(), 1, "{said}");
    assert!(
        said.contains("HVM_PARAMS") && said.contains("truncated"),
        "{said}"
    );
    let missing = run(&["verify", "/nowhere/at/all"]);
    assert!(text(&missing.stderr).starts_with("unmoved: cannot read /nowhere/at/all"));
}

#[test]
fn a_converted_file_appears_when_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let sample = LegacySample {
        xl: true,
        ..LegacySample::new(Width::Bits32, Guest::Pv(PvInfo::Bits64))
    };
    let bytes = sample.write(Vec::new()).unwrap();
    let file = write(folder.path(), "old.save", &bytes);
    let out = folder.path().join("new.save");
    let output = run(&["convert", &file, out.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("32-bit toolstack, x86 PV"));
    let output = run(&["verify", out.to_str().unwrap(), "--format", "xl"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // To a pipe, the same bytes.
    let piped = run(&["convert", &file, "-"]);
    assert!(piped.stdout == fs::read(&out).unwrap());

    fs::remove_file(&out).unwrap();
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(bytes.len() as u64 - 5)
        .unwrap();
    let output = run(&["convert", &file, out.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("shared info"),
        "{}",
        text(&output.stderr)
    );
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_failure_is_an_object_if_json_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = Sample::new(Guest::Hvm).libxc(Vec::new()).unwrap();
    bytes.truncate(bytes.len() - 9);
    let bad = write(folder.path(), "bad.save", &bytes);
    let failed = |words: &[&str], status| {
        let output = run(words);
        assert_eq!(output.status.code(), Some(status), "{words:?}");
        let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        said["error"].as_str().unwrap().to_owned()
    };
    for what in ["verify", "inspect"] {
        let error = failed(&["--json", what, &bad], 1);
        // The whole chain: which file, where in it, and what is wrong.
        assert!(error.contains("bad.save: at byte "), "{error}");
        assert!(error.contains("truncated"), "{error}");
    }
    let error = failed(&["verify", "/nowhere/at/all", "--json"], 1);
    assert!(
        error.starts_with("cannot read /nowhere/at/all: "),
        "{error}"
    );
    let error = failed(&["--json", "nonsense"], 2);
    assert!(error.contains("unrecognized subcommand"), "{error}");
    let output = run(&["nonsense"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("error: "));
}
