//! The baseline: what stock Xen can move, and what not.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use unmoved_lab::images::KernelFiles;
use unmoved_lab::migrate::{self, Migration};
use unmoved_lab::{Guest, GuestPlan, Host, Lab, System, initramfs, progress};

/// Longest time from creation to a running user space, on a loaded machine.
const BOOT: Duration = Duration::from_secs(300);
/// Longest time of a migration, on a loaded machine.
const MOVE: Duration = Duration::from_secs(600);
/// Longest silence of a guest that says something every other second.
const MOMENT: Duration = Duration::from_secs(60);
/// Stock xen-shim under emulation stalls now and then, blocked with nothing pending (`lab/README.md`):
/// a fault of neither this project nor the lab, so a stalled guest is replaced this often.
const ATTEMPTS: usize = 3;

/// What the baseline showed.
#[derive(Debug)]
pub struct Baseline {
    friendly: Migration,
    /// How long the friendly guest's kernel was busy with suspending and resuming.
    cooperation: Option<Duration>,
    unfriendly: Migration,
}

/// Move a friendly guest from the first host to the last; fail to move another, unfriendly one.  If that is
/// one and the same host, so it is with the toolstack, and with the guest.
///
/// Two guests, because stock Xen does not move a guest any more once a move of it has failed.
///
/// # Errors
/// If the lab fails, the friendly guest does not move or the unfriendly one does.
pub fn run(lab: &Lab, kernel: &KernelFiles) -> Result<Baseline> {
    let mut plan = GuestPlan::new("debian", System::XenShim, kernel.unpacked());
    plan.initrd = Some(initramfs::workload(kernel)?);
    plan.arguments += " quiet unmoved.loglevel=7 unmoved.mode=clock,net unmoved.net=ip=192.0.2.100/24 unmoved.heartbeat=2";
    plan.nics.push("mac=02:00:00:00:01:01".to_owned());
    plan.disks.push("phy:/dev/vda,xvda,w".to_owned());
    let (friendly, cooperation) = persist(lab, &plan, friendly)?;
    let (unfriendly, ()) = persist(lab, &plan, unfriendly)?;
    Ok(Baseline {
        friendly,
        cooperation,
        unfriendly,
    })
}

/// Play a part until the guest does not stall in it.
fn persist<T>(lab: &Lab, plan: &GuestPlan, part: Part<T>) -> Result<T> {
    for attempt in 1..=ATTEMPTS {
        let seen = part(lab, plan)?;
        for host in &lab.hosts {
            host.run(&["xl", "destroy", &plan.name])?;
            host.sh("rm -f /var/log/xen/console/guest-debian*")?;
        }
        if let Some(seen) = seen {
            return Ok(seen);
        }
        eprintln!("    stock xen-shim stalled in attempt {attempt} of {ATTEMPTS}");
    }
    bail!("stock xen-shim stalled {ATTEMPTS} times");
}

/// One attempt; `None` if the guest stalled, which only its silence tells.
type Part<T> = fn(&Lab, &GuestPlan) -> Result<Option<T>>;

/// The hosts from which a guest goes and to which.
fn ends(lab: &Lab) -> Result<(&Host, &Host)> {
    Ok((lab.host(0), lab.hosts.last().context("no host")?))
}

fn migrate(guest: &str, from: &Host, to: &Host) -> Result<Migration> {
    match from.name() == to.name() {
        true => migrate::stock_within(guest, from, MOVE),
        false => migrate::stock(guest, from, to, MOVE),
    }
}

fn friendly(lab: &Lab, plan: &GuestPlan) -> Result<Option<(Migration, Option<Duration>)>> {
    let (a, b) = ends(lab)?;
    let Some(guest) = boot(lab, plan)? else {
        return Ok(None);
    };
    let step = progress::step("it is friendly: stock `xl migrate`");
    let moved = Guest::attach_incoming(&plan.name, b)?;
    let migration = migrate(&plan.name, a, b)?;
    if !migration.migrated && guest.alive(MOMENT).is_err() {
        return Ok(None);
    }
    ensure!(
        migration.migrated,
        "a friendly guest did not move: {}",
        migration.sender
    );
    if moved.alive(MOMENT).is_err() {
        return Ok(None);
    }
    step.done("moved, and it runs");
    let log = guest.console.text() + &moved.console.text();
    Ok(Some((migration, cooperation(&log))))
}

/// From the first to the last word of the kernel's about a suspend, by the kernel's own clock, which
/// stands still while the toolstack has the guest.
fn cooperation(log: &str) -> Option<Duration> {
    let stamp = |what: &str| {
        let line = log.lines().find(|line| line.contains(what))?;
        let stamp = line.split_once('[')?.1.split_once(']')?.0;
        stamp.trim().parse::<f64>().ok()
    };
    let (begin, end) = (stamp("Freezing user space")?, stamp("Restarting tasks")?);
    Duration::try_from_secs_f64(end - begin).ok()
}

fn unfriendly(lab: &Lab, plan: &GuestPlan) -> Result<Option<(Migration, ())>> {
    let (a, b) = ends(lab)?;
    let Some(guest) = boot(lab, plan)? else {
        return Ok(None);
    };
    let step = progress::step("one of its tasks can not be frozen: stock `xl migrate`");
    if guest.order(a, "unfriendly start", MOMENT).is_err() {
        return Ok(None);
    }
    let migration = migrate(&plan.name, a, b)?;
    ensure!(
        !migration.migrated,
        "an unfriendly guest moved: {}",
        migration.sender
    );
    if guest.alive(MOMENT).is_err() {
        return Ok(None);
    }
    step.done("not moved; it lives on where it was");
    Ok(Some((migration, ())))
}

fn boot(lab: &Lab, plan: &GuestPlan) -> Result<Option<Guest>> {
    let step = progress::step("host a: Debian 12's kernel boots under stock xen-shim");
    let guest = plan.create(lab.host(0))?;
    let is_ready = |report: &Value| report["ev"] == "ready";
    let Ok(ready) = guest.report_unless_still(lab.host(0), 0, BOOT, is_ready) else {
        return Ok(None);
    };
    step.done(&format!("{} KiB of RAM", ready["mem_total_kib"]));
    Ok(Some(guest))
}

impl Baseline {
    /// How long the friendly guest's kernel was busy with suspending and resuming, if it said so.
    #[must_use]
    pub const fn cooperation(&self) -> Option<Duration> {
        self.cooperation
    }

    /// As JSON, under the keys that the project's records use.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "friendly": {
                "migrated": self.friendly.migrated,
                "total_ms": millis(self.friendly.total),
                "cooperation_ms": self.cooperation.map(|time| time.as_secs_f64() * 1e3),
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
        if let Some(time) = self.cooperation {
            println!(
                "              its kernel was busy with suspending and resuming for {:.1} ms of that",
                time.as_secs_f64() * 1e3
            );
        }
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

#[cfg(test)]
mod tests {
    use super::cooperation;

    #[test]
    fn the_time_of_cooperation_is_read_from_the_kernels_words() {
        let log = "x\r\n[   12.500000] Freezing user space processes\r\n[   12.6] suspending xenstore...\r\n\
                   [   13.250000] Restarting tasks ... done.\r\n";
        assert_eq!(cooperation(log).map(|time| time.as_millis()), Some(750));
        assert_eq!(cooperation("Freezing user space processes"), None);
    }
}
