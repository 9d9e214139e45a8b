//! Two daemons with real journals, real TLS and hosts in memory: whole jobs, and who must not disturb
//! them.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something does not work"
)]

mod attacked;
mod attacks;
mod command;
mod daemons;
mod fake;
mod meet;
mod metrics;
mod watching;

use std::sync::Arc;

use daemons::{Pair, Stopped};
use event_listener::Listener;
use fake::Fake;
use unmoved::daemon::{Daemon, Job};
use unmoved::job::{Compression, JobOptions, Presence};
use unmoved::journal::Journal;
use unmoved::session::{DestinationRecord, Request, SessionId, SourceRecord, Token};

/// Waits for the job's end.
pub fn ended(job: &Job) -> Result<(), String> {
    loop {
        let listener = job.control.listen();
        if let Some(result) = job.result() {
            return result;
        }
        listener.wait();
    }
}

/// Waits until it is so.
pub fn until(job: &Job, mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        let listener = job.control.listen();
        if is_so() {
            return;
        }
        // A short wait: what is looked at may be at the other end, whose changes do not wake us.
        listener.wait_timeout(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_guest_is_moved_with_all_its_memory() {
    for (parallel, compress) in [(1, Compression::None), (3, Compression::Zstd(1))] {
        let pair = Pair::start();
        let memory = pair.a.add("guest", "u-1");
        let options = JobOptions {
            parallel,
            compress,
            ..JobOptions::default()
        };
        let job = pair.left.migrate("test", "guest", "b", options).unwrap();
        ended(&job).unwrap();
        assert_eq!(pair.a.presence("u-1"), Presence::Absent);
        assert_eq!(pair.b.presence("u-1"), Presence::Running);
        assert_eq!(pair.b.memory("u-1"), memory);
        let status = job.status(0);
        let report = status.report.unwrap();
        assert_eq!(report.tool, "unmoved");
        assert!(report.bytes_on_wire > 0 && report.rounds == 2);
        assert!(report.predicted_blackout_ms.is_some() && report.predicted_total_ms.is_some());
        assert_eq!(status.statistics.success, Some(true));
        // And back again, under another name.
        let options = JobOptions {
            destination_name: Some("other".to_owned()),
            ..JobOptions::default()
        };
        let job = pair.right.migrate("test", "guest", "a", options).unwrap();
        ended(&job).unwrap();
        assert_eq!(pair.a.name("u-1"), "other");
        assert_eq!(pair.a.memory("u-1"), memory);
    }
}

#[test]
fn an_abort_leaves_the_guest_where_it_was() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.a.hold_live(true);
    let job = pair
        .left
        .migrate("test", "guest", "b", JobOptions::default())
        .unwrap();
    until(&job, || pair.b.presence("u-1") == Presence::Partial);
    assert!(job.control.abort());
    let why = ended(&job).unwrap_err();
    assert!(why.contains("aborted"), "{why}");
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    assert_eq!(pair.b.presence("u-1"), Presence::Absent);
    // Nothing stays locked.
    pair.a.hold_live(false);
    let job = pair
        .left
        .migrate("test", "guest", "b", JobOptions::default())
        .unwrap();
    ended(&job).unwrap();
}

#[test]
fn a_check_predicts_and_changes_nothing() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    let found = pair
        .left
        .check("guest", "b", JobOptions::default())
        .unwrap();
    assert!(found.prediction.total_ms > 0.0 && found.prediction.rounds >= 2);
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    assert_eq!(pair.b.presence("u-1"), Presence::Absent);
    assert!(pair.left.jobs().is_empty() && pair.right.jobs().is_empty());
    pair.b.add("guest", "u-2");
    let error = pair
        .left
        .check("guest", "b", JobOptions::default())
        .unwrap_err();
    assert!(
        error.to_string().contains("there is a guest already"),
        "{error}"
    );
}

#[test]
fn a_second_migration_of_the_same_guest_is_refused_at_once() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.a.hold_live(true);
    let first = pair
        .left
        .migrate("test", "guest", "b", JobOptions::default())
        .unwrap();
    until(&first, || pair.b.presence("u-1") == Presence::Partial);
    // Neither may read the guest's memory: that would take from the first what it records.
    let second = pair
        .left
        .migrate("test", "guest", "b", JobOptions::default());
    let check = pair.left.check("guest", "b", JobOptions::default());
    for why in [second.map(drop), check.map(drop)] {
        let why = why.unwrap_err().to_string();
        assert!(why.contains("leaving already"), "{why}");
    }
    pair.a.hold_live(false);
    ended(&first).unwrap();
}

#[test]
fn a_destination_that_fails_to_build_gives_the_guest_back() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.b.fail_to_build();
    let job = pair
        .left
        .migrate("test", "guest", "b", JobOptions::default())
        .unwrap();
    let why = ended(&job).unwrap_err();
    assert!(why.contains("no more loop devices"), "{why}");
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    assert_eq!(pair.b.presence("u-1"), Presence::Absent);
}

/// To the source it looks like a connection that is closed.
#[test]
fn a_destination_that_fails_while_it_receives_says_why() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.b.fail_to_fill();
    let options = JobOptions::default();
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    let why = ended(&job).unwrap_err();
    assert!(why.contains("console tty: timed out"), "{why}");
    assert_eq!(why.matches("timed out").count(), 1, "{why}");
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    assert_eq!(pair.b.presence("u-1"), Presence::Absent);
}

/// Records as a daemon that was killed left them.
fn left_behind(pair: &Stopped, source: &[SourceRecord], destination: &[DestinationRecord]) {
    let session = SessionId::new([5; 16]);
    let mut journal = Journal::new(&pair.folder.path().join("a").join("source"), session);
    for record in source {
        journal.append(record).unwrap();
    }
    let mut journal = Journal::new(&pair.folder.path().join("b").join("destination"), session);
    for record in destination {
        journal.append(record).unwrap();
    }
}

fn begun(host: &Arc<Fake>) -> (SourceRecord, DestinationRecord) {
    let token = Token::new([9; 32]);
    let control = unmoved::job::Control::new(JobOptions::default());
    let mut source = host.source("guest").unwrap();
    let prepared = source.prepare(control.options(), &control).unwrap();
    let request = Box::new(Request {
        needs: prepared.needs,
        leave_paused: false,
        parallel: 1,
        seal: token.seal(),
    });
    let source = SourceRecord::Begun {
        request: request.clone(),
        token,
        peer: "b".to_owned(),
    };
    let peer = "a".to_owned();
    (source, DestinationRecord::Reserved { request, peer })
}

fn only_job(daemon: &Daemon) -> Arc<Job> {
    daemon.jobs().first().unwrap().clone()
}

#[test]
fn agents_killed_after_the_hand_over_finish_it_when_they_meet_again() {
    let pair = Pair::prepare();
    pair.a.add("guest", "u-1");
    let (source, destination) = begun(&pair.a);
    pair.a.set("u-1", Presence::Paused);
    pair.b.put("guest", "u-1", Presence::Paused);
    left_behind(
        &pair,
        &[source, SourceRecord::Suspending, SourceRecord::HandedOver],
        &[destination, DestinationRecord::Received],
    );
    let pair = pair.go();
    ended(&only_job(&pair.left)).unwrap();
    assert_eq!(pair.a.presence("u-1"), Presence::Absent);
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
}

#[test]
fn a_guest_that_ran_before_a_restart_leaves_its_place_free_for_the_next() {
    let pair = Pair::prepare();
    pair.a.add("guest", "u-1");
    let (source, destination) = begun(&pair.a);
    let SourceRecord::Begun { token, .. } = source.clone() else {
        unreachable!("it is how one begins");
    };
    pair.a.set("u-1", Presence::Paused);
    pair.b.put("guest", "u-1", Presence::Running);
    left_behind(
        &pair,
        &[source, SourceRecord::Suspending, SourceRecord::HandedOver],
        &[
            destination,
            DestinationRecord::Received,
            DestinationRecord::Taken { token },
        ],
    );
    let pair = pair.go();
    ended(&only_job(&pair.left)).unwrap();
    for (from, to) in [(&pair.right, "a"), (&pair.left, "b")] {
        let job = from.migrate("test", "guest", to, JobOptions::default());
        ended(&job.unwrap()).unwrap();
    }
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
}

#[test]
fn agents_killed_before_the_hand_over_give_the_guest_back() {
    let pair = Pair::prepare();
    pair.a.add("guest", "u-1");
    let (source, destination) = begun(&pair.a);
    pair.a.set("u-1", Presence::Paused);
    pair.b.put("guest", "u-1", Presence::Paused);
    left_behind(
        &pair,
        &[source, SourceRecord::Suspending],
        &[destination, DestinationRecord::Received],
    );
    let pair = pair.go();
    ended(&only_job(&pair.left)).unwrap_err();
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    assert_eq!(pair.b.presence("u-1"), Presence::Absent);
}

#[test]
fn what_a_dead_agent_watched_is_let_go_and_what_is_suspended_is_not_touched() {
    let stopped = Pair::prepare();
    stopped.a.add("web", "u-running");
    stopped.a.put("db", "u-suspended", Presence::Paused);
    for uuid in ["u-running", "u-suspended"] {
        stopped.a.leave_watched(uuid);
    }
    let pair = stopped.go();
    assert!(!pair.a.is_watched("u-running"));
    assert!(pair.a.is_watched("u-suspended"));
    assert_eq!(pair.a.presence("u-suspended"), Presence::Paused);
}

#[test]
fn a_damaged_journal_stops_its_own_session_and_no_other() {
    let stopped = Pair::prepare();
    let session = SessionId::new([9; 16]);
    stopped.a.add("web", "u-web");
    for (host, end) in [("a", "source"), ("b", "destination")] {
        let file = format!("{host}/{end}/{session}.journal");
        std::fs::write(stopped.folder.path().join(file), "0 rot\n0 rot\n").unwrap();
    }
    let pair = stopped.go();
    for daemon in [&pair.left, &pair.right] {
        let job = daemon.job(&session.to_string()).unwrap();
        assert!(job.result().is_none());
    }
    let options = JobOptions::default();
    let job = pair.left.migrate("me", "web", "b", options).unwrap();
    assert_eq!(ended(&job), Ok(()));
    let left = std::fs::read(
        pair.folder
            .path()
            .join(format!("b/destination/{session}.journal")),
    );
    assert_eq!(left.unwrap(), b"0 rot\n0 rot\n");
}
