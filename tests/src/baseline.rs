//! The baseline: what stock Xen can move, and what not.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
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
/// Stock xen-shim under emulation stalls now and then, blocked with nothing pending (`lab/README.md`):
/// a fault of neither this project nor the lab, so a stalled guest is replaced this often.
const ATTEMPTS: usize = 3;

/// What the baseline showed.
#[derive(Debug)]
pub struct Baseline {
    friendly: Migration,
    unfriendly: Migration,
}

/// Boot a guest on the first host, fail to move it to the second while it is unfriendly, then move it.
///
/// # Errors
/// If the lab fails, the unfriendly guest moves or the friendly one does not.
pub fn run(lab: &Lab, kernel: &KernelFiles) -> Result<Baseline> {
    let mut plan = GuestPlan::new("debian", System::XenShim, kernel.unpacked());
    plan.initrd = Some(initramfs::workload(kernel)?);
    plan.arguments +=
        " quiet unmoved.mode=clock,net unmoved.net=ip=192.0.2.100/24 unmoved.heartbeat=2";
    plan.nics.push("mac=02:00:00:00:01:01".to_owned());
    plan.disks.push("phy:/dev/vda,xvda,w".to_owned());
    for attempt in 1.. {
        match once(lab, &plan)? {
            Some(baseline) => return Ok(baseline),
            None => ensure!(
                attempt < ATTEMPTS,
                "stock xen-shim stalled {ATTEMPTS} times"
            ),
        }
        eprintln!("    stock xen-shim stalled; once more with a new guest");
        for host in [lab.host(0), lab.host(1)] {
            host.run(&["xl", "destroy", &plan.name])?;
            host.sh("rm -f /var/log/xen/console/guest-debian*")?;
        }
    }
    bail!("there are always attempts left above")
}

/// One attempt; `None` if the guest stalled, which only its silence tells.
fn once(lab: &Lab, plan: &GuestPlan) -> Result<Option<Baseline>> {
    let (a, b) = (lab.host(0), lab.host(1));
    let step = progress::step("host a: Debian 12's kernel boots under stock xen-shim");
    let guest = plan.create(a)?;
    if guest.ready(BOOT).is_err() {
        return Ok(None);
    }
    step.done("it runs");

    let step = progress::step("one of its tasks can not be frozen; stock `xl migrate`, a to b");
    if guest.order(a, "unfriendly start", MOMENT).is_err() {
        return Ok(None);
    }
    let unfriendly = migrate::stock(&plan.name, a, b, MOVE)?;
    ensure!(
        !unfriendly.migrated,
        "an unfriendly guest moved: {}",
        unfriendly.sender
    );
    if guest.alive(MOMENT).is_err() {
        return Ok(None);
    }
    step.done("not moved; it lives on where it was");

    let step = progress::step("it is friendly again; stock `xl migrate`, a to b");
    if guest.order(a, "unfriendly stop", MOMENT).is_err() {
        return Ok(None);
    }
    let moved = Guest::attach_incoming(&plan.name, b)?;
    let friendly = migrate::stock(&plan.name, a, b, MOVE)?;
    if !friendly.migrated && guest.alive(MOMENT).is_err() {
        return Ok(None);
    }
    ensure!(
        friendly.migrated,
        "a friendly guest did not move: {}",
        friendly.sender
    );
    if moved.alive(MOMENT).is_err() {
        return Ok(None);
    }
    step.done("moved, and it runs");
    Ok(Some(Baseline {
        friendly,
        unfriendly,
    }))
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
