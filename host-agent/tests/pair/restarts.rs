//! What daemons that were killed have left, and others take up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use unmoved::daemon::{Daemon, Job};
use unmoved::job::{JobOptions, Presence};
use unmoved::journal::Journal;
use unmoved::session::{DestinationRecord, Request, SessionId, SourceRecord, Token};

use crate::attacked::LONG;
use crate::daemons::{Pair, Stopped};
use crate::fake::{Fake, Handle};
use crate::{ended, until};

pub const SESSION: SessionId = SessionId::new([5; 16]);

/// Records as a daemon that was killed left them.
pub fn left_behind(pair: &Stopped, source: &[SourceRecord], destination: &[DestinationRecord]) {
    let session = SESSION;
    let mut journal = Journal::new(&pair.folder.path().join("a").join("source"), session);
    for record in source {
        journal.append(record).unwrap();
    }
    let mut journal = Journal::new(&pair.folder.path().join("b").join("destination"), session);
    for record in destination {
        journal.append(record).unwrap();
    }
}

pub fn begun(host: &Arc<Fake>) -> (SourceRecord, DestinationRecord) {
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

pub fn only_job(daemon: &Arc<Daemon>) -> Arc<Job> {
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
fn a_second_daemon_is_refused_before_it_touches_what_the_first_does() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.a.hold_live(true);
    let options = JobOptions::default();
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    until(&job, || pair.b.presence("u-1") == Presence::Partial);
    let config = pair.right.config().clone();
    let folder = config.state.display().to_string();
    let second = Daemon::new(config, Handle::new(&pair.b));
    let why = second.err().unwrap().to_string();
    assert!(why.contains(&folder), "{why}");
    assert_eq!(pair.b.presence("u-1"), Presence::Partial);
    pair.a.hold_live(false);
    ended(&job).unwrap();
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
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
    let begun = Instant::now();
    while pair.a.is_watched("u-running") {
        assert!(begun.elapsed() < LONG, "it is still watched");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(pair.a.is_watched("u-suspended"));
    assert_eq!(pair.a.presence("u-suspended"), Presence::Paused);
}

fn aborting(records: Vec<SourceRecord>, last: Presence) -> Stopped {
    let stopped = Pair::prepare();
    stopped.a.add("guest", "u-1");
    let (source, destination) = begun(&stopped.a);
    stopped.a.set("u-1", last);
    stopped.b.put("guest", "u-1", Presence::Paused);
    let records = [vec![source, SourceRecord::Suspending], records].concat();
    left_behind(
        &stopped,
        &records,
        &[destination, DestinationRecord::Received],
    );
    stopped
}

fn journaled(stopped: &Stopped) -> Vec<SourceRecord> {
    let folder = stopped.folder.path().join("a").join("source");
    Journal::open(&folder, SESSION).map_or_else(|_| Vec::new(), |(_, records)| records)
}

#[test]
fn an_aborted_guest_is_free_though_the_destination_is_dead() {
    let reason = "somebody stumbled".to_owned();
    let stopped = aborting(vec![SourceRecord::Aborting { reason }], Presence::Paused);
    let left = stopped.go_left();
    let job = only_job(&left);
    let why = ended(&job).unwrap_err();
    assert!(why.contains("somebody stumbled"), "{why}");
    assert_eq!(stopped.a.presence("u-1"), Presence::Running);
    assert!(matches!(
        journaled(&stopped).last(),
        Some(SourceRecord::Resumed { .. })
    ));
    // The guest is nobody's: a job may have it, and fails for want of a destination only.
    let options = JobOptions::default();
    let again = left.migrate("test", "guest", "b", options).unwrap();
    let why = ended(&again).unwrap_err();
    assert!(why.contains("cannot connect"), "{why}");
    // And when the destination is back, it is told.
    let _right = stopped.go_right();
    until(&job, || stopped.b.presence("u-1") == Presence::Absent);
    until(&job, || journaled(&stopped).is_empty());
    assert_eq!(stopped.a.presence("u-1"), Presence::Running);
}

#[test]
fn a_guest_that_was_let_go_is_not_touched_after_a_restart() {
    // Another job has suspended it meanwhile, and may be about to hand it over.
    let reason = "somebody stumbled".to_owned();
    let record = SourceRecord::Resumed { reason };
    let stopped = aborting(vec![record], Presence::Paused);
    let left = stopped.go_left();
    let job = only_job(&left);
    assert!(job.result().unwrap().is_err());
    assert!(!job.control.abort() || job.status(0).is_over);
    let _right = stopped.go_right();
    until(&job, || journaled(&stopped).is_empty());
    assert_eq!(stopped.a.presence("u-1"), Presence::Paused);
    assert_eq!(stopped.b.presence("u-1"), Presence::Absent);
}

#[test]
fn a_job_that_was_done_claims_nothing_after_a_restart() {
    let stopped = Pair::prepare();
    stopped.a.add("guest", "u-1");
    let (source, destination) = begun(&stopped.a);
    let records = [
        source,
        SourceRecord::Suspending,
        SourceRecord::HandedOver,
        SourceRecord::Released,
        SourceRecord::Done,
    ];
    left_behind(
        &stopped,
        &records,
        &[destination, DestinationRecord::Running],
    );
    // It has come back by another way.
    let left = stopped.go_left();
    assert_eq!(only_job(&left).result(), Some(Ok(())));
    let options = JobOptions::default();
    let again = left.migrate("test", "guest", "b", options).unwrap();
    ended(&again).unwrap_err();
    assert_eq!(stopped.a.presence("u-1"), Presence::Running);
}

/// A whole copy at the destination, whose daemon runs; the source's does not.
pub fn received(last: DestinationRecord, presence: Presence) -> (Stopped, Arc<Daemon>, Arc<Job>) {
    let stopped = Pair::prepare();
    stopped.a.add("guest", "u-1");
    let (source, destination) = begun(&stopped.a);
    stopped.a.set("u-1", Presence::Paused);
    if presence != Presence::Absent {
        stopped.b.put("guest", "u-1", presence);
    }
    left_behind(
        &stopped,
        &[source, SourceRecord::Suspending, SourceRecord::HandedOver],
        &[destination, DestinationRecord::Received, last],
    );
    let right = stopped.go_right();
    let job = only_job(&right);
    // It is known at once, and what there is of it is found behind our back.
    until(&job, || job.status(0).waiting.is_some());
    assert!(job.result().is_none());
    (stopped, right, job)
}

#[test]
fn an_operator_lets_a_whole_copy_run_whose_source_is_gone() {
    let (stopped, right, job) = received(DestinationRecord::Received, Presence::Paused);
    let waits = || job.status(0).waiting.unwrap_or_default();
    until(&job, || waits().contains("unmoved recover"));
    right.decide(&job, true).unwrap();
    ended(&job).unwrap();
    assert_eq!(stopped.b.presence("u-1"), Presence::Running);
    right.decide(&job, true).unwrap_err();
    // The source comes back after all, and is told that it was taken over.
    let left = stopped.go_left();
    ended(&only_job(&left)).unwrap();
    assert_eq!(stopped.a.presence("u-1"), Presence::Absent);
    assert_eq!(stopped.b.presence("u-1"), Presence::Running);
}

#[test]
fn an_operator_forgets_a_whole_copy_and_the_source_runs_its_own() {
    let (stopped, right, job) = received(DestinationRecord::Received, Presence::Paused);
    // For all that can be seen it is the last.
    let why = right.decide(&job, false).unwrap_err().to_string();
    assert!(why.contains("last complete copy"), "{why}");
    assert_eq!(stopped.b.presence("u-1"), Presence::Paused);
    right.discard(&job, true).unwrap();
    ended(&job).unwrap_err();
    assert_eq!(stopped.b.presence("u-1"), Presence::Absent);
    let left = stopped.go_left();
    ended(&only_job(&left)).unwrap_err();
    assert_eq!(stopped.a.presence("u-1"), Presence::Running);
}

#[test]
fn a_copy_that_was_lost_is_forgotten_and_the_source_is_told_that_it_may_have_run() {
    let reason = "it may have run".to_owned();
    let (stopped, right, job) = received(DestinationRecord::Lost { reason }, Presence::Absent);
    let why = right.decide(&job, true).unwrap_err().to_string();
    assert!(why.contains("only be forgotten"), "{why}");
    right.decide(&job, false).unwrap();
    ended(&job).unwrap_err();
    let left = stopped.go_left();
    let job = only_job(&left);
    until(&job, || job.status(0).is_held);
    assert_eq!(stopped.a.presence("u-1"), Presence::Paused);
}

#[test]
fn a_whole_copy_is_kept_that_was_not_written_down_as_such() {
    // Both hosts' agents died in the moment when it was whole, and the source's domain with its host.
    let stopped = Pair::prepare();
    stopped.a.add("guest", "u-1");
    let (source, destination) = begun(&stopped.a);
    stopped.a.remove("u-1");
    stopped.b.put("guest", "u-1", Presence::Paused);
    left_behind(
        &stopped,
        &[source, SourceRecord::Suspending],
        &[destination],
    );
    let pair = stopped.go();
    let job = only_job(&pair.left);
    until(&job, || job.status(0).is_held);
    assert_eq!(pair.b.presence("u-1"), Presence::Paused);
    until(&job, || pair.left.decide(&job, false).is_ok());
    ended(&job).unwrap();
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
}

/// One toolstack that does not answer keeps neither guests standing nor other agents waiting.
#[test]
fn what_cannot_be_found_out_yet_keeps_nobody_waiting() {
    let stopped = Pair::prepare();
    stopped.a.add("guest", "u-1");
    let (source, destination) = begun(&stopped.a);
    stopped.a.set("u-1", Presence::Paused);
    stopped.b.put("guest", "u-1", Presence::Paused);
    left_behind(
        &stopped,
        &[source, SourceRecord::Suspending, SourceRecord::HandedOver],
        &[destination, DestinationRecord::Received],
    );
    // Another guest stands still at the host that does not find out about the first.
    stopped.b.add("other", "u-2");
    let mut other = stopped.b.source("other").unwrap();
    let control = unmoved::job::Control::new(JobOptions::default());
    let needs = other.prepare(control.options(), &control).unwrap().needs;
    stopped.b.set("u-2", Presence::Paused);
    let token = Token::new([8; 32]);
    let request = Box::new(Request {
        needs,
        leave_paused: false,
        parallel: 1,
        seal: token.seal(),
    });
    let peer = "a".to_owned();
    let folder = stopped.folder.path().join("b").join("source");
    std::fs::create_dir_all(&folder).unwrap();
    let mut journal = Journal::new(&folder, SessionId::new([6; 16]));
    for record in [
        SourceRecord::Begun {
            request,
            token,
            peer,
        },
        SourceRecord::Suspending,
    ] {
        journal.append(&record).unwrap();
    }
    stopped.b.hide(true);
    let pair = stopped.go();
    let job = only_job(&pair.left);
    until(&job, || pair.b.presence("u-2") == Presence::Running);
    // It is not unknown: that would have the source ask its operator.
    let waits = || job.status(0).waiting.unwrap_or_default();
    until(&job, || waits().contains("still looking"));
    assert!(!job.status(0).is_held);
    pair.b.hide(false);
    ended(&job).unwrap();
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
}

/// Before it is known how its domain stands.
#[test]
fn what_a_dead_daemon_reserved_no_restore_can_have_after_a_restart() {
    let stopped = Pair::prepare();
    stopped.a.add("guest", "u-1");
    let (_, destination) = begun(&stopped.a);
    left_behind(&stopped, &[], &[destination]);
    stopped.b.shrink(1);
    stopped.b.hide(true);
    let right = stopped.go_right();
    let [same, other] = ["same", "other"].map(|name| stopped.folder.path().join(name));
    let saved = stopped.go_left().save("test", "guest", &same, true);
    ended(&saved.unwrap()).unwrap();
    let bytes = std::fs::read(&same).unwrap();
    let text: String = bytes.into_iter().map(char::from).collect();
    let text = text
        .replace(r#""guest""#, r#""other""#)
        .replace("u-1", "u-2");
    let bytes: Vec<_> = text.chars().map(|byte| byte as u8).collect();
    std::fs::write(&other, bytes).unwrap();
    let restore = |file| ended(&right.restore("test", file, false).unwrap()).unwrap_err();
    let why = restore(&same);
    assert!(why.contains("the name guest is reserved"), "{why}");
    let why = restore(&other);
    assert!(why.contains("not enough memory"), "{why}");
    // When it is known that there is no domain, the session is over.
    stopped.b.hide(false);
    ended(&only_job(&right)).unwrap_err();
    let why = restore(&other);
    assert!(why.contains("cannot be read"), "{why}");
}
