//! `cargo xtask lab hostile`: the hostile kernel for as long as one likes, or on real Xen as reference.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use unmoved_lab::{Config, Host, Kind, Lab, System, programs};
use unmoved_tests::answers::{self, Answers};
use unmoved_tests::hostile::{self, Attack};

/// What to attack, and how often.
#[derive(Debug, Args)]
pub struct Hostile {
    /// How many random hypercalls and privileged instructions
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    count: u64,
    /// Where the random numbers begin
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Make the fixed attacks on real Xen too, and show where its answers differ
    #[arg(long)]
    compare: bool,
    /// Have the shim give ring 3 page tables of its own (`unmoved.xpti=on`)
    #[arg(long)]
    split: bool,
    /// With every hypercall and arguments at the edge: show, as a table, where the shim answers
    /// otherwise than real Xen, and why
    #[arg(long, conflicts_with = "compare")]
    answers: bool,
    /// The host's machine: qemu (AMD), or Bochs with a processor: intel, intel-haswell, intel-icelake,
    /// intel-tigerlake, amd-bochs
    #[arg(long, value_name = "MACHINE", default_value = "qemu")]
    machine: Kind,
}

/// Random attacks in one life of the guest; a longer one shows less for a fault early on.
const LIFE: u64 = 1_000_000;
/// Lives that may end by the guest's own fault before that itself is a fault.
const OWN_FAULTS: usize = 50;

impl Hostile {
    /// Do it.
    ///
    /// # Errors
    /// If the lab fails, the shim does, or an attack gets something.
    pub fn run(self) -> Result<()> {
        Lab::run("hostile", &Config::on(self.machine), |lab| {
            if self.answers {
                answers(lab.host(0))
            } else if self.compare {
                compare(lab.host(0), self.split)
            } else {
                self.attack(lab.host(0))
            }
        })
    }

    fn attack(&self, host: &Host) -> Result<()> {
        let begun = Instant::now();
        let (mut made, mut seed, mut own_faults, mut wrong) = (0, self.seed, 0, Vec::new());
        while made < self.count {
            let attack = Attack {
                seed,
                count: LIFE.min(self.count - made),
                // They look at memory that only the host's first guest is sure to find clear.
                fixed: seed == self.seed,
                split: self.split,
            };
            let outcome = hostile::run(host, System::Shim(programs::shim()?), attack)?;
            made += outcome.made;
            println!(
                "seed {seed}: {}; {made} in all after {} s",
                outcome.figures,
                begun.elapsed().as_secs()
            );
            if let Some(fault) = outcome.own_fault {
                println!("  its own fault: {fault}");
                own_faults += 1;
            }
            outcome.wrong.iter().for_each(|line| println!("  {line}"));
            wrong.extend(outcome.wrong);
            ensure!(
                own_faults <= OWN_FAULTS,
                "{own_faults} guests killed themselves: too few attacks are made"
            );
            seed += 1;
        }
        println!(
            "{made} attacks in {} s, {} wrong; {own_faults} guests ended by their own fault",
            begun.elapsed().as_secs(),
            wrong.len()
        );
        ensure!(wrong.is_empty(), "{} answers were wrong", wrong.len());
        Ok(())
    }
}

/// The fixed attacks on the shim and directly on Xen, side by side.
fn compare(host: &Host, split: bool) -> Result<()> {
    let attack = Attack {
        seed: 1,
        count: 0,
        fixed: true,
        split,
    };
    let ours = hostile::run(host, System::Shim(programs::shim()?), attack)?;
    let native = Attack {
        split: false,
        ..attack
    };
    let native = hostile::run(host, System::Native, native)?;
    let native: BTreeMap<_, _> = native.answers.into_iter().collect();
    let (mut same, mut differ) = (0, 0);
    for (name, answer) in ours.answers {
        match native.get(&name) {
            Some(other) if *other == answer => same += 1,
            Some(other) => {
                println!("{name}: Xen {other}, shim {answer}");
                differ += 1;
            }
            None => {}
        }
    }
    println!("{same} answers are the same, {differ} differ");
    Ok(())
}

/// All hypercalls with arguments at the edge, on the shim and directly on Xen.
fn answers(host: &Host) -> Result<()> {
    let xen = Answers::ask(host, System::Native)?;
    let ours = Answers::ask(host, System::Shim(programs::shim()?))?;
    let differences = ours.differences(&xen);
    print!("{}", answers::table(&differences));
    let unexplained = differences
        .iter()
        .filter(|found| found.reason.is_none())
        .count();
    let unused = answers::unused_reasons(&differences);
    println!(
        "{} answers, {} differ, {unexplained} of them without a reason; reasons without need: {unused:?}",
        xen.len(),
        differences.len()
    );
    ensure!(
        unexplained == 0 && unused.is_empty(),
        "the table is not true"
    );
    Ok(())
}
