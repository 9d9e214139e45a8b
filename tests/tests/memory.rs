//! Guests whose memory grows and shrinks, before a move, after it and all through it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, GuestPlan, Host, Lab};
use unmoved_tests::load::Load;
use unmoved_tests::within::{MOMENT, Way};
use unmoved_tests::{agents, unnoticed};

const BOOT: Duration = Duration::from_secs(600);

/// The unfriendly guest of the demo, under less load and with other memory, MiB.
fn plan(memory: u32, most: u32) -> Result<GuestPlan> {
    let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
    let mut plan = unnoticed::plan(&kernel, Load::Steady)?;
    plan.memory_mib = memory;
    plan.lines.push(format!("maxmem = {most}"));
    Ok(plan)
}

/// What the guest has, KiB, as its kernel tells it.
fn current(host: &Host, guest: &Guest) -> Result<u64> {
    let report = guest.order(host, "balloon", MOMENT)?;
    report["current_kib"].as_u64().context("no balloon")
}

/// Sets a guest's memory, and waits until it has so many KiB.
fn set(host: &Host, guest: &Guest, mib: u32, expected: u64) -> Result<()> {
    host.ok(&["xl", "mem-set", &guest.name, &mib.to_string()])?;
    let mut reached = 0;
    for _ in 0..300 {
        reached = current(host, guest)?;
        if reached == expected {
            return Ok(());
        }
    }
    bail!("{reached} KiB at {mib} MiB, not {expected}")
}

/// A guest with `maxmem` above `memory` starts with the latter, grows to the former, and gives up more frames
/// than the shim's heap could ever list.  It moves small and large, and with its store filled up to the quota.
#[test]
fn a_guest_grows_on_demand_and_moves_in_either_state() {
    Lab::run("grows", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        let (low, middle, high) = (160, 300, 600);
        let plan = plan(low, high)?;
        let guest = plan.create(host)?;
        guest.ready(BOOT)?;
        let small = current(host, &guest)?;
        ensure!(small < u64::from(low) << 10, "it starts with {small} KiB");
        let at = |mib: u32| small + (u64::from(mib - low) << 10);
        set(host, &guest, high, at(high))?;
        let filled = guest.order(host, "xenstore fill data 1900", BOOT)?["found"].clone();
        ensure!(filled.as_u64() > Some(200), "{filled} nodes");

        let guest = Way::SaveRestore.go(guest, host)?;
        guest.alive(MOMENT)?;
        let domid = host.ok(&["xl", "domid", &plan.name])?.trim().to_owned();
        let last = filled.as_u64().unwrap_or_default() - 1;
        let path = format!("/local/domain/{domid}/data/n{last}");
        // The shim publishes the guest's nodes when all is connected again, one after the other.
        let read = format!(
            "for i in $(seq 60); do xenstore-read {path} 2>/dev/null && exit; sleep 2; done
             xenstore-list /local/domain/{domid}/data | wc -l >&2; exit 1"
        );
        let value = host.sh(&read)?;
        ensure!(value.trim().len() == 1900, "{path}: {value}");

        set(host, &guest, middle, at(middle))?;
        set(host, &guest, high, at(high))?;
        set(host, &guest, low, small)?;
        let guest = Way::SaveRestore.go(guest, host)?;
        guest.alive(MOMENT)?;
        set(host, &guest, middle, at(middle))?;
        let disks = guest.order(host, "disk stop", BOOT)?;
        ensure!(disks["disks"][0]["errors"] == 0, "{disks}");
        Ok(())
    })
    .expect("it grows, shrinks and moves");
}

/// Sets the memory of a guest to one and another size in turn, for as long as a file is there.
const PUMP: &str = "touch /root/pumps; (n=0; while [ -e /root/pumps ]; do
    xl mem-set \"$1\" \"$2\"; sleep 0.5; xl mem-set \"$1\" \"$3\"; sleep 0.5; n=$((n+1)); echo $n >/root/pumped
    done) >/dev/null 2>&1 </dev/null &";
/// Ends that; gives how often it was.
const REST: &str = "rm -f /root/pumps; cat /root/pumped";
/// The most that a domain of this name may have, MiB, for longer than a moment.
const SETTLES: &str = "for i in $(seq 600); do
    mib=$(xl list \"$1\" | awk 'NR == 2 { print $3 }'); [ \"$mib\" -le \"$2\" ] && exit 0; sleep 0.1; \
    done; echo \"it still has $mib MiB\" >&2; exit 1";

/// A guest whose memory goes and comes all the time while it is copied has the same memory at the
/// destination (both ends compare it), and the host there keeps none that the guest has not.
#[test]
fn memory_that_comes_and_goes_all_through_a_move_comes_along() {
    Lab::run("pumped", &Config::hosts(2), |lab| {
        let (low, high) = (128, 192);
        agents::start(lab)?;
        let plan = plan(high, high)?;
        let guest = plan.create(lab.host(0))?;
        guest.ready(BOOT)?;
        let large = current(lab.host(0), &guest)?;
        let mut guest = guest;
        for (from, to) in [(lab.host(0), lab.host(1)), (lab.host(1), lab.host(0))] {
            let (low, high) = (low.to_string(), high.to_string());
            from.ok(&["sh", "-c", PUMP, "sh", &plan.name, &low, &high])?;
            // Slow enough for it to come and go some times.
            let back = Guest::attach_incoming(&plan.name, to)?;
            drop(guest);
            let options = ["--bandwidth", "6M"];
            let (_, report) = agents::migrate(&plan.name, from, to, &options)?;
            let times = from.sh(REST)?;
            ensure!(times.trim().parse::<u32>()? > 3, "{times} times: {report}");
            guest = back;
            guest.alive(MOMENT)?;
            set(to, &guest, 128, large - (64 << 10))?;
            to.ok(&["sh", "-c", SETTLES, "sh", &plan.name, &low])?;
            set(to, &guest, 192, large)?;
        }
        let disks = guest.order(lab.host(0), "disk stop", BOOT)?;
        ensure!(disks["disks"][0]["errors"] == 0, "{disks}");
        Ok(())
    })
    .expect("its memory comes along");
}
