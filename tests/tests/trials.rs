//! Configurations that users have and other tests do not: each boots, works and moves.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use unmoved_lab::images::{GuestKernel, KernelFiles};
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, GuestPlan, Host, Lab, System, initramfs, programs};
use unmoved_tests::load::Load;
use unmoved_tests::within::{FILE, MOMENT, Way};
use unmoved_tests::{agents, unnoticed};

const BOOT: Duration = Duration::from_secs(600);
/// Where a Linux kernel looks for its root and finds none.
const NO_ROOT: &str = "Unable to mount root fs";

fn small(name: &str, system: System, files: &KernelFiles) -> GuestPlan {
    let mut plan = GuestPlan::new(name, system, files.unpacked());
    plan.memory_mib = 96;
    plan
}

/// Without a ramdisk a guest gets as far under the shim as it does on plain Xen.  (One of no bytes the toolstack
/// refuses by itself, with either.)
fn nothing_to_start(host: &Host, files: &KernelFiles) -> Result<()> {
    for (name, system) in [
        ("plain", System::Native),
        ("shim", System::Shim(programs::shim()?)),
    ] {
        let guest = small(name, system, files).create(host)?;
        guest.wait_for(NO_ROOT, BOOT)?;
        host.ok(&["xl", "destroy", name])?;
    }
    Ok(())
}

/// A ramdisk that the kernel, not the toolstack, unpacks, and that has more in it than the shim keeps for itself.
fn large_ramdisk(host: &Host, files: &KernelFiles, folder: &Path) -> Result<()> {
    let packed = fs::read(initramfs::workload(files)?)?;
    let mut archive = unmoved_lab::cpio::Archive::new(Vec::new());
    // As a user's own files in it: what does not get smaller.
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let content: Vec<u8> = (0..(66 << 20) / 8)
        .flat_map(|_| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise.to_le_bytes()
        })
        .collect();
    archive.file("noise", 0o644, &content)?;
    let mut all = zstd::encode_all(&archive.finish()?[..], 1)?;
    ensure!(all.len() > 64 << 20, "{} bytes", all.len());
    all.resize(all.len().next_multiple_of(4), 0);
    all.extend(packed);
    let initrd = folder.join("large");
    fs::write(&initrd, all)?;
    let mut plan = small("large", System::Shim(programs::shim()?), files);
    plan.initrd = Some(initrd);
    plan.memory_mib = 400;
    let guest = plan.create(host)?;
    guest.ready(BOOT)?;
    guest.alive(MOMENT)?;
    host.ok(&["xl", "destroy", &plan.name]).map(drop)
}

/// Saved while its disk has all in flight that a guest may have: requests of a MiB, and discards among them.
fn busy_disk(host: &Host, files: &KernelFiles) -> Result<()> {
    let mut plan = small("busy", System::Shim(programs::shim()?), files);
    plan.initrd = Some(initramfs::workload(files)?);
    // Each request in flight has a buffer of a MiB in the guest.
    plan.memory_mib = 192;
    plan.disks.push("phy:/dev/vda,xvda,w".to_owned());
    let mut guest = plan.create(host)?;
    guest.ready(BOOT)?;
    let start = "disk start dev=/dev/xvda area=64M depth=32 max=1M discard=5";
    guest.order(host, start, MOMENT)?;
    for _ in 0..2 {
        guest = Way::SaveRestore.go(guest, host)?;
        guest.alive(MOMENT)?;
    }
    let disk = guest.order(host, "disk stop dev=/dev/xvda", BOOT)?["disks"][0].clone();
    ensure!(disk["errors"] == 0 && disk["mismatches"] == 0, "{disk}");
    ensure!(
        disk["discard"]["requests"].as_u64() > Some(0),
        "no discard: {disk}"
    );
    host.ok(&["xl", "destroy", &plan.name]).map(drop)
}

/// Three cards as providers configure them; a save of a paused guest, which cannot suspend itself and must not do so
/// when it is unpaused later; and a restore that leaves it paused.
fn cards_and_pauses(host: &Host, files: &KernelFiles) -> Result<()> {
    let mut plan = small("cards", System::Shim(programs::shim()?), files);
    plan.initrd = Some(initramfs::workload(files)?);
    plan.nics = vec![
        "mac=02:00:00:00:01:01,rate=10Mb/s@50ms".to_owned(),
        "mac=02:00:00:00:01:02,mtu=1400".to_owned(),
        "mac=02:00:00:00:01:03,ip=192.0.2.77".to_owned(),
    ];
    let guest = plan.create(host)?;
    guest.ready(BOOT)?;
    let mtu = |guest: &Guest, card: u32| -> Result<String> {
        let order = format!("file read /sys/class/net/eth{card}/mtu");
        let read = guest.order(host, &order, MOMENT)?;
        Ok(read["found"].as_str().unwrap_or_default().trim().to_owned())
    };
    for card in 0..3 {
        mtu(&guest, card)?;
    }
    let before = mtu(&guest, 1)?;
    host.ok(&["xl", "pause", &plan.name])?;
    let saved = host.run(&["xl", "save", &plan.name, FILE])?;
    ensure!(saved.code != 0, "it is saved: {}", saved.stderr);
    host.ok(&["xl", "unpause", &plan.name])?;
    guest.alive(MOMENT)?;
    drop(guest);
    host.ok(&["xl", "save", &plan.name, FILE])?;
    let guest = Guest::attach(&plan.name, host)?;
    host.ok(&["xl", "restore", "-p", FILE])?;
    let line = host.ok(&["xl", "list", &plan.name])?;
    ensure!(line.contains("--p---"), "it is not paused: {line}");
    host.ok(&["xl", "unpause", &plan.name])?;
    let guest = Way::SaveRestore.go(guest, host)?;
    guest.alive(MOMENT)?;
    ensure!(mtu(&guest, 1)? == before, "the MTU was {before}");
    host.ok(&["xl", "destroy", &plan.name]).map(drop)
}

#[test]
fn odd_configurations_start_and_move() {
    Lab::run("odd-configs", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        let files = GuestKernel::Debian12.get(&Tools::get()?)?;
        let folder = tempfile::tempdir()?;
        nothing_to_start(host, &files)?;
        large_ramdisk(host, &files, folder.path())?;
        busy_disk(host, &files)?;
        cards_and_pauses(host, &files)
    })
    .expect("they work");
}

/// Files behind loop devices of both hosts; of the same content, as shared storage would be.
const LOOPS: &str = "modprobe loop max_loop=64 2>/dev/null
for n in $(seq 10 35); do
    [ -e /dev/loop$n ] || mknod /dev/loop$n b 7 $n
    dd if=/dev/zero of=/root/loop$n bs=64k count=16 2>/dev/null && losetup /dev/loop$n /root/loop$n || exit 1
done";
/// Writes a guest's `data/` as fast as it can, for as long as a file is there.
const SCRIBBLE: &str = "touch /root/scribbles; (d=/local/domain/$(xl domid \"$1\")/data; n=0
    while [ -e /root/scribbles ]; do xenstore-write $d/host-says \"$n\" $d/n$((n % 50)) \"$n\"; n=$((n+1))
    echo $n >/root/scribbled; done) >/dev/null 2>&1 </dev/null &";

/// The most disks that an `xl` configuration has in practice, and a control domain that never lets the
/// guest's part of the store be.
#[test]
fn a_guest_with_many_disks_moves_while_its_host_writes_its_store() {
    Lab::run("many-disks", &Config::hosts(2), |lab| {
        agents::start(lab)?;
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        let mut plan = unnoticed::plan(&kernel, Load::Steady)?;
        for host in &lab.hosts {
            host.sh(LOOPS)?;
        }
        for (number, letter) in (10..36).zip(('b'..='z').map(String::from).chain(["aa".to_owned()]))
        {
            plan.disks
                .push(format!("phy:/dev/loop{number},xvd{letter},r"));
        }
        let (from, to) = (lab.host(0), lab.host(1));
        let guest = plan.create(from)?;
        guest.ready(BOOT)?;
        guest.alive(MOMENT)?;
        from.ok(&["sh", "-c", SCRIBBLE, "sh", &plan.name])?;
        let arrived = Guest::attach_incoming(&plan.name, to)?;
        drop(guest);
        // Nothing but a word tells that the files behind them are the same.
        let words = (10..36).map(|number| format!("--shared-storage=/dev/loop{number}"));
        let words: Vec<String> = words.collect();
        let options: Vec<&str> = words.iter().map(String::as_str).collect();
        agents::migrate(&plan.name, from, to, &options)?;
        let times = from.sh("rm -f /root/scribbles; cat /root/scribbled")?;
        ensure!(times.trim().parse::<u32>()? > 20, "{times} times");
        arrived.alive(MOMENT)?;
        let last = arrived.order(to, "file read /sys/block/xvdaa/size", MOMENT)?;
        ensure!(
            last["found"].as_str().map(str::trim) == Some("2048"),
            "{last}"
        );
        let disks = arrived.order(to, "disk stop", BOOT)?;
        ensure!(disks["disks"][0]["errors"] == 0, "{disks}");
        Ok(())
    })
    .expect("it moves");
}
