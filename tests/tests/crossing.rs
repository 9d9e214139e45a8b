//! From one release of Xen to the next, and over an hour in a file while the old host is gone.

use std::time::Duration;

use anyhow::{Result, ensure};
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, Host, Lab, Tsc, Xen};
use unmoved_tests::load::Load;
use unmoved_tests::within::MOMENT;
use unmoved_tests::{peer, unnoticed};
use unmoved_workload::fingerprint::Fingerprint;

const BOOT: Duration = Duration::from_secs(600);
/// The shared disk behind what the guest uses of it, as a device of its own.
const BEHIND: &str = "losetup -o 134217728 /dev/loop7 /dev/vda";

/// The guest on `host` sees what it saw before.
fn same(before: &Fingerprint, host: &Host) -> Result<()> {
    let seen = peer::differences(before, &peer::fingerprint(host)?);
    ensure!(
        seen.is_empty(),
        "on host {}: {}",
        host.name(),
        seen.join("; ")
    );
    Ok(())
}

/// The guest's clocks never went back, and its wall clock is its host's.
fn clocks(guest: &Guest, host: &Host) -> Result<()> {
    let now = host.ok(&["date", "+%s%N"])?;
    let order = format!("clock report wall={}", now.trim());
    let clock = guest.order(host, &order, MOMENT)?;
    ensure!(clock["watch"]["steps_back"] == 0, "{clock}");
    // The order itself takes its time on a loaded machine.  And each host's clock is late by what setting it
    // took, a quarter of a second where nothing else runs: two hosts differ by more where others do.
    let error = clock["wall_error_ns"].as_i64().unwrap_or(i64::MAX);
    ensure!((-3_000_000_000..30_000_000_000).contains(&error), "{clock}");
    Ok(())
}

#[test]
fn a_guest_crosses_to_the_next_xen_and_an_hour() {
    let mut config = Config::hosts(2);
    config.hosts = vec![Xen::V4_17, Xen::V4_20];
    Lab::run("crossing", &config, |lab| {
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        let (old, new) = (lab.host(0), lab.host(1));
        let mut plan = unnoticed::plan(&kernel, Load::Steady)?;
        let guest = plan.create(old)?;
        guest.ready(BOOT)?;
        guest.alive(MOMENT)?;
        peer::install(old)?;
        peer::install(new)?;
        let before = peer::fingerprint(old)?;

        let arrived = Guest::attach_incoming(&plan.name, new)?;
        unnoticed::by_xl(&plan.name, old, new)?;
        arrived.alive(MOMENT)?;
        same(&before, new)?;
        clocks(&arrived, new)?;
        let disks = arrived.order(new, "disk stop", BOOT)?;
        ensure!(disks["disks"][0]["errors"] == 0, "{disks}");

        // The same guest started there looks the same from the start.
        new.ok(&["xl", "destroy", &plan.name])?;
        new.sh("rm -f /var/log/xen/console/guest-web1*.log")?;
        let guest = plan.create(new)?;
        guest.ready(BOOT)?;
        guest.alive(MOMENT)?;
        same(&before, new)?;
        new.ok(&["xl", "destroy", &plan.name])?;
        drop((guest, arrived));

        // Nor can it see whether Xen emulates its TSC, as between hosts that count differently.
        plan.tsc = Tsc::Default;
        old.sh("rm -f /var/log/xen/console/guest-web1*.log")?;
        let guest = plan.create(old)?;
        guest.ready(BOOT)?;
        guest.alive(MOMENT)?;
        old.sh(BEHIND)?;
        old.ok(&["xl", "save", &plan.name, "/dev/loop7"])?;
        old.sh("sync; losetup -d /dev/loop7")?;
        drop(guest);
        lab.hosts[0].kill();
        let new = lab.host(1);
        new.sh("date -s \"@$(($(date +%s) + 3600))\"")?;
        new.sh(BEHIND)?;
        new.sh("rm -f /var/log/xen/console/guest-web1*.log")?;
        let back = Guest::attach(&plan.name, new)?;
        new.ok(&["xl", "restore", "/dev/loop7"])?;
        back.alive(MOMENT)?;
        same(&before, new)?;
        clocks(&back, new)?;
        let disks = back.order(new, "disk stop", BOOT)?;
        ensure!(disks["disks"][0]["errors"] == 0, "{disks}");
        let text = back.console.text();
        ensure!(
            !text.contains("soft lockup") && !text.contains("rcu_sched"),
            "a watchdog was tripped: {text}"
        );
        Ok(())
    })
    .expect("it crosses");
}
