//! Operators that are followed, and those that are not, for what either end sees.

use std::sync::Arc;

use unmoved::job::Presence;
use unmoved::session::{DestinationRecord, SourceRecord};

use unmoved::daemon::{Daemon, Job};

use crate::daemons::{Pair, Stopped};
use crate::restarts::{SESSION, begun, left_behind, only_job, received};
use crate::{ended, until};

/// The source was installed anew, and does not know the session.
fn forget(stopped: &Stopped) {
    let folder = stopped.folder.path().join("a").join("source");
    for copy in ["journal", "mirror"] {
        std::fs::remove_file(folder.join(format!("{SESSION}.{copy}"))).unwrap();
    }
}

fn adopted(stopped: &Stopped, right: &Arc<Daemon>, job: &Job) {
    until(job, || right.decide(job, true).is_ok());
    ended(job).unwrap();
    assert_eq!(stopped.b.presence("u-1"), Presence::Running);
}

#[test]
fn a_copy_is_adopted_though_a_source_that_knows_nothing_of_it_answers() {
    let (stopped, right, job) = received(DestinationRecord::Received, Presence::Paused);
    forget(&stopped);
    stopped.a.remove("u-1");
    let _left = stopped.go_left();
    adopted(&stopped, &right, &job);
}

#[test]
fn no_copy_is_adopted_whose_guest_is_at_a_source_that_knows_nothing_of_it() {
    for presence in [Presence::Paused, Presence::Running] {
        let (stopped, right, job) = received(DestinationRecord::Received, Presence::Paused);
        forget(&stopped);
        stopped.a.set("u-1", presence);
        let _left = stopped.go_left();
        let why = right.decide(&job, true).unwrap_err().to_string();
        assert!(why.contains("knows of no such job"), "{why}");
        assert_eq!(stopped.b.presence("u-1"), Presence::Paused);
        // But it is thrown away, for it is not the last.
        right.discard(&job, false).unwrap();
        assert_eq!(stopped.b.presence("u-1"), Presence::Absent);
    }
}

/// A source that asks its operator, and its destination.
fn held(here: Presence, last: DestinationRecord, there: Presence) -> (Pair, Arc<Job>) {
    let stopped = Pair::prepare();
    stopped.a.add("guest", "u-1");
    let (source, destination) = begun(&stopped.a);
    stopped.a.set("u-1", here);
    if here == Presence::Absent {
        stopped.a.remove("u-1");
    }
    if there != Presence::Absent {
        stopped.b.put("guest", "u-1", there);
    }
    let reason = "somebody stumbled".to_owned();
    left_behind(
        &stopped,
        &[
            source,
            SourceRecord::Suspending,
            SourceRecord::Held { reason },
        ],
        &[destination, DestinationRecord::Received, last],
    );
    let pair = stopped.go();
    let job = only_job(&pair.left);
    until(&job, || job.status(0).is_held);
    (pair, job)
}

#[test]
fn nothing_is_handed_over_that_runs_here() {
    let (pair, job) = held(
        Presence::Running,
        DestinationRecord::Received,
        Presence::Paused,
    );
    let why = pair.left.decide(&job, false).unwrap_err().to_string();
    assert!(why.contains("runs on this host"), "{why}");
    assert_eq!(pair.b.presence("u-1"), Presence::Paused);
    // At the other end it is refused, too: the source decides.
    let there = only_job(&pair.right);
    let why = pair.right.decide(&there, true).unwrap_err().to_string();
    assert!(why.contains("running"), "{why}");
    pair.left.decide(&job, true).unwrap();
    ended(&job).unwrap_err();
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    until(&job, || pair.b.presence("u-1") == Presence::Absent);
}

#[test]
fn a_guest_that_runs_at_the_destination_does_not_run_here_too() {
    let (pair, job) = held(
        Presence::Paused,
        DestinationRecord::Running,
        Presence::Running,
    );
    let why = pair.left.decide(&job, true).unwrap_err().to_string();
    assert!(
        why.contains("it would run twice") || why.contains("It would run twice"),
        "{why}"
    );
    assert_eq!(pair.a.presence("u-1"), Presence::Paused);
    pair.left.decide(&job, false).unwrap();
    ended(&job).unwrap();
    assert_eq!(pair.a.presence("u-1"), Presence::Absent);
}

#[test]
fn a_guest_of_which_nothing_is_left_is_given_up() {
    let reason = "it may have run".to_owned();
    let (pair, job) = held(
        Presence::Absent,
        DestinationRecord::Lost { reason },
        Presence::Absent,
    );
    for run_here in [true, false] {
        pair.left.decide(&job, run_here).unwrap_err();
    }
    until(&job, || pair.left.discard(&job, false).is_ok());
    let why = ended(&job).unwrap_err();
    assert!(why.contains("gave the guest up"), "{why}");
    let there = only_job(&pair.right);
    ended(&there).unwrap_err();
}

#[test]
fn a_guest_that_is_whole_at_the_destination_is_not_given_up() {
    let (pair, job) = held(
        Presence::Absent,
        DestinationRecord::Received,
        Presence::Paused,
    );
    let why = pair.left.discard(&job, true).unwrap_err().to_string();
    assert!(
        why.contains("--run there") || why.contains("try again"),
        "{why}"
    );
    until(&job, || pair.left.decide(&job, false).is_ok());
    ended(&job).unwrap();
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
}

#[test]
fn what_comes_from_a_source_that_hangs_is_ended_by_an_operator() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.a.hold_live(true);
    let options = unmoved::job::JobOptions::default();
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    until(&job, || pair.b.presence("u-1") == Presence::Partial);
    let there = only_job(&pair.right);
    pair.right.discard(&there, false).unwrap();
    assert_eq!(pair.b.presence("u-1"), Presence::Absent);
    pair.a.hold_live(false);
    let why = ended(&job).unwrap_err();
    assert!(why.contains("operator"), "{why}");
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
}
