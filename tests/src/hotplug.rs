//! Devices that come and go while the guest works: a second disk and a second card, over and over, and
//! what the shim has in use after each round.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use unmoved_lab::{Guest, Host};

const MOMENT: Duration = Duration::from_secs(300);
/// Puts a disk of 16 MiB behind a loop device; its number is the argument.
const SPARE_DISK: &str = "dd if=/dev/zero of=/root/spare$1 bs=1M count=16 2>/dev/null && \
    losetup /dev/loop$1 /root/spare$1";

/// Requests of the guest's own disk at once.
const DEPTH: u64 = 8;
/// Bytes of the shim's lists for one of them, at the most.
const LIST: u64 = 4096;
/// Gives the guest's own disk work that goes on while devices come and go.
const LOAD: &str = "disk start dev=/dev/xvda area=16M depth=8 pause=10000";

/// What the shim says that it has in use, by name.
pub const USAGE: [&str; 5] = ["host-ports", "ports", "grants", "free-frames", "heap-bytes"];

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
    spare_disk(host, 1)?;
    host.sh(SCRIPTS)?;
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
    let [ports, guest_ports, grants, frames, heap] = before;
    // The disk that stays keeps pages for as many requests as it ever had at once, and lists for them.
    ensure!(
        after[..3] == [ports, guest_ports, grants]
            && frames.saturating_sub(after[3]) <= DEPTH
            && after[4].saturating_sub(heap) <= DEPTH * LIST,
        "something leaks: {USAGE:?} were {before:?}, and are {after:?} after {count} rounds"
    );
    Ok([before, after])
}

/// Both devices come, the disk is written and read with checksums, both go.
fn round(host: &Host, guest: &Guest) -> Result<()> {
    let name = &guest.name;
    dom0(host, name, PLUG)?;
    disk_works(host, guest, "xvdb")?;
    dom0(host, name, UNPLUG)
}

/// Make `/dev/loopNUMBER` of dom0 a disk of 16 MiB that is for a guest to take.
///
/// # Errors
/// If that is in use already.
pub fn spare_disk(host: &Host, number: u32) -> Result<()> {
    let words = ["sh", "-c", SPARE_DISK, "sh", &number.to_string()];
    host.ok(&words).map(drop)
}

/// Have a disk that the guest has or is about to get, by its name there, written for a moment, and all of it
/// read and compared.
///
/// # Errors
/// If it does not come, or something is wrong with it.
pub fn disk_works(host: &Host, guest: &Guest, name: &str) -> Result<()> {
    let start = format!("disk start dev=/dev/{name} area=1M depth=8 max=128k wait=60");
    guest.order(host, &start, MOMENT)?;
    let stopped = guest.order(host, &format!("disk stop dev=/dev/{name}"), MOMENT)?;
    let disk = &stopped["disks"][0];
    ensure!(
        disk["errors"] == 0 && disk["mismatches"] == 0,
        "{name}: {stopped}"
    );
    ensure!(
        disk["checked_blocks"].as_u64() > Some(0),
        "{name}: nothing was written: {stopped}"
    );
    Ok(())
}

/// Wait for the shim to count this many devices.
///
/// # Errors
/// If it does not within some minutes.
pub fn number_of_devices(host: &Host, guest: &Guest, expected: usize) -> Result<()> {
    dom0(host, &guest.name, &format!("devices {expected}"))
}

/// Hotplug scripts that do the least that a backend waits for.  Xen's own start hundreds of processes, which
/// takes an emulated dom0 five times as long as all else in a round.
const SCRIPTS: &str = r#"cat >/root/plug-disk <<'END'
#!/bin/sh
[ "$1" = add ] || exit 0
xenstore-write "$XENBUS_PATH/physical-device" 7:1 "$XENBUS_PATH/hotplug-status" connected
END
cat >/root/plug-card <<'END'
#!/bin/sh
[ "$1" = online ] || exit 0
ip link set "$vif" master br0 up
xenstore-write "$XENBUS_PATH/hotplug-status" connected
END
chmod +x /root/plug-disk /root/plug-card"#;

const PLUG: &str =
    "xl block-attach \"$1\" vdev=xvdb,access=rw,script=/root/plug-disk,target=/dev/loop1 &&
    xl network-attach \"$1\" mac=02:00:00:00:01:02 script=/root/plug-card && devices 4";
const UNPLUG: &str = "xl block-detach \"$1\" xvdb && xl network-detach \"$1\" 1 && devices 2";

/// Where the shim of guest `$1` tells what it has in use, and `devices N`, which waits until that is N.
/// All in one shell: commands are slow in an emulated dom0.
const PRELUDE: &str = "usage=/local/domain/$(xl domid \"$1\")/data/unmoved/usage
devices() {
    for i in $(seq 600); do
        [ \"$(xenstore-read $usage/devices 2>/dev/null)\" = \"$1\" ] && return 0
        sleep 0.2
    done
    echo \"the shim does not count $1 devices\" >&2
    return 1
}
";

/// Run a script in dom0 with the guest's name as `$1`.
fn dom0(host: &Host, name: &str, script: &str) -> Result<()> {
    let script = format!("{PRELUDE}{script}");
    let output = host.run(&["sh", "-c", &script, "sh", name])?;
    ensure!(
        output.code == 0,
        "devices of {name}: {}",
        output.stderr.trim()
    );
    Ok(())
}

fn usage(host: &Host, guest: &Guest) -> Result<Usage> {
    let path = format!(
        "{PRELUDE}xenstore-read $(printf \"$usage/%s \" {})",
        USAGE.join(" ")
    );
    let read = host.ok(&["sh", "-c", &path, "sh", &guest.name])?;
    let mut used = Usage::default();
    let mut lines = read.lines();
    for (name, value) in USAGE.iter().zip(&mut used) {
        *value = lines
            .next()
            .and_then(|line| line.trim().parse().ok())
            .with_context(|| format!("usage/{name}: {read:?}"))?;
    }
    Ok(used)
}
