//! Plays through every crash point of both ends, with every message lost, delayed or doubled.
//!
//! The rule under test is the project's third invariant: at every instant at most one copy of the guest
//! executes; when all is over exactly one does, or both stand paused with a named reason, whatever
//! crashed and whichever message was lost.  [`world`] holds a source, a destination and the way between
//! them, and knows what can go wrong; [`explore`] goes through all ways in which up to so many of these
//! things can happen in one migration.  Nothing is random and nothing depends on time.

mod damage;
mod effects;
mod explore;
mod moves;
mod operators;
mod outcome;
mod sample;
mod world;

use std::collections::BTreeMap;
use std::io::{self, Write};

use explore::{Script, explore};
use outcome::{Loss, Outcome};
use sample::sample;
use world::{Rules, World};

/// So many cases with three faults.
const SAMPLED: u64 = 200_000;

/// Runs all cases and prints how many there were and how they ended.
fn all(title: &str, rules: Rules) -> Result<BTreeMap<Outcome, u64>, String> {
    counted(title, rules, |case| explore(case))
}

/// As [`all`], of the cases that `play` plays.
fn counted(
    title: &str,
    rules: Rules,
    play: impl FnOnce(&mut dyn FnMut(&mut Script) -> Result<(), String>) -> Result<(), String>,
) -> Result<BTreeMap<Outcome, u64>, String> {
    let mut outcomes = BTreeMap::new();
    play(&mut |script| {
        let outcome = World::new(script, rules).run()?;
        *outcomes.entry(outcome).or_insert(0) += 1;
        Ok(())
    })?;
    let cases: u64 = outcomes.values().sum();
    let mut text = format!("simulation: {title}: {cases} cases, invariant 3 held in each\n");
    for (outcome, number) in &outcomes {
        text += &format!("  {number:>8}  {outcome}\n");
    }
    // Not through `println!`: the figures are to be seen when the test passes, too.
    io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .map_err(|error| error.to_string())?;
    Ok(outcomes)
}

#[test]
fn without_faults_the_guest_is_moved() {
    let outcomes = all("no fault", Rules::faults(0)).unwrap();
    assert_eq!(
        outcomes.into_iter().collect::<Vec<_>>(),
        [(Outcome::Moved, 1)]
    );
}

#[test]
fn one_copy_runs_whatever_crashes_and_whichever_message_is_lost() {
    let outcomes = all("any one fault", Rules::faults(1)).unwrap_or_else(|found| panic!("{found}"));
    assert!(outcomes.contains_key(&Outcome::Moved));
    assert!(outcomes.contains_key(&Outcome::Stayed));
    let outcomes =
        all("any two faults", Rules::faults(2)).unwrap_or_else(|found| panic!("{found}"));
    assert!(outcomes.values().sum::<u64>() > 10_000);
    assert!(outcomes.contains_key(&Outcome::Adopted));
}

#[test]
fn three_faults_are_sampled() {
    let play = |case: &mut dyn FnMut(&mut Script) -> Result<(), String>| sample(3, SAMPLED, case);
    let rules = Rules {
        damages: 1,
        ..Rules::faults(3)
    };
    let outcomes = counted("three faults and a damage by chance", rules, play)
        .unwrap_or_else(|found| panic!("{found}"));
    assert!(outcomes.contains_key(&Outcome::Held), "{outcomes:?}");
}

#[test]
fn one_crash_of_a_host_takes_only_what_was_nowhere_else() {
    let outcomes = all("any one fault", Rules::faults(1)).unwrap_or_else(|found| panic!("{found}"));
    // It ran on the host that crashed.  While it stands still with two whole copies, one crash takes no guest.
    assert!(outcomes.contains_key(&Outcome::Lost(Loss::SourcesHost)));
    assert!(!outcomes.contains_key(&Outcome::Lost(Loss::Toolstack)));
}

#[test]
fn agents_alone_never_leave_the_guest_standing() {
    // Hosts stay up, disks and toolstack work, and a paused domain does not need the agent that had it
    // built: then nobody has to be asked, however agents crash and whatever becomes of messages.
    let rules = Rules {
        with_host_crashes: false,
        with_failures: false,
        tool_dies: false,
        ..Rules::faults(2)
    };
    let outcomes = all("any two crashes of agents and faults of messages", rules)
        .unwrap_or_else(|found| panic!("{found}"));
    let ended: Vec<_> = outcomes.into_keys().collect();
    assert_eq!(
        ended,
        [Outcome::Moved, Outcome::Stayed, Outcome::MovedByAnother]
    );
}

#[test]
fn one_copy_runs_whatever_becomes_of_the_journals() {
    let rules = Rules {
        damages: 2,
        ..Rules::faults(1)
    };
    let outcomes = all("any one fault, and any damage of journals after it", rules)
        .unwrap_or_else(|found| panic!("{found}"));
    assert!(outcomes.contains_key(&Outcome::InDoubt));
}

#[test]
fn a_disk_that_forgets_is_found_out() {
    // The simulation can fail: without the fsync, the ends disagree sooner or later.
    let rules = Rules {
        disk_forgets: true,
        ..Rules::faults(2)
    };
    all("a disk that forgets", rules).unwrap_err();
}
