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
mod damage;
mod fake;
mod files;
mod inquiries;
mod meet;
mod metrics;
mod restarts;
mod stops;
mod trust;
mod verify;
mod watching;

use daemons::Pair;
use event_listener::Listener;
use unmoved::daemon::Job;
use unmoved::job::{Compression, JobOptions, Phase, Presence};

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
        let arrived = pair.right.jobs().pop().unwrap().status(0).statistics;
        assert!(arrived.memory_processed > 0);
        assert!(arrived.wire_bytes > 0 && arrived.wire_bytes <= status.statistics.wire_bytes);
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

/// It stands still, and the destination may build for minutes.
#[test]
fn an_abort_while_the_destination_builds_lets_the_guest_go_on_at_once() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.b.hold_build(true);
    let options = JobOptions::default();
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    until(&job, || job.status(0).phase == Phase::Building);
    assert_ne!(pair.a.presence("u-1"), Presence::Running);
    pair.a.stumble(2);
    assert!(job.control.abort());
    until(&job, || pair.a.presence("u-1") == Presence::Running);
    assert!(job.result().is_none(), "the destination is not told yet");
    pair.b.hold_build(false);
    let why = ended(&job).unwrap_err();
    assert!(why.contains("aborted") && !why.contains("answer"), "{why}");
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    until(&job, || pair.b.presence("u-1") == Presence::Absent);
}

#[test]
fn a_guest_is_left_paused_where_it_arrives_if_that_is_asked_for() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    let options = JobOptions {
        leave_paused: true,
        ..JobOptions::default()
    };
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    ended(&job).unwrap();
    assert_eq!(pair.a.presence("u-1"), Presence::Absent);
    assert_eq!(pair.b.presence("u-1"), Presence::Paused);
    assert_eq!(pair.b.name("u-1"), "guest");
}

#[test]
fn two_guests_cannot_have_the_same_name_at_the_destination() {
    let pair = Pair::start();
    pair.a.add("first", "u-1");
    pair.a.add("second", "u-2");
    pair.a.hold_live(true);
    let named = || JobOptions {
        destination_name: Some("web1".to_owned()),
        ..JobOptions::default()
    };
    let first = pair.left.migrate("test", "first", "b", named()).unwrap();
    until(&first, || pair.b.presence("u-1") == Presence::Partial);
    let second = pair.left.migrate("test", "second", "b", named()).unwrap();
    let why = ended(&second).unwrap_err();
    assert!(why.contains("web1"), "{why}");
    assert_eq!(pair.a.presence("u-2"), Presence::Running);
    assert_eq!(pair.b.presence("u-2"), Presence::Absent);
    // It has done nothing to the first.
    pair.a.hold_live(false);
    ended(&first).unwrap();
    assert_eq!(pair.b.name("u-1"), "web1");
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
        assert!(why.contains("migrating or saving this guest"), "{why}");
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

#[test]
fn a_toolstack_that_takes_nothing_does_not_keep_what_is_locked() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.b.get_stuck();
    let options = JobOptions::default();
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    until(&job, || pair.b.presence("u-1") == Presence::Partial);
    assert!(job.control.abort());
    ended(&job).unwrap_err();
    assert_eq!(pair.b.presence("u-1"), Presence::Absent);
    let options = JobOptions::default();
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    ended(&job).unwrap();
}
