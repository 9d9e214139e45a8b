//! Journals that were damaged, at daemons that find them when they start.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use unmoved::daemon::Job;
use unmoved::job::{JobOptions, Presence};
use unmoved::journal::Journal;
use unmoved::session::{DestinationRecord, SessionId, SourceRecord};

use crate::daemons::{Pair, Stopped};
use crate::restarts::{SESSION, begun, left_behind, only_job};
use crate::{ended, until};

fn copies(stopped: &Stopped, end: &str, session: SessionId) -> [PathBuf; 2] {
    let folder = stopped.folder.path().join(end);
    ["journal", "mirror"].map(|copy| folder.join(format!("{session}.{copy}")))
}

/// The last line is not what was written.
fn spoil(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() - 3;
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// The disk does not give it.
fn unreadable(path: &Path) {
    let _ = fs::remove_file(path);
    symlink(path, path).unwrap();
}

/// A session that was handed over, and is taken over up to here; both copies stand still.
fn handed_over(more: Option<DestinationRecord>, there: Presence) -> Stopped {
    let stopped = Pair::prepare();
    stopped.a.add("guest", "u-1");
    let (source, destination) = begun(&stopped.a);
    stopped.a.set("u-1", Presence::Paused);
    stopped.b.put("guest", "u-1", there);
    let mut records = vec![destination, DestinationRecord::Received];
    records.extend(more);
    left_behind(
        &stopped,
        &[source, SourceRecord::Suspending, SourceRecord::HandedOver],
        &records,
    );
    stopped
}

fn waiting(job: &Job) -> String {
    until(job, || job.status(0).is_held);
    assert!(job.result().is_none());
    job.status(0).waiting.unwrap()
}

/// Another guest is moved as if nothing were.
fn moves(pair: &Pair) {
    pair.a.add("web", "u-web");
    let options = JobOptions::default();
    let job = pair.left.migrate("me", "web", "b", options).unwrap();
    assert_eq!(ended(&job), Ok(()));
}

#[test]
fn one_bad_copy_is_made_good_by_the_other() {
    for spoilt in [spoil, unreadable] {
        for copy in 0..2 {
            let stopped = handed_over(None, Presence::Paused);
            for end in ["a/source", "b/destination"] {
                spoilt(&copies(&stopped, end, SESSION)[copy]);
            }
            let pair = stopped.go();
            ended(&only_job(&pair.left)).unwrap();
            assert_eq!(pair.a.presence("u-1"), Presence::Absent);
            assert_eq!(pair.b.presence("u-1"), Presence::Running);
        }
    }
}

#[test]
fn a_journal_of_which_nothing_can_be_read_stops_its_own_session_and_no_other() {
    let spoilt = |path: &Path| fs::write(path, "0 rot\n0 rot\n").unwrap();
    for harm in [spoilt, unreadable] {
        let stopped = Pair::prepare();
        let session = SessionId::new([9; 16]);
        for end in ["a/source", "b/destination"] {
            for copy in copies(&stopped, end, session) {
                harm(&copy);
            }
        }
        let pair = stopped.go();
        for daemon in [&pair.left, &pair.right] {
            let job = daemon.job(&session.to_string()).unwrap();
            let why = waiting(&job);
            assert!(why.contains("unmoved recover"), "{why}");
        }
        moves(&pair);
        // An operator has seen to it.  That is on the disk, and what was bad is kept.
        for (daemon, end) in [(&pair.left, "a/source"), (&pair.right, "b/destination")] {
            let job = daemon.job(&session.to_string()).unwrap();
            daemon.decide(&job, false).unwrap();
            ended(&job).unwrap_err();
            let files = fs::read_dir(pair.folder.path().join(end)).unwrap();
            let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
            let kept = names.filter(|name| name.ends_with(".damaged"));
            assert_eq!(kept.count(), 2);
        }
        let folder = pair.folder.path().join("b/destination");
        let (_, records) = Journal::<DestinationRecord>::open(&folder, session).unwrap();
        assert!(matches!(
            &records[..],
            [DestinationRecord::Forgotten { .. }]
        ));
    }
}

/// There is a fourth record, of words that this agent does not know.
fn newer(path: &Path) {
    let records = [(); 4].map(|()| serde_json::json!({ "state": "pondering" }));
    let text = unmoved::journal::written(&records).unwrap();
    let fourth = text.lines().last().unwrap();
    let known = fs::read_to_string(path).unwrap();
    fs::write(path, format!("{known}{fourth}\n")).unwrap();
}

/// It is not known whether it was handed over.
#[test]
fn a_source_in_doubt_does_nothing_until_an_operator_decides() {
    for harm in [spoil, newer] {
        let stopped = handed_over(None, Presence::Paused);
        for copy in copies(&stopped, "a/source", SESSION) {
            harm(&copy);
        }
        let pair = stopped.go();
        let job = only_job(&pair.left);
        waiting(&job);
        moves(&pair);
        assert_eq!(pair.a.presence("u-1"), Presence::Paused);
        assert_eq!(pair.b.presence("u-1"), Presence::Paused);
        pair.left.decide(&job, false).unwrap();
        ended(&job).unwrap();
        assert_eq!(pair.a.presence("u-1"), Presence::Absent);
        assert_eq!(pair.b.presence("u-1"), Presence::Running);
    }
}

#[test]
fn an_operator_lets_the_guest_of_a_source_in_doubt_go_on() {
    let stopped = handed_over(None, Presence::Paused);
    for copy in copies(&stopped, "a/source", SESSION) {
        spoil(&copy);
    }
    let left = stopped.go_left();
    let job = only_job(&left);
    waiting(&job);
    left.decide(&job, true).unwrap();
    ended(&job).unwrap_err();
    assert_eq!(stopped.a.presence("u-1"), Presence::Running);
}

/// It may have been taken over, and have run.
#[test]
fn a_destination_in_doubt_refuses_and_its_source_is_held() {
    for there in [Presence::Paused, Presence::Running] {
        let (source, held) = refused(there);
        let pair = source.go();
        let [leaving, coming] = [&pair.left, &pair.right].map(only_job);
        until(&leaving, || leaving.status(0).is_held);
        waiting(&coming);
        assert_eq!(pair.a.presence("u-1"), Presence::Paused);
        assert_eq!(pair.b.presence("u-1"), there);
        assert!(waiting(&leaving).contains(&held), "{}", waiting(&leaving));
        // What can be decided is told by what both ends see, and there is something.
        let why = pair.left.decide(&leaving, false).unwrap_err().to_string();
        assert!(why.contains("Decide the job there first"), "{why}");
        if there == Presence::Running {
            pair.left.decide(&leaving, true).unwrap_err();
            pair.right.decide(&coming, true).unwrap();
            until(&leaving, || pair.left.decide(&leaving, false).is_ok());
            ended(&leaving).unwrap();
            assert_eq!(pair.a.presence("u-1"), Presence::Absent);
            assert_eq!(pair.b.presence("u-1"), Presence::Running);
        } else {
            pair.right.decide(&coming, true).unwrap_err();
            // Its journal may say that it was taken over when it can be read again.
            pair.left.decide(&leaving, true).unwrap_err();
            pair.right.discard(&coming, false).unwrap();
            pair.left.decide(&leaving, true).unwrap();
            ended(&leaving).unwrap_err();
            assert_eq!(pair.a.presence("u-1"), Presence::Running);
            assert_eq!(pair.b.presence("u-1"), Presence::Absent);
        }
    }
}

fn refused(there: Presence) -> (Stopped, String) {
    let reason = "x".to_owned();
    let stopped = handed_over(Some(DestinationRecord::Lost { reason }), there);
    for copy in copies(&stopped, "b/destination", SESSION) {
        spoil(&copy);
    }
    (stopped, "refuses to take over".to_owned())
}

#[test]
fn an_operator_decides_about_a_copy_in_doubt() {
    let (stopped, _) = refused(Presence::Running);
    let right = stopped.go_right();
    let job = only_job(&right);
    right.decide(&job, false).unwrap_err();
    right.decide(&job, true).unwrap();
    ended(&job).unwrap();
    let left = stopped.go_left();
    ended(&only_job(&left)).unwrap();
    assert_eq!(stopped.a.presence("u-1"), Presence::Absent);
    assert_eq!(stopped.b.presence("u-1"), Presence::Running);

    let (stopped, _) = refused(Presence::Paused);
    let right = stopped.go_right();
    let job = only_job(&right);
    let why = right.decide(&job, false).unwrap_err().to_string();
    assert!(why.contains("last complete copy"), "{why}");
    right.discard(&job, true).unwrap();
    ended(&job).unwrap_err();
    assert_eq!(stopped.b.presence("u-1"), Presence::Absent);
    drop(right);
    // It is not said that it never ran.
    let left = stopped.go_left();
    let job = only_job(&left);
    until(&job, || job.status(0).waiting.is_some());
    assert_eq!(stopped.a.presence("u-1"), Presence::Paused);
}

/// Its guest may be another session's by now, which is about to hand it over.
#[test]
fn a_session_in_doubt_does_not_touch_what_another_has() {
    let stopped = handed_over(None, Presence::Paused);
    let (source, _) = begun(&stopped.a);
    stopped.a.set("u-1", Presence::Paused);
    let folder = stopped.folder.path().join("a/source");
    let other = SessionId::new([6; 16]);
    let mut journal = Journal::new(&folder, other);
    let reason = "x".to_owned();
    for record in [
        source,
        SourceRecord::Suspending,
        SourceRecord::Held { reason },
    ] {
        journal.append(&record).unwrap();
    }
    for copy in copies(&stopped, "a/source", SESSION) {
        spoil(&copy);
    }
    let left = stopped.go_left();
    let job = left.job(&SESSION.to_string()).unwrap();
    waiting(&job);
    for run_here in [true, false] {
        let why = left.decide(&job, run_here).unwrap_err().to_string();
        assert!(why.contains("another job holds this guest"), "{why}");
    }
    assert_eq!(stopped.a.presence("u-1"), Presence::Paused);
}

/// The source's copy is gone with its host: what the destination has is all that there is.
#[test]
fn the_last_copy_can_be_let_run_though_it_is_in_doubt() {
    let (stopped, _) = refused(Presence::Paused);
    stopped.a.remove("u-1");
    let pair = stopped.go();
    let [leaving, coming] = [&pair.left, &pair.right].map(only_job);
    until(&leaving, || leaving.status(0).is_held);
    waiting(&coming);
    pair.left.discard(&leaving, true).unwrap_err();
    pair.right.discard(&coming, false).unwrap_err();
    pair.right.decide(&coming, true).unwrap();
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
    until(&leaving, || pair.left.decide(&leaving, false).is_ok());
    ended(&leaving).unwrap();
}

/// Its daemon waits for nobody who can only be helped by an operator.
#[test]
fn a_daemon_is_stopped_though_sessions_are_in_doubt() {
    let (stopped, _) = refused(Presence::Paused);
    for copy in copies(&stopped, "a/source", SESSION) {
        spoil(&copy);
    }
    let pair = stopped.go();
    for daemon in [&pair.left, &pair.right] {
        waiting(&only_job(daemon));
        let since = Instant::now();
        daemon.stop(Duration::from_secs(60));
        assert!(since.elapsed() < Duration::from_secs(30));
    }
    assert_eq!(pair.a.presence("u-1"), Presence::Paused);
    assert_eq!(pair.b.presence("u-1"), Presence::Paused);
}

/// What is not known to be over may be begun again by whoever asks for it.
#[test]
fn where_journals_cannot_be_looked_for_no_session_begins() {
    let stopped = Pair::prepare();
    stopped.a.add("web", "u-web");
    let right = stopped.go_right_without("destination");
    let left = stopped.go_left();
    waiting(&only_job(&right));
    let options = JobOptions::default();
    let job = left.migrate("me", "web", "b", options).unwrap();
    let why = ended(&job).unwrap_err();
    assert!(why.contains("the journal folder"), "{why}");
    assert_eq!(stopped.a.presence("u-web"), Presence::Running);
}
