//! `cargo xtask lab cuts`: migrations by the agents, each cut at a random moment.
//!
//! Kinds of cuts and phases of a migration are dealt like cards, so that thirty runs have each kind in
//! each phase twice; the moment within the phase, and how long it takes until all is in order again, are
//! random.  The same seed gives the same row, of which a piece can be run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Lab};
use unmoved_tests::cuts::{Cut, Cuts as Scene, Moment, Run};

/// How often to cut what.
#[derive(Debug, Args)]
pub struct Cuts {
    /// How many migrations
    #[arg(long, value_name = "N", default_value_t = 30)]
    count: usize,
    /// How many of the row to leave out first
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
    /// Where the random numbers begin
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The phases: after the order comes everything up to the suspend.
const STATES: [Option<&str>; 3] = [None, Some("suspending"), Some("handed over")];

impl Cuts {
    /// Do it.
    ///
    /// # Errors
    /// If a guest runs twice or is lost, or a job does not come to an end.
    pub fn run(self) -> Result<()> {
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        let mut config = Config::hosts(2);
        config.revivable = true;
        let row = Row::new(self.seed).skip(self.skip).take(self.count);
        let mut runs = Vec::new();
        let result = Lab::run("cuts", &config, |lab| {
            let mut scene = Scene::begin(lab, &kernel)?;
            for (number, (cut, moment)) in row.enumerate() {
                println!("{:3}  {cut}, {moment}", self.skip + number + 1);
                let run = scene.run(lab, cut, moment)?;
                println!(
                    "     {}; settled in {:.1} s; source: {}; destination: {}",
                    run.column(),
                    run.settled.as_secs_f64(),
                    run.said[0],
                    run.said[1]
                );
                runs.push(run);
            }
            Ok(())
        });
        tell(&runs);
        let all: Vec<_> = runs.iter().map(Run::to_json).collect();
        let why = result.as_ref().err().map(|error| format!("{error:#}"));
        crate::json::write(
            self.json.as_deref(),
            &json!({"seed": self.seed, "skip": self.skip, "runs": all, "failure": why}),
        )?;
        result
    }
}

fn tell(runs: &[Run]) {
    let mut table: BTreeMap<(Cut, &str), BTreeMap<&str, u32>> = BTreeMap::new();
    for run in runs {
        let row = table.entry(run.row()).or_default();
        *row.entry(run.column()).or_default() += 1;
    }
    println!("{:28}{:14}the guest", "cut", "after");
    for ((cut, state), columns) in &table {
        let ends = columns.iter().map(|(end, count)| format!("{count} {end}"));
        println!("{cut:28}{state:14}{}", ends.collect::<Vec<_>>().join(", "));
    }
    println!(
        "{} migrations cut: no guest ran twice, none was lost, each job came to its end",
        runs.len()
    );
}

/// The same row of cuts for the same seed.
struct Row {
    random: Random,
    cards: Vec<(Cut, Option<&'static str>)>,
}

impl Row {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed ^ 0x9e37_79b9_7f4a_7c15),
            cards: Vec::new(),
        }
    }
}

impl Iterator for Row {
    type Item = (Cut, Moment);

    fn next(&mut self) -> Option<Self::Item> {
        if self.cards.is_empty() {
            let deck = Cut::ALL
                .into_iter()
                .flat_map(|cut| STATES.map(|state| (cut, state)));
            self.cards.extend(deck);
        }
        let random = &mut self.random;
        let card = random.below(self.cards.len() as u64);
        let (cut, state) = self.cards.swap_remove(usize::try_from(card).ok()?);
        let later = match state {
            None => Duration::from_millis(random.below(15_000)),
            // The states follow one another ever faster: half of the moments are in the first quarter.
            Some(_) => Duration::from_micros(random.below(1_000) * random.below(1_500)),
        };
        // Connections that are silent are given up after half a minute: both sides of that.
        let most = if cut == Cut::Lan { 60 } else { 6 };
        let down = Duration::from_millis(random.below(most * 1000));
        let moment = Moment { state, later, down };
        Some((cut, moment))
    }
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

#[cfg(test)]
mod tests {
    use super::Row;

    #[test]
    fn thirty_cuts_have_each_kind_in_each_phase_twice_and_a_seed_repeats_them() {
        let row: Vec<_> = Row::new(7).take(30).collect();
        for (cut, moment) in &row {
            let same =
                |other: &&(_, super::Moment)| other.0 == *cut && other.1.state == moment.state;
            assert_eq!(row.iter().filter(same).count(), 2);
        }
        assert_eq!(Row::new(7).skip(10).take(20).collect::<Vec<_>>(), row[10..]);
    }
}
