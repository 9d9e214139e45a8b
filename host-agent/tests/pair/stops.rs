//! Daemons that are stopped in order while guests move: none is left standing.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use unmoved::daemon::{Daemon, Job};
use unmoved::job::{JobOptions, Phase, Presence};

use crate::attacked::LONG;
use crate::daemons::Pair;
use crate::{ended, until};

fn begin(pair: &Pair) -> Arc<Job> {
    pair.a.add("guest", "u-1");
    let options = JobOptions::default();
    pair.left.migrate("test", "guest", "b", options).unwrap()
}

/// Stops it in a thread of its own.
fn stopping(daemon: &Arc<Daemon>) -> thread::JoinHandle<Duration> {
    let daemon = daemon.clone();
    thread::spawn(move || {
        let begun = Instant::now();
        daemon.stop(LONG);
        begun.elapsed()
    })
}

fn stop(daemon: &Arc<Daemon>) {
    let took = stopping(daemon).join().unwrap();
    assert!(took < LONG / 2, "{took:?}");
}

/// It stays at `a`, runs, and both ends say so.
fn stays(pair: &Pair, job: &Job, why: &str) {
    let said = ended(job).unwrap_err();
    assert!(said.contains(why), "{said}");
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    until(job, || pair.b.presence("u-1") == Presence::Absent);
    let there = pair.right.jobs();
    until(job, || {
        there.iter().all(|job| matches!(job.result(), Some(Err(_))))
    });
}

fn moves(pair: &Pair, job: &Job) {
    ended(job).unwrap();
    assert_eq!(pair.a.presence("u-1"), Presence::Absent);
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
}

#[test]
fn a_source_that_is_stopped_while_it_copies_keeps_its_guest() {
    let pair = Pair::start();
    pair.a.hold_live(true);
    let job = begin(&pair);
    until(&job, || pair.b.presence("u-1") == Presence::Partial);
    stop(&pair.left);
    // Not only soon: when it comes back.
    assert!(job.result().is_some());
    stays(&pair, &job, "aborted");
}

#[test]
fn a_source_that_is_stopped_while_its_guest_stands_still_lets_it_go_on() {
    let pair = Pair::start();
    pair.a.hold_rest(true);
    let job = begin(&pair);
    until(&job, || pair.a.presence("u-1") == Presence::Paused);
    stop(&pair.left);
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    stays(&pair, &job, "aborted");
}

#[test]
fn a_source_that_is_stopped_while_the_destination_builds_lets_its_guest_go_on() {
    let pair = Pair::start();
    pair.b.hold_build(true);
    let job = begin(&pair);
    until(&job, || job.status(0).phase == Phase::Building);
    pair.a.stumble(2);
    let stopping = stopping(&pair.left);
    until(&job, || pair.a.presence("u-1") == Presence::Running);
    pair.b.hold_build(false);
    stopping.join().unwrap();
    stays(&pair, &job, "aborted");
}

#[test]
fn a_source_that_is_stopped_after_the_hand_over_waits_for_its_end() {
    let pair = Pair::start();
    pair.b.hold_unpause(true);
    let job = begin(&pair);
    until(&job, || job.status(0).phase == Phase::HandedOver);
    let stopping = stopping(&pair.left);
    thread::sleep(Duration::from_millis(300));
    assert!(!stopping.is_finished(), "the guest runs nowhere yet");
    pair.b.hold_unpause(false);
    stopping.join().unwrap();
    moves(&pair, &job);
}

#[test]
fn an_orderly_end_has_a_bound() {
    let pair = Pair::start();
    pair.b.hold_unpause(true);
    let job = begin(&pair);
    until(&job, || job.status(0).phase == Phase::HandedOver);
    let begun = Instant::now();
    pair.left.stop(Duration::from_millis(500));
    assert!(begun.elapsed() < LONG);
    assert!(job.result().is_none());
    pair.b.hold_unpause(false);
    moves(&pair, &job);
}

#[test]
fn a_guest_stays_where_it_is_when_the_agent_it_goes_to_is_stopped() {
    let pair = Pair::start();
    pair.a.hold_live(true);
    let job = begin(&pair);
    until(&job, || job.status(0).statistics.wire_bytes > 0);
    stop(&pair.right);
    assert_eq!(pair.b.presence("u-1"), Presence::Absent);
    pair.a.hold_live(false);
    stays(&pair, &job, "is stopping");
}

#[test]
fn a_guest_that_stands_still_goes_on_when_the_agent_it_goes_to_is_stopped() {
    let pair = Pair::start();
    pair.a.hold_rest(true);
    let job = begin(&pair);
    until(&job, || pair.a.presence("u-1") == Presence::Paused);
    stop(&pair.right);
    assert_eq!(pair.b.presence("u-1"), Presence::Absent);
    pair.a.hold_rest(false);
    stays(&pair, &job, "is stopping");
}

#[test]
fn a_guest_that_is_being_built_goes_on_when_the_agent_it_goes_to_is_stopped() {
    let pair = Pair::start();
    pair.b.hold_build(true);
    let job = begin(&pair);
    until(&job, || job.status(0).phase == Phase::Building);
    stop(&pair.right);
    stays(&pair, &job, "is stopping");
}

/// The toolstack was too far to give up: what it has built is not taken over all the same.
#[test]
fn what_was_built_though_it_was_given_up_is_not_taken_over() {
    let pair = Pair::start();
    pair.b.hold_build(true);
    pair.b.be_deaf();
    let job = begin(&pair);
    until(&job, || job.status(0).phase == Phase::Building);
    let stopping = stopping(&pair.right);
    thread::sleep(Duration::from_millis(100));
    pair.b.hold_build(false);
    stopping.join().unwrap();
    stays(&pair, &job, "is stopping");
}

#[test]
fn a_guest_that_is_taken_over_runs_before_the_agent_it_goes_to_ends() {
    let pair = Pair::start();
    pair.b.hold_unpause(true);
    let job = begin(&pair);
    until(&job, || job.status(0).phase == Phase::HandedOver);
    let stopping = stopping(&pair.right);
    thread::sleep(Duration::from_millis(100));
    assert!(!stopping.is_finished());
    pair.b.hold_unpause(false);
    stopping.join().unwrap();
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
    moves(&pair, &job);
}

#[test]
fn nothing_is_begun_by_an_agent_that_is_being_stopped() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.b.add("other", "u-2");
    stop(&pair.left);
    let sentence = "the agent of a is stopping: it starts nothing new";
    let file = pair.folder.path().join("file");
    let options = JobOptions::default;
    for error in [
        pair.left.migrate("test", "guest", "b", options()).map(drop),
        pair.left.check("guest", "b", options()).map(drop),
        pair.left.save("test", "guest", &file, true).map(drop),
        pair.left.restore("test", &file, false).map(drop),
    ] {
        assert_eq!(error.unwrap_err().to_string(), sentence);
    }
    // Nor does it take anything in.
    let job = pair.right.migrate("test", "other", "a", options()).unwrap();
    let why = ended(&job).unwrap_err();
    assert!(why.contains(sentence), "{why}");
    assert_eq!(pair.b.presence("u-2"), Presence::Running);
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
}

#[test]
fn a_save_that_is_stopped_is_undone() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.a.hold_rest(true);
    let file = pair.folder.path().join("file");
    let job = pair.left.save("test", "guest", &file, false).unwrap();
    until(&job, || pair.a.presence("u-1") == Presence::Paused);
    stop(&pair.left);
    assert!(job.result().unwrap().is_err());
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    assert!(!file.exists());
}
