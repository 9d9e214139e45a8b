//! `unmoved save` and `restore`: jobs as a migration is one.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use unmoved::daemon::{Direction, local};
use unmoved::job::{JobOptions, Presence};

use crate::daemons::{ALLOWED, Pair};
use crate::{ended, until};

#[test]
fn a_save_is_a_job_that_ends_with_a_file() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    let file = pair.folder.path().join("kept");
    let job = pair.left.save("test", "guest", &file, true).unwrap();
    ended(&job).unwrap();
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    assert!(fs::metadata(&file).unwrap().len() > 1 << 20);
    let status = job.status(0);
    assert_eq!(
        (status.direction, status.domain.as_str()),
        (Direction::Save, "guest")
    );
    assert_eq!(status.statistics.operation, "save");
    assert_eq!(status.peer, file.display().to_string());
    // Never over another file, which may be all that is left of a guest.
    let job = pair.left.save("test", "guest", &file, false).unwrap();
    assert!(ended(&job).unwrap_err().contains("cannot create the file"));
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    let last = pair.folder.path().join("last");
    ended(&pair.left.save("test", "guest", &last, false).unwrap()).unwrap();
    assert_eq!(pair.a.presence("u-1"), Presence::Absent);
    assert_eq!(fs::read(&last).unwrap(), fs::read(&file).unwrap());
}

#[test]
fn an_aborted_save_leaves_the_guest_running_and_no_file() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.a.hold_live(true);
    let file = pair.folder.path().join("file");
    let job = pair.left.save("test", "guest", &file, false).unwrap();
    // The guest is this job's.
    let other = pair.left.migrate("test", "guest", "b", Default::default());
    assert!(
        other
            .unwrap_err()
            .to_string()
            .contains("migrating or saving this guest")
    );
    assert!(job.control.abort());
    assert!(ended(&job).unwrap_err().contains("aborted"));
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    assert!(!file.exists());
    pair.a.hold_live(false);
    ended(&pair.left.save("test", "guest", &file, true).unwrap()).unwrap();
}

#[test]
fn a_file_that_is_no_guest_is_refused() {
    let pair = Pair::start();
    let file = pair.folder.path().join("file");
    for content in [&b"nothing"[..], &[0; 4096]] {
        fs::write(&file, content).unwrap();
        let job = pair.left.restore("test", &file, false).unwrap();
        let why = ended(&job).unwrap_err();
        assert!(why.contains("cannot be read"), "{why}");
        assert_eq!(job.status(0).statistics.operation, "restore");
    }
    fs::remove_file(&file).unwrap();
    let job = pair.left.restore("test", &file, false).unwrap();
    assert!(ended(&job).unwrap_err().contains("cannot read"));
}

#[test]
fn a_restore_cannot_have_what_a_migration_has_reserved() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    let file = pair.folder.path().join("file");
    ended(&pair.left.save("test", "guest", &file, true).unwrap()).unwrap();
    pair.a.hold_live(true);
    let options = JobOptions::default();
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    until(&job, || pair.b.presence("u-1") == Presence::Partial);
    let why = ended(&pair.right.restore("test", &file, false).unwrap()).unwrap_err();
    assert!(why.contains("the name guest is reserved"), "{why}");
    pair.a.hold_live(false);
    ended(&job).unwrap();
}

#[test]
fn a_daemon_that_is_stopped_undoes_its_saves() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.a.hold_live(true);
    let file = pair.folder.path().join("file");
    let job = pair.left.save("test", "guest", &file, false).unwrap();
    pair.left.stop(Duration::from_secs(60));
    assert!(job.result().unwrap().unwrap_err().contains("aborted"));
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    assert!(!file.exists());
}

#[test]
fn only_root_may_have_files_written_and_read() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    local::serve(&pair.left).unwrap();
    let file = pair.folder.path().join("file");
    let file = file.to_str().unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unmoved"));
        let socket = pair.folder.path().join("a.sock");
        command.arg("--socket").arg(socket).args(arguments);
        // Only root can become another user, and who is not is one already.
        if rustix::process::geteuid().is_root() {
            command.uid(ALLOWED);
        }
        command.output().unwrap()
    };
    assert!(command(&["list"]).status.success());
    for arguments in [&["save", "guest", file][..], &["restore", file]] {
        let error = String::from_utf8(command(arguments).stderr).unwrap();
        assert!(error.contains("only root"), "{error}");
    }
    assert!(!fs::exists(file).unwrap());
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
}
