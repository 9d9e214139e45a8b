//! A guest kernel that attacks the shim gets nothing out of it and does it no harm.

use std::time::Duration;

use unmoved_lab::{Config, GuestPlan, Lab, System, programs};
use unmoved_tests::answers::{self, Answers};
use unmoved_tests::ended;
use unmoved_tests::hostile::{self, Attack};
use unmoved_tests::within::Way;

/// Longest time for a guest of this size to boot, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Lives of random attacks: so many are to come to their end, of so many at most.  Among a million ways to do
/// harm the kernel now and then finds one to kill itself, which is no fault of the shim's.
const WHOLE: usize = 3;
const MOST: u64 = 10;

#[test]
fn a_hostile_kernel_gets_nothing() {
    Lab::run("hostile", &Config::hosts(1), |lab| {
        let shim = System::Shim(programs::shim()?);
        let fixed = Attack {
            seed: 1,
            count: 0,
            fixed: true,
            split: false,
        };
        let outcome = hostile::run(lab.host(0), shim.clone(), fixed)?;
        assert_eq!(outcome.own_fault, None);
        assert_eq!(outcome.wrong, [""; 0]);
        // A kernel that stopped attacking would be right about everything.
        assert!(outcome.answers.len() > 1000, "{}", outcome.answers.len());
        // The same where ring 3 has page tables of its own, which this processor does not need.
        for split in [false, true] {
            let mut whole = 0;
            for seed in 1..=MOST {
                let attack = Attack {
                    seed,
                    count: 8_000,
                    fixed: false,
                    split,
                };
                let outcome = hostile::run(lab.host(0), shim.clone(), attack)?;
                assert_eq!(outcome.wrong, [""; 0], "seed {seed}");
                match outcome.own_fault {
                    Some(fault) => println!("seed {seed}: its own fault: {fault}"),
                    None => {
                        assert_eq!(outcome.made, attack.count, "seed {seed}");
                        whole += 1;
                    }
                }
                if whole == WHOLE {
                    break;
                }
            }
            assert_eq!(whole, WHOLE, "lives that came to their end");
        }
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

/// A guest that died with its breakpoints armed took the emulated host with it, within the next two guests.
#[test]
fn kernels_that_die_with_their_breakpoints_armed_leave_the_host_well() {
    Lab::run("armed", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        for _ in 0..4 {
            let shim = System::Shim(programs::shim()?);
            let mut plan = GuestPlan::new("armed", shim, programs::hostile()?);
            plan.arguments = "hostile.armed=1".to_owned();
            let guest = plan.create(host)?;
            guest.wait_for(r"dies armed, Value\(0\)", LIMIT)?;
            ended::crashed(host, "armed")?;
        }
        let attack = Attack {
            seed: 3,
            count: 1000,
            fixed: false,
            split: false,
        };
        let shim = System::Shim(programs::shim()?);
        let outcome = hostile::run(host, shim, attack)?;
        assert_eq!((outcome.own_fault, outcome.wrong), (None, Vec::new()));
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
