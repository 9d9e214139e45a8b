//! Any guest moves, at any moment, by every way that the stock toolstack has; one that can not be
//! moved goes on where it is, or waits where it arrived, and the reason can be read.

use std::time::Duration;

use anyhow::{Result, ensure};
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, GuestPlan, Host, Lab, System, programs};
use unmoved_tests::load::Load;
use unmoved_tests::within::{FILE, MOMENT, MOVE, Way, reported, restore};
use unmoved_tests::{hotplug, unnoticed};

const BOOT: Duration = Duration::from_secs(600);

/// The unfriendly guest of the demo, under less load.
fn plan() -> Result<GuestPlan> {
    let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
    unnoticed::plan(&kernel, Load::Steady)
}

fn moves(host: &Host, guest: &str) -> Result<u64> {
    Ok(reported(host, guest, "moves", MOMENT, |_| true)?.parse()?)
}

#[test]
fn every_way_of_the_toolstack_is_unnoticed() {
    Lab::run("ways", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        let mut guest = plan()?.create(host)?;
        guest.ready(BOOT)?;
        guest.alive(MOMENT)?;
        let domid = host.ok(&["xl", "domid", &guest.name])?;
        let role = format!("/local/domain/{}/vm-data/role", domid.trim());
        host.ok(&["xenstore-write", &role, "web"])?;
        let has_role = |guest: &Guest| {
            let seen = guest.order(host, "xenstore read vm-data/role", MOMENT);
            seen.is_ok_and(|seen| seen["found"] == "web")
        };
        ensure!(
            (0..200).any(|_| has_role(&guest)),
            "the guest is not shown {role}"
        );
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
            ensure!(has_role(&guest), "{way:?}: vm-data is gone");
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
fn a_boot_loader_a_kernel_that_spins_and_one_that_panicked_move_like_any_other() {
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

        let mut plan = GuestPlan::new(
            "spins",
            System::Shim(programs::shim()?),
            programs::hostile()?,
        );
        plan.arguments = "hostile.spin=1".to_owned();
        let mut guest = plan.create(host)?;
        guest.wait_for("spins, turn 2", BOOT)?;
        for way in [Way::SaveRestore, Way::Migrate] {
            guest = way.go(guest, host)?;
            guest.wait_for(r"spins, turn \d+", MOMENT)?;
        }
        host.ok(&["xl", "destroy", "spins"])?;

        let mut plan = self::plan()?;
        // It stays where it panicked, for longer than anybody waits.
        plan.arguments += " panic=3600";
        let guest = plan.create(host)?;
        guest.ready(BOOT)?;
        guest.type_line(host, "panic")?;
        guest.wait_for("Rebooting in 3600 seconds", BOOT)?;
        for (way, expected) in [(Way::SaveRestore, 1), (Way::Migrate, 2)] {
            drop(way.go(Guest::attach(&plan.name, host)?, host)?);
            let seen = moves(host, &plan.name)?;
            ensure!(seen == expected, "{way:?}: {seen} moves, not {expected}");
        }
        Ok(())
    })
    .expect("they move");
}

/// Waits until a domain, by name, has no more than so many MiB.
const WAIT_SMALL: &str = "for i in $(seq 600); do \
    mib=$(xl list \"$1\" | awk 'NR == 2 { print $3 }'); [ \"$mib\" -le \"$2\" ] && exit 0; sleep 0.1; \
    done; echo \"it still has $mib MiB\" >&2; exit 1";

/// A guest that is moved while its kernel boots, while its processes storm, and with a part of its
/// memory ballooned out.
#[test]
fn any_moment_will_do() {
    Lab::run("moments", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        let mut plan = plan()?;
        // A part is ballooned out.
        plan.memory_mib = 128;
        plan.arguments = plan.arguments.replace(" quiet", "");
        // Before the kernel has said that it is up.
        let guest = plan.create(host)?;
        guest.wait_for(r"\[ +\d+\.\d+\]", BOOT)?;
        ensure!(
            guest.ready(Duration::ZERO).is_err(),
            "it has booted already"
        );
        let guest = Way::SaveRestore.go(guest, host)?;
        guest.ready(BOOT)?;
        guest.alive(MOMENT)?;

        // In bursts of page-table updates, at whatever point of them.
        guest.type_line(host, "#storm storm seconds=10 workers=2")?;
        let guest = Way::SaveRestore.go(guest, host)?;
        let storm = guest.report(0, BOOT, |report| {
            report["re"] == "storm" && report["ev"] == "storm"
        })?;
        ensure!(storm["failures"] == 0, "{storm}");

        // Ballooned: a save before the guest has let go of its memory would not fit the new domain.
        host.ok(&["xl", "mem-set", &plan.name, "112"])?;
        host.ok(&["sh", "-c", WAIT_SMALL, "sh", &plan.name, "112"])?;
        let guest = Way::SaveRestore.go(guest, host)?;
        guest.alive(MOMENT)?;
        host.ok(&["xl", "mem-set", &plan.name, "128"])?;

        guest.alive(MOMENT)?;
        let disks = guest.order(host, "disk stop", BOOT)?;
        ensure!(disks["disks"][0]["errors"] == 0, "{disks}");
        ensure!(moves(host, &plan.name)? == 3, "not three moves");
        Ok(())
    })
    .expect("any moment");
}

/// Gives the guest `/dev/loopNUMBER` of its host, under a name.
fn attach_disk(host: &Host, guest: &str, number: u32, name: &str) -> Result<()> {
    hotplug::spare_disk(host, number)?;
    let disk = format!("phy:/dev/loop{number},{name},w");
    host.ok(&["xl", "block-attach", guest, &disk]).map(drop)
}

/// Gives the guest's kernel a word about its devices' drivers.
fn tell_drivers(host: &Host, guest: &Guest, words: &str) -> Result<()> {
    let order = format!("file write /sys/bus/xen/{words}");
    guest.order(host, &order, MOMENT).map(drop)
}

/// A guest that is moved while devices are on their way to it.
#[test]
fn devices_that_are_being_plugged_work_after_a_move() {
    Lab::run("plugging", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        let plan = plan()?;
        let name = &plan.name;
        let guest = plan.create(host)?;
        guest.ready(BOOT)?;

        // The kernel knows of them, and lets no driver take them yet.
        tell_drivers(host, &guest, "drivers_autoprobe 0")?;
        attach_disk(host, name, 1, "xvdb")?;
        host.ok(&["xl", "network-attach", name, "mac=02:00:00:00:01:02"])?;
        hotplug::number_of_devices(host, &guest, 4)?;
        let guest = Way::Migrate.go(guest, host)?;
        guest.alive(MOMENT)?;
        for words in [
            "drivers_autoprobe 1",
            "drivers_probe vbd-51728",
            "drivers_probe vif-1",
        ] {
            tell_drivers(host, &guest, words)?;
        }
        hotplug::disk_works(host, &guest, "xvdb")?;
        let card = "file read /sys/bus/xen/devices/vif-1/net/eth1/address";
        let address = guest.order(host, card, MOMENT)?;
        ensure!(address["found"] == "02:00:00:00:01:02", "{address}");

        // Not even the shim knows of the one; the other the new domain does not get, for what it gets was
        // written down before.
        host.ok(&["xl", "pause", name])?;
        attach_disk(host, name, 2, "xvdc")?;
        let save = host.start(&["xl", "-vvv", "save", name, FILE])?;
        save.end_input()?;
        save.stderr.wait_for("suspend request", MOVE)?;
        attach_disk(host, name, 3, "xvdd")?;
        drop(guest);
        host.ok(&["xl", "unpause", name])?;
        let saved = save.wait(MOVE)?;
        ensure!(saved.code == 0, "{}", saved.stderr);
        let guest = restore(name, host)?;
        guest.alive(MOMENT)?;
        hotplug::number_of_devices(host, &guest, 5)?;
        hotplug::disk_works(host, &guest, "xvdc")?;
        host.ok(&["xl", "block-attach", name, "phy:/dev/loop3,xvdd,w"])?;
        hotplug::disk_works(host, &guest, "xvdd")?;

        let disks = guest.order(host, "disk stop", BOOT)?;
        ensure!(disks["disks"][0]["errors"] == 0, "{disks}");
        ensure!(moves(host, name)? == 2, "not two moves");
        Ok(())
    })
    .expect("they work");
}
