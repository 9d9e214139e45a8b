//! `cargo xtask lab cuts`: migrations by the agents, each cut at a random moment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Lab};
use unmoved_tests::cuts::{Cut, Cuts as Scene, Moment};

/// How often to cut what.
#[derive(Debug, Args)]
pub struct Cuts {
    /// How many migrations
    #[arg(long, value_name = "N", default_value_t = 30)]
    count: u32,
    /// Where the random numbers begin
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// States that last only a moment: as many cuts come after each of them as in all of the copying.
const STATES: [Option<&str>; 4] = [None, None, Some("suspending"), Some("handed over")];

impl Cuts {
    /// Do it.
    ///
    /// # Errors
    /// If a guest runs twice or is lost, or a job does not come to an end.
    pub fn run(self) -> Result<()> {
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        let mut config = Config::hosts(2);
        config.revivable = true;
        let mut random = Random(self.seed ^ 0x9e37_79b9_7f4a_7c15);
        let runs = Lab::run("cuts", &config, |lab| {
            let mut scene = Scene::begin(lab, &kernel)?;
            let mut runs = Vec::new();
            for number in 1..=self.count {
                let (cut, moment) = random.next_cut();
                println!("{number:3}  {cut}, {moment}");
                let run = scene.run(lab, cut, moment)?;
                let decided = if run.is_decided { ", decided" } else { "" };
                println!(
                    "     {:?}{decided}; settled in {:.1} s; source: {}; destination: {}",
                    run.end,
                    run.settled.as_secs_f64(),
                    run.said[0],
                    run.said[1]
                );
                runs.push(run);
            }
            Ok(runs)
        })?;
        let mut table: BTreeMap<String, u32> = BTreeMap::new();
        for run in &runs {
            let cut = match run.cut {
                Cut::Lan(_) => "LAN cut".to_owned(),
                cut => cut.to_string(),
            };
            let moment = run.moment.state.unwrap_or("copying");
            let row = format!("{cut:28}{moment:14}{:?}", run.end);
            *table.entry(row).or_default() += 1;
        }
        println!("{:28}{:14}the guest", "cut", "while");
        for (row, count) in &table {
            println!("{row:60}{count:3}");
        }
        println!(
            "{} migrations cut; no guest ran twice, none was lost",
            runs.len()
        );
        let all: Vec<_> = runs.iter().map(|run| run.to_json()).collect();
        crate::json::write(
            self.json.as_deref(),
            &json!({"seed": self.seed, "runs": all, "twice": 0, "lost": 0}),
        )
    }
}

/// The same row of numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn next_cut(&mut self) -> (Cut, Moment) {
        let cut = match self.below(5) {
            0 => Cut::SourceAgent,
            1 => Cut::DestinationAgent,
            2 => Cut::SourceHost,
            3 => Cut::DestinationHost,
            _ => Cut::Lan(u8::try_from(1 + self.below(20)).unwrap_or(1)),
        };
        let state = STATES[usize::try_from(self.below(STATES.len() as u64)).unwrap_or(0)];
        let most = if state.is_some() { 1500 } else { 20_000 };
        let later = Duration::from_millis(self.below(most));
        (cut, Moment { state, later })
    }
}
