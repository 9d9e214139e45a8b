//! Devices that come and go while the guest works: a second disk and a second card, over and over, and
//! what the shim has in use after each round.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use unmoved_lab::{Guest, Host};

use crate::within::reported;

const MOMENT: Duration = Duration::from_secs(120);
/// Puts a disk of 16 MiB behind a second loop device.
const SECOND_DISK: &str =
    "dd if=/dev/zero of=/root/second bs=1M count=16 2>/dev/null; losetup /dev/loop1 /root/second";

/// Requests of the guest's own disk at once.
const DEPTH: u64 = 8;
/// Gives the guest's own disk work that goes on while devices come and go.
const LOAD: &str = "disk start dev=/dev/xvda area=16M depth=8 pause=2000";

/// What the shim says that it has in use, by name.
pub const USAGE: [&str; 3] = ["host-ports", "grants", "free-frames"];

/// How much of it is in use, in the order of [`USAGE`].
pub type Usage = [u64; USAGE.len()];

/// Plug and unplug `count` times in a guest that runs the workload and has one disk and one card;
/// `tell` hears of each round.  What was in use before and after, without load.
///
/// # Errors
/// If a device does not come, does not work or does not go, or something is left behind.
pub fn plug(
    host: &Host,
    guest: &Guest,
    count: usize,
    mut tell: impl FnMut(usize, Duration, &Usage),
) -> Result<[Usage; 2]> {
    host.sh(SECOND_DISK)?;
    number_of_devices(host, guest, 2)?;
    // The first round may make lists longer for good.
    round(host, guest)?;
    let before = usage(host, guest)?;
    guest.order(host, LOAD, MOMENT)?;
    for number in 1..=count {
        let begun = Instant::now();
        round(host, guest).with_context(|| format!("round {number} of {count}"))?;
        tell(number, begun.elapsed(), &usage(host, guest)?);
    }
    let stopped = guest.order(host, "disk stop dev=/dev/xvda", MOMENT)?;
    ensure!(stopped["disks"][0]["errors"] == 0, "{stopped}");
    // The shim counts when devices come or go: once more, so that nothing is in flight when it does.
    round(host, guest)?;
    let after = usage(host, guest)?;
    // The disk that stays keeps pages for as many requests as it ever had at once.
    let frames_kept = before[2].saturating_sub(after[2]);
    ensure!(
        before[..2] == after[..2] && frames_kept <= DEPTH,
        "something leaks: {USAGE:?} were {before:?}, and are {after:?} after {count} rounds"
    );
    Ok([before, after])
}

/// Both devices come, the disk is written and read with checksums, both go.
fn round(host: &Host, guest: &Guest) -> Result<()> {
    let name = &guest.name;
    host.ok(&["xl", "block-attach", name, "phy:/dev/loop1,xvdb,w"])?;
    host.ok(&["xl", "network-attach", name, "mac=02:00:00:00:01:02"])?;
    number_of_devices(host, guest, 4)?;
    guest.order(
        host,
        "disk start dev=/dev/xvdb depth=8 max=128k wait=60",
        MOMENT,
    )?;
    let write =
        |report: &Value| report["ev"] == "alive" && report["disk_verified"].as_u64() > Some(0);
    guest.report(guest.console.mark(), MOMENT, write)?;
    let stopped = guest.order(host, "disk stop dev=/dev/xvdb", MOMENT)?;
    ensure!(stopped["disks"][0]["errors"] == 0, "{stopped}");
    host.ok(&["xl", "block-detach", name, "xvdb"])?;
    host.ok(&["xl", "network-detach", name, "1"])?;
    number_of_devices(host, guest, 2)
}

fn number_of_devices(host: &Host, guest: &Guest, expected: usize) -> Result<()> {
    let expected = expected.to_string();
    reported(host, &guest.name, "usage/devices", MOMENT, |value| {
        value == expected
    })
    .map(drop)
}

fn usage(host: &Host, guest: &Guest) -> Result<Usage> {
    let mut used = Usage::default();
    for (name, value) in USAGE.iter().zip(&mut used) {
        *value = reported(host, &guest.name, &format!("usage/{name}"), MOMENT, |_| {
            true
        })?
        .parse()
        .with_context(|| format!("usage/{name}"))?;
    }
    Ok(used)
}
