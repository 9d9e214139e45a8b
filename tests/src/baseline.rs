//! The baseline: what stock Xen can move, and what not.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use unmoved_lab::images::KernelFiles;
use unmoved_lab::migrate::{self, Migration};
use unmoved_lab::{Guest, GuestPlan, Lab, System, initramfs, progress};

/// Longest time from creation to a running user space, on a loaded machine.
const BOOT: Duration = Duration::from_secs(300);
/// Longest time of a migration, on a loaded machine.
const MOVE: Duration = Duration::from_secs(600);
/// Longest time of anything that takes a moment in the guest.
const MOMENT: Duration = Duration::from_secs(120);
/// Stock xen-shim under emulation stalls in about one boot of ten, before anything of ours happens
/// (`lab/README.md`); only its boot is tried again.
const BOOTS: usize = 3;

/// What the baseline showed.
#[derive(Debug)]
pub struct Baseline {
    friendly: Migration,
    unfriendly: Migration,
}

/// Boot a guest on the first host, move it to the second, make it unfriendly, fail to move it back.
///
/// # Errors
/// If the lab fails, the friendly guest does not move or the unfriendly one does.
pub fn run(lab: &Lab, kernel: &KernelFiles) -> Result<Baseline> {
    let (a, b) = (lab.host(0), lab.host(1));
    let mut plan = GuestPlan::new("debian", System::XenShim, kernel.unpacked());
    plan.initrd = Some(initramfs::workload(kernel)?);
    plan.arguments +=
        " quiet unmoved.mode=clock,net unmoved.net=ip=192.0.2.100/24 unmoved.heartbeat=2";
    plan.nics.push("mac=02:00:00:00:01:01".to_owned());
    plan.disks.push("phy:/dev/vda,xvda,w".to_owned());

    let step = progress::step("host a: Debian 12's kernel boots under stock xen-shim");
    let guest = boot(&plan, lab)?;
    step.done("it runs");

    let step = progress::step("stock `xl migrate` of a friendly guest, a to b");
    let moved = Guest::attach_incoming(&plan.name, b)?;
    let friendly = migrate::stock(&plan.name, a, b, MOVE)?;
    ensure!(
        friendly.migrated,
        "a friendly guest did not move: {}",
        friendly.sender
    );
    moved.alive(MOMENT)?;
    step.done("moved, and it runs");
    drop(guest);

    let step = progress::step("one of its tasks can not be frozen; `xl migrate`, b to a");
    moved.order(b, "unfriendly start", MOMENT)?;
    let unfriendly = migrate::stock(&plan.name, b, a, MOVE)?;
    ensure!(
        !unfriendly.migrated,
        "an unfriendly guest moved: {}",
        unfriendly.sender
    );
    moved.alive(MOMENT)?;
    step.done("not moved; it lives on where it was");
    Ok(Baseline {
        friendly,
        unfriendly,
    })
}

fn boot(plan: &GuestPlan, lab: &Lab) -> Result<Guest> {
    let host = lab.host(0);
    let mut tries = 1..=BOOTS;
    loop {
        let attempt = tries.next();
        let guest = plan.create(host)?;
        match guest.ready(BOOT) {
            Ok(_) => return Ok(guest),
            Err(error) if attempt == Some(BOOTS) => return Err(error),
            Err(_) => {
                eprintln!("    stock xen-shim stalled while it booted; once more");
                host.ok(&["xl", "destroy", &plan.name])?;
                host.ok(&[
                    "rm",
                    "-f",
                    &format!("/var/log/xen/console/guest-{}.log", plan.name),
                ])?;
            }
        }
    }
}

impl Baseline {
    /// As JSON, under the keys that the project's records use.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "friendly": {
                "migrated": self.friendly.migrated,
                "total_ms": millis(self.friendly.total),
            },
            "unfriendly": {
                "migrated": self.unfriendly.migrated,
                "total_ms": millis(self.unfriendly.total),
                "reason": self.unfriendly.reason(),
            },
        })
    }

    /// In a few lines.
    pub fn tell(&self) {
        println!("Stock Xen (xen-shim, xl migrate), a 256 MiB guest with Debian 12's kernel:");
        println!(
            "  friendly    moved in {:.1} s",
            self.friendly.total.as_secs_f32()
        );
        println!(
            "  unfriendly  not moved: given up after {:.1} s; the guest lives on, where it was",
            self.unfriendly.total.as_secs_f32()
        );
        println!("              \"{}\"", self.unfriendly.reason());
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
