//! A copy that is to be compared with the guest before it is handed over.

use unmoved::job::{JobOptions, Presence};

use crate::daemons::Pair;
use crate::ended;

fn verified() -> JobOptions {
    JobOptions {
        verify: Some(true),
        ..JobOptions::default()
    }
}

#[test]
fn a_copy_that_is_the_guest_is_handed_over() {
    for parallel in [1, 3] {
        let pair = Pair::start();
        let memory = pair.a.add("guest", "u-1");
        let options = JobOptions {
            parallel,
            ..verified()
        };
        let job = pair.left.migrate("test", "guest", "b", options).unwrap();
        ended(&job).unwrap();
        assert_eq!(pair.b.memory("u-1"), memory);
        assert_eq!(pair.b.presence("u-1"), Presence::Running);
        assert!(pair.b.was_compared("u-1"));
        let told = job.status(0).events;
        assert!(
            told.iter().any(|event| event.message.contains("verifying")),
            "{told:?}"
        );
    }
}

#[test]
fn a_guest_whose_copy_differs_goes_on_at_its_source() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.b.garble(1, Some(0x57));
    let options = verified();
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    let why = ended(&job).unwrap_err();
    assert!(why.contains("1 of 2 MiB of memory differ"), "{why}");
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    assert_eq!(pair.b.presence("u-1"), Presence::Absent);
    // Nothing stays locked, and the next one is compared again.
    let job = pair.left.migrate("test", "guest", "b", verified()).unwrap();
    ended(&job).unwrap_err();
    pair.b.garble(1, None);
    let job = pair.left.migrate("test", "guest", "b", verified()).unwrap();
    ended(&job).unwrap();
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
}

#[test]
fn the_configuration_says_whether_copies_are_compared_and_the_order_what_else() {
    let pair = Pair::prepare().verifying().go();
    pair.a.add("guest", "u-1");
    pair.b.garble(299, Some(1));
    let options = JobOptions::default();
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    let why = ended(&job).unwrap_err();
    assert!(why.contains("differ"), "{why}");
    let options = JobOptions {
        verify: Some(false),
        ..JobOptions::default()
    };
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    ended(&job).unwrap();
    assert!(!pair.b.was_compared("u-1"));
}

#[test]
fn a_guest_that_would_stand_still_for_too_long_is_not_begun_with() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    // A bound that nothing keeps: to read 300 pages twice takes longer.
    let options = JobOptions {
        max_blackout_ms: Some(1),
        ..verified()
    };
    let check = pair.left.check("guest", "b", options.clone());
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    for why in [check.unwrap_err().to_string(), ended(&job).unwrap_err()] {
        assert!(why.contains("verifying would stop the guest"), "{why}");
    }
    let found = pair.left.check("guest", "b", verified()).unwrap();
    assert!(found.prediction.verifying_ms > 0.0);
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
}
