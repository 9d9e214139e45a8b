//! A guest kernel that attacks the shim gets nothing out of it and does it no harm.

use unmoved_lab::{Config, Lab, System, programs};
use unmoved_tests::hostile::{self, Attack};
use unmoved_tests::within::Way;

#[test]
fn a_hostile_kernel_gets_nothing() {
    Lab::run("hostile", &Config::hosts(1), |lab| {
        let attack = Attack {
            seed: 1,
            count: 30_000,
            fixed: true,
        };
        let outcome = hostile::run(lab.host(0), System::Shim(programs::shim()?), attack)?;
        assert_eq!(outcome.own_fault, None);
        assert_eq!(outcome.wrong, [""; 0]);
        assert_eq!(outcome.made, attack.count);
        // A kernel that stopped attacking would be right about everything.
        assert!(outcome.answers.len() > 1000, "{}", outcome.answers.len());
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
