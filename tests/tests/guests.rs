//! Guests of every kind run on a lab host: the ground that tests of our own shim stand on.

use std::time::Duration;

use serde_json::Value;
use unmoved_lab::images::{GuestKernel, Xen};
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, GuestPlan, Lab, Scripts, System, initramfs, programs};
use unmoved_tests::baseline;
use unmoved_tests::shell::{self, Shell};

const BOOT: Duration = Duration::from_secs(600);
const MOMENT: Duration = Duration::from_secs(300);

/// A native guest with a disk and a card that boots this kernel, does its work and finds no fault.
fn works(name: &str, xen: Xen, kernel: GuestKernel, packed: bool) -> anyhow::Result<()> {
    let mut config = Config::hosts(1);
    config.hosts = vec![xen];
    config.scripts = Scripts::Xen;
    Lab::run(name, &config, |lab| {
        let host = lab.host(0);
        let files = kernel.get(&Tools::get()?)?;
        let file = if packed {
            files.packed()
        } else {
            files.unpacked()
        };
        let mut plan = GuestPlan::new("guest", System::Native, file);
        plan.initrd = Some(initramfs::workload(&files)?);
        plan.arguments += " quiet unmoved.mode=clock,net,disk unmoved.net=ip=192.0.2.100/24 \
                           unmoved.disk=dev=/dev/xvda,area=64M unmoved.heartbeat=2";
        plan.disks.push("phy:/dev/vda,xvda,w".to_owned());
        plan.nics.push("mac=02:00:00:00:01:01".to_owned());
        let guest = plan.create(host)?;
        guest.ready(BOOT)?;
        let busy =
            |report: &Value| report["ev"] == "alive" && report["disk_verified"].as_u64() > Some(0);
        guest.report(0, BOOT, busy)?;
        host.ok(&["ping", "-c", "1", "-w", "60", "192.0.2.100"])?;
        let disks = guest.order(host, "disk stop", MOMENT)?;
        assert_eq!(disks["disks"][0]["errors"], 0, "{disks}");
        host.ok(&["xl", "destroy", "guest"])?;
        Ok(())
    })
}

#[test]
fn a_native_guest_with_debian_12s_kernel_works_packed() {
    works("packed", Xen::V4_17, GuestKernel::Debian12, true).unwrap();
}

#[test]
fn a_native_guest_with_debian_13s_kernel_works_on_the_newer_xen() {
    works("deb13", Xen::V4_20, GuestKernel::Debian13, false).unwrap();
}

#[test]
fn the_boot_loader_reaches_its_prompt() {
    Lab::run("grub", &Config::hosts(1), |lab| {
        let files = GuestKernel::Grub.get(&Tools::get()?)?;
        let plan = GuestPlan::new("grub", System::Native, files.unpacked());
        plan.create(lab.host(0))?.wait_for("grub> ?", BOOT)?;
        Ok(())
    })
    .unwrap();
}

/// A whole Debian boots, lets somebody in, and is well.
#[test]
fn debian_lets_in_under_the_shim() {
    Lab::run("login", &shell::host_with_debian().unwrap(), |lab| {
        let system = System::Shim(programs::shim()?);
        let host = lab.host(0);
        let mark = host.serial().mark();
        let guest = GuestPlan::debian("debian", system, &Tools::get()?)?.create(host)?;
        let mut shell = Shell::login(host, &guest)?;
        assert_eq!(shell.ok("cat /proc/1/comm", MOMENT)?, "systemd");
        assert_eq!(
            shell.ok(". /etc/os-release; echo $ID $VERSION_ID", MOMENT)?,
            "debian 12"
        );
        assert_eq!(shell.run("false", MOMENT)?.code, 1);
        for program in ["stress-ng", "fio", "iperf3", "gdb"] {
            shell.ok(&format!("{program} --version"), MOMENT)?;
        }
        assert!(shell.kernel_complaints()?.is_empty());
        assert!(shell::shim_complaints(host.serial(), mark).is_empty());
        // An NMI is the kernel's, which complains of it and goes on.
        host.ok(&["xl", "trigger", "debian", "nmi"])?;
        shell.ok(
            "for n in $(seq 30); do dmesg | grep 'NMI received' && break; sleep 1; done",
            MOMENT,
        )?;
        assert_eq!(shell.ok("cat /proc/1/comm", MOMENT)?, "systemd");
        assert!(shell::shim_complaints(host.serial(), mark).is_empty());
        Ok(())
    })
    .unwrap();
}

#[test]
fn stock_xen_moves_a_friendly_guest_and_no_unfriendly_one() {
    Lab::run("baseline", &Config::hosts(1), |lab| {
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        let figures = baseline::run(lab, &kernel)?.to_json();
        assert_eq!(figures["friendly"]["migrated"], true);
        assert_eq!(figures["unfriendly"]["migrated"], false);
        Ok(())
    })
    .unwrap();
}
