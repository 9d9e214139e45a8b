//! Any guest moves, at any moment, by every way that the stock toolstack has; one that can not be
//! moved goes on where it is, or waits where it arrived, and the reason can be read.

use std::time::Duration;

use anyhow::{Result, ensure};
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, GuestPlan, Host, Lab, System, programs};
use unmoved_tests::unnoticed;
use unmoved_tests::within::{MOMENT, Way, reported};

const BOOT: Duration = Duration::from_secs(300);

/// The unfriendly guest of the demo, with options of its shim.
fn plan(options: &str) -> Result<GuestPlan> {
    let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
    let mut plan = unnoticed::plan(&kernel)?;
    plan.lines.push(format!("pvshim_extra = \"{options}\""));
    Ok(plan)
}

fn moves(host: &Host, guest: &str) -> Result<u64> {
    Ok(reported(host, guest, "moves", MOMENT, |_| true)?.parse()?)
}

#[test]
fn every_way_of_the_toolstack_is_unnoticed() {
    Lab::run("ways", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        let mut guest = plan("")?.create(host)?;
        guest.ready(BOOT)?;
        guest.alive(MOMENT)?;
        let before = guest.order(host, "fingerprint hash", BOOT)?["sha256"].clone();
        for (way, expected) in [
            (Way::Checkpoint, 0),
            (Way::SaveRestore, 1),
            (Way::Migrate, 2),
            (Way::Checkpoint, 2),
        ] {
            guest = way.go(guest, host)?;
            let alive = guest.alive(MOMENT)?;
            ensure!(alive["clock_steps_back"] == 0, "{way:?}: {alive}");
            let seen = moves(host, &guest.name)?;
            ensure!(seen == expected, "{way:?}: {seen} moves, not {expected}");
        }
        let after = guest.order(host, "fingerprint hash", BOOT)?["sha256"].clone();
        ensure!(before == after, "fingerprint {before} became {after}");
        let disks = guest.order(host, "disk stop", BOOT)?;
        ensure!(disks["disks"][0]["errors"] == 0, "{disks}");
        Ok(())
    })
    .expect("it moves in every way");
}

#[test]
fn a_boot_loader_and_a_panicked_kernel_move_like_any_other() {
    Lab::run("odd", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        let loader = GuestKernel::Grub.get(&Tools::get()?)?.unpacked();
        let plan = GuestPlan::new("grub", System::Shim(programs::shim()?), loader);
        let mut guest = plan.create(host)?;
        guest.wait_for("grub> ?", BOOT)?;
        for (way, number) in [(Way::SaveRestore, 6), (Way::Migrate, 7)] {
            guest = way.go(guest, host)?;
            guest.type_line(
                host,
                &format!("expr_{number}=42; echo answer$expr_{number}"),
            )?;
            guest.wait_for("answer42", MOMENT)?;
        }
        host.ok(&["xl", "destroy", "grub"])?;

        let mut plan = self::plan("")?;
        // It stays where it panicked, for longer than anybody waits.
        plan.arguments += " panic=3600";
        let guest = plan.create(host)?;
        guest.ready(BOOT)?;
        guest.type_line(host, "panic")?;
        guest.wait_for("Rebooting in 3600 seconds", BOOT)?;
        for (way, expected) in [(Way::SaveRestore, 1), (Way::Migrate, 2)] {
            drop(way.go(unmoved_lab::Guest::attach(&plan.name, host)?, host)?);
            let seen = moves(host, &plan.name)?;
            ensure!(seen == expected, "{way:?}: {seen} moves, not {expected}");
        }
        Ok(())
    })
    .expect("they move");
}

/// Where a move is made to go wrong, what becomes of it, and what the host reads of that.
struct Cut {
    fault: &'static str,
    /// Whether the guest is in its old domain afterwards.
    stays: bool,
    /// Whether it runs.
    runs: bool,
    /// The node that names the reason, and a part of it.
    reason: Option<(&'static str, &'static str)>,
}

const CUTS: [Cut; 9] = [
    Cut {
        fault: "park:fail",
        stays: true,
        runs: true,
        reason: Some(("refusal", "park: ")),
    },
    Cut {
        fault: "drain:fail",
        stays: true,
        runs: true,
        reason: Some(("refusal", "drain: ")),
    },
    Cut {
        fault: "drain:stall",
        stays: true,
        runs: true,
        reason: Some(("refusal", "drain: ")),
    },
    Cut {
        fault: "suspend:fail",
        stays: true,
        runs: true,
        reason: Some(("refusal", "suspend: ")),
    },
    Cut {
        fault: "suspend:stall",
        stays: false,
        runs: true,
        reason: None,
    },
    Cut {
        fault: "reattach:stall",
        stays: false,
        runs: true,
        reason: None,
    },
    Cut {
        fault: "connect:stall",
        stays: false,
        runs: true,
        reason: None,
    },
    Cut {
        fault: "resume:stall",
        stays: false,
        runs: true,
        reason: None,
    },
    Cut {
        fault: "connect:fail",
        stays: false,
        runs: false,
        reason: Some(("waits-for", "a fault was asked for")),
    },
];

#[test]
fn every_phase_may_go_wrong() {
    Lab::run("cuts", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        println!("{:16} {:28} reason", "cut", "outcome");
        for cut in CUTS {
            let plan = plan(&format!("unmoved.fault={} unmoved.drain=2", cut.fault))?;
            host.sh("rm -f /var/log/xen/console/guest-web1*.log")?;
            let guest = plan.create(host)?;
            guest.ready(BOOT)?;
            guest.alive(MOMENT)?;
            let domid = host.ok(&["xl", "domid", "web1"])?;
            let moved = match cut.stays {
                // The toolstack waits for a minute; that it gave up is seen before that.
                true => {
                    let save = host.start(&["xl", "save", "web1", "/dev/vdb"])?;
                    let (key, _) = cut.reason.unwrap_or(("refusal", ""));
                    reported(host, "web1", key, MOMENT, |value| !value.is_empty())?;
                    save.signal(15)?;
                    save.wait(MOMENT)?;
                    guest
                }
                false => Way::SaveRestore.go(guest, host)?,
            };
            let stayed = host.ok(&["xl", "domid", "web1"])? == domid;
            ensure!(stayed == cut.stays, "{}: in domain {domid}", cut.fault);
            let reason = match cut.reason {
                Some((key, part)) => {
                    reported(host, "web1", key, MOMENT, |value| value.contains(part))?
                }
                None => String::new(),
            };
            if cut.runs {
                moved.alive(MOMENT)?;
                let disks = moved.order(host, "disk stop", BOOT)?;
                ensure!(disks["disks"][0]["errors"] == 0, "{}: {disks}", cut.fault);
            } else {
                let state = reported(host, "web1", "state", MOMENT, |_| true)?;
                ensure!(state == "connecting", "{}: {state}", cut.fault);
            }
            let outcome = match (cut.stays, cut.runs) {
                (true, _) => "goes on at the source",
                (false, true) => "runs at the destination",
                (false, false) => "paused at the destination",
            };
            println!("{:16} {outcome:28} {reason}", cut.fault);
            host.ok(&["xl", "destroy", "web1"])?;
        }
        Ok(())
    })
    .expect("every cut ends well");
}
