//! A guest kernel that attacks the shim gets nothing out of it and does it no harm.

use unmoved_lab::{Config, Lab, System, programs};
use unmoved_tests::answers::{self, Answers};
use unmoved_tests::hostile::{self, Attack};
use unmoved_tests::within::Way;

#[test]
fn a_hostile_kernel_gets_nothing() {
    Lab::run("hostile", &Config::hosts(1), |lab| {
        let attack = Attack {
            seed: 1,
            count: 30_000,
            fixed: true,
            split: false,
        };
        let shim = System::Shim(programs::shim()?);
        let outcome = hostile::run(lab.host(0), shim.clone(), attack)?;
        assert_eq!(outcome.own_fault, None);
        assert_eq!(outcome.wrong, [""; 0]);
        assert_eq!(outcome.made, attack.count);
        // A kernel that stopped attacking would be right about everything.
        assert!(outcome.answers.len() > 1000, "{}", outcome.answers.len());
        // The same where ring 3 has page tables of its own, which this processor does not need.
        let split = Attack {
            seed: 2,
            count: 10_000,
            fixed: false,
            split: true,
        };
        let outcome = hostile::run(lab.host(0), shim, split)?;
        assert_eq!((outcome.own_fault, outcome.wrong), (None, Vec::new()));
        assert_eq!(outcome.made, split.count);
        Ok(())
    })
    .unwrap();
}

#[test]
fn hypercalls_answer_as_xen_does_but_for_known_reasons() {
    Lab::run("answers", &Config::hosts(1), |lab| {
        let xen = Answers::ask(lab.host(0), System::Native)?;
        let shim = Answers::ask(lab.host(0), System::Shim(programs::shim()?))?;
        let differences = shim.differences(&xen);
        let unexplained: Vec<_> = differences
            .iter()
            .filter(|found| found.reason.is_none())
            .collect();
        assert!(unexplained.is_empty(), "{unexplained:#?}");
        assert_eq!(answers::unused_reasons(&differences), [""; 0]);
        let documented = include_str!("../../docs/hypercalls.md");
        assert!(
            documented.ends_with(&answers::table(&differences)),
            "docs/hypercalls.md is not what `cargo xtask lab hostile --answers` tells"
        );
        Ok(())
    })
    .unwrap();
}

/// Lives that may end by the kernel's own fault before one of them has seen all moves.
const LIVES: u64 = 8;

#[test]
fn a_hostile_kernel_is_moved_while_it_attacks() {
    Lab::run("hostile-moved", &Config::hosts(1), |lab| {
        let shim = System::Shim(programs::shim()?);
        for seed in 100..100 + LIVES {
            let attack = Attack {
                seed,
                count: 100_000_000,
                fixed: false,
                split: seed % 2 == 0,
            };
            let ways = [Way::SaveRestore, Way::Migrate];
            let outcome = hostile::run_moved(lab.host(0), shim.clone(), attack, &ways)?;
            assert_eq!(outcome.wrong, [""; 0], "seed {seed}");
            if let Some(fault) = outcome.own_fault {
                println!("seed {seed}: its own fault: {fault}");
                continue;
            }
            assert!(
                outcome.made > 0,
                "seed {seed}: no attack after the last move"
            );
            return Ok(());
        }
        anyhow::bail!("{LIVES} guests killed themselves before the last move")
    })
    .unwrap();
}
