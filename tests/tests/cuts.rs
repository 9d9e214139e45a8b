//! A move is cut at every phase, and comes to a host that lacks what the guest needs.
//!
//! Either the guest goes on at the source, or it runs at the destination, or it waits there with the
//! reason named and is set going by what was missing.  Each test prints its table.

use std::time::Duration;

use anyhow::{Result, ensure};
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, GuestPlan, Host, Lab};
use unmoved_tests::load::Load;
use unmoved_tests::unnoticed;
use unmoved_tests::within::{FILE, MOMENT, Way, reported};

const BOOT: Duration = Duration::from_secs(600);
/// What the shim says in Xen's log when it does not suspend.
const REFUSED: &str = "suspend refused in";

/// A small unfriendly guest with options of its shim, at work on its disk.
fn begin(host: &Host, options: &str) -> Result<(GuestPlan, Guest)> {
    let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
    let mut plan = unnoticed::plan(&kernel, Load::Steady)?;
    plan.lines.push(format!("pvshim_extra = \"{options}\""));
    host.sh("rm -f /var/log/xen/console/guest-web1*.log")?;
    let guest = plan.create(host)?;
    guest.ready(BOOT)?;
    guest.alive(MOMENT)?;
    Ok((plan, guest))
}

/// It works, and none of its blocks is wrong or missing.
fn is_well(guest: &Guest) -> Result<()> {
    let alive = guest.alive(MOMENT)?;
    for figure in ["disk_errors", "clock_steps_back"] {
        ensure!(alive[figure] == 0, "{alive}");
    }
    Ok(())
}

/// It has nothing left to do, and none of its blocks was ever wrong or missing.
fn was_well(guest: &Guest, host: &Host) -> Result<()> {
    is_well(guest)?;
    let disks = guest.order(host, "disk stop", BOOT)?;
    ensure!(disks["disks"][0]["errors"] == 0, "{disks}");
    ensure!(
        disks["disks"][0]["verified_blocks"].as_u64() > Some(0),
        "{disks}"
    );
    Ok(())
}

fn tell(cut: &str, outcome: &str, reason: &str) {
    println!("{cut:24} {outcome:28} {reason}");
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

/// In the order in which one guest sees them: the last leaves it waiting for ever.
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
        let faults = CUTS.map(|cut| cut.fault).join(",");
        // One after the other: what one leaves behind, the next would stumble over.
        let (_, mut guest) = begin(host, &format!("unmoved.fault={faults} unmoved.drain=2"))?;
        let mut moves = 0;
        tell("cut", "outcome", "reason");
        for cut in CUTS {
            let domid = host.ok(&["xl", "domid", "web1"])?;
            let moved = match cut.stays {
                // The toolstack waits for a minute; that it gave up is seen before that.
                true => {
                    let mark = host.serial().mark();
                    let save = host.start(&["xl", "save", "web1", FILE])?;
                    host.serial().wait_for_after(mark, REFUSED, MOMENT)?;
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
                is_well(&moved)?;
                moves += u32::from(!cut.stays);
                let expected = moves.to_string();
                reported(host, "web1", "moves", MOMENT, |value| value == expected)?;
            } else {
                let state = reported(host, "web1", "state", MOMENT, |_| true)?;
                ensure!(state == "connecting", "{}: {state}", cut.fault);
            }
            let outcome = match (cut.stays, cut.runs) {
                (true, _) => "goes on at the source",
                (false, true) => "runs at the destination",
                (false, false) => "waits at the destination",
            };
            tell(cut.fault, outcome, &reason);
            guest = moved;
        }
        Ok(())
    })
    .expect("every cut ends well");
}

/// Seconds for which a shim that just arrived does nothing, so that a host can lose something.
const PAUSE: u64 = 8;

/// Arrives, and stands for [`PAUSE`] before it looks at the host, which has lost something by then;
/// gives the guest and its new domain's number.
fn arrive(host: &Host, guest: Guest, config: Option<&str>) -> Result<(Guest, String)> {
    drop(guest);
    host.ok(&["xl", "save", "web1", FILE])?;
    host.sh("rm -f /var/log/xen/console/guest-web1*.log")?;
    let back = Guest::attach("web1", host)?;
    let restore: Vec<&str> = ["xl", "restore"].into_iter().chain(config).collect();
    host.ok(&[&restore[..], &[FILE]].concat())?;
    Ok((back, host.ok(&["xl", "domid", "web1"])?.trim().to_owned()))
}

/// Binds dom0's block backend to a domain's disk, or unbinds it.
fn bind(host: &Host, domid: &str, how: &str) -> Result<()> {
    let file = format!("/sys/bus/xen-backend/drivers/vbd/{how}");
    host.sh(&format!("echo vbd-{domid}-51712 >{file}"))
        .map(drop)
}

#[test]
fn what_the_destination_lacks_is_named_and_can_be_given() {
    Lab::run("lacks", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        tell("cut", "outcome", "reason");
        // One guest for all: it gets back what it lacked each time.  For two of its moves it stands still
        // on its arrival, so that the host can lose something meanwhile.
        let stalls = "unmoved.fault=reattach:stall,reattach:stall";
        let (plan, guest) = begin(host, &format!("{stalls} unmoved.drain={PAUSE}"))?;
        no_memory(host, &plan, &guest)?;
        let guest = no_backend(host, guest)?;
        let guest = slow_store(host, guest)?;
        let guest = no_disk(host, plan, guest)?;
        was_well(&guest, host)
    })
    .expect("it is named, and given");
}

fn no_disk(host: &Host, mut plan: GuestPlan, guest: Guest) -> Result<Guest> {
    let disks = std::mem::take(&mut plan.disks);
    plan.install(host)?;
    let (guest, _) = arrive(host, guest, Some(&plan.path("cfg")))?;
    let waits = |value: &str| value.contains("vbd/51712: this host has no");
    let reason = reported(host, "web1", "waits-for", MOMENT, waits)?;
    let state = reported(host, "web1", "state", MOMENT, |_| true)?;
    ensure!(state == "connecting", "{state}");
    host.ok(&["xl", "block-attach", "web1", &disks[0]])?;
    is_well(&guest)?;
    tell("no disk", "waits; runs once attached", &reason);
    Ok(guest)
}

fn no_backend(host: &Host, guest: Guest) -> Result<Guest> {
    let (guest, domid) = arrive(host, guest, None)?;
    bind(host, &domid, "unbind")?;
    let waits = |value: &str| value.contains("vbd/51712");
    let reason = reported(host, "web1", "waits-for", MOMENT, waits)?;
    bind(host, &domid, "bind")?;
    is_well(&guest)?;
    tell(
        "backend does not connect",
        "waits; runs once it does",
        &reason,
    );
    Ok(guest)
}

fn slow_store(host: &Host, guest: Guest) -> Result<Guest> {
    let (guest, _) = arrive(host, guest, None)?;
    // Longer than the shim's pause: it asks a daemon that does not answer.
    let stop = format!(
        "kill -STOP $(pidof oxenstored xenstored); sleep {}; kill -CONT $(pidof oxenstored xenstored)",
        2 * PAUSE
    );
    host.sh(&stop)?;
    is_well(&guest)?;
    let connect = reported(host, "web1", "blackout/connect", MOMENT, |_| true)?;
    ensure!(
        connect.parse::<u64>()? > 1_000_000,
        "it did not wait: {connect} us"
    );
    tell("xenstored does not answer", "runs once it does", "");
    Ok(guest)
}

fn no_memory(host: &Host, plan: &GuestPlan, guest: &Guest) -> Result<()> {
    let domid = host.ok(&["xl", "domid", "web1"])?;
    let free: u32 = host.ok(&["xl", "info", "free_memory"])?.trim().parse()?;
    let mut filler = plan.clone();
    filler.name = "filler".to_owned();
    // Its UUID, disk and card are another guest's.
    (filler.lines, filler.disks, filler.nics) = Default::default();
    // Less is left than the guest has.
    filler.memory_mib = free - plan.memory_mib / 2;
    filler.install(host)?;
    host.ok(&["xl", "create", "-p", &filler.path("cfg")])?;
    let refused = host.run(&["xl", "migrate", "-s", "", "web1", "xl migrate-receive"])?;
    ensure!(refused.code != 0, "there was room for it");
    ensure!(host.ok(&["xl", "domid", "web1"])? == domid, "it moved");
    is_well(guest)?;
    let why = refused.stderr + &refused.stdout;
    let why = why.lines().find(|line| line.contains("error"));
    tell(
        "no memory",
        "goes on at the source",
        why.unwrap_or("").trim(),
    );
    host.ok(&["xl", "destroy", "filler"]).map(drop)
}
