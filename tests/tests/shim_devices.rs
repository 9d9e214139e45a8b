//! Devices and the store of a guest under our shim: that they work, that they come and go, that the
//! toolstack rules the guest as usual, and that nothing the guest sees is a name of the host's.
//!
//! What is not about the shim is done with a plain PV guest as well, so that a fault of the lab is
//! not taken for one of the shim's.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use unmoved_lab::images::{GuestKernel, Xen};
use unmoved_lab::programs;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, GuestPlan, Host, Lab, Scripts, System, initramfs};
use unmoved_tests::peer::{ADDRESS, PEER};
use unmoved_tests::{hotplug, peer};
use unmoved_workload::report::parse_line;

const BOOT: Duration = Duration::from_secs(600);
const MOMENT: Duration = Duration::from_secs(300);

/// How often devices come and go.
const PLUGS: usize = 3;

fn ours() -> Result<System> {
    Ok(System::Shim(programs::shim()?))
}

fn plan(system: System) -> Result<GuestPlan> {
    let files = GuestKernel::Debian12.get(&Tools::get()?)?;
    let mut plan = GuestPlan::new("guest", system, files.unpacked());
    plan.initrd = Some(initramfs::workload(&files)?);
    // An emulated TSC may be distrusted by the guest's kernel in one boot and not in another.
    plan.arguments += " quiet tsc=nowatchdog unmoved.mode=net unmoved.net=ip=192.0.2.100/24 \
                       unmoved.heartbeat=2";
    plan.disks.push("phy:/dev/vda,xvda,w".to_owned());
    plan.nics.push("mac=02:00:00:00:01:01".to_owned());
    // So that two guests of this plan have nothing that tells them apart.
    plan.lines
        .push("uuid = \"00112233-4455-6677-8899-aabbccddeeff\"".to_owned());
    Ok(plan)
}

/// The last report of a program in dom0 that must succeed.
fn peer(host: &Host, words: &[&str]) -> Result<String> {
    host.ok(&[&[PEER], words].concat())
}

/// Disk requests of all sizes with checksums, 32 at a time, and TCP and UDP streams beside it.
fn carries(host: &Host, guest: &Guest) -> Result<()> {
    guest.order(
        host,
        "disk start dev=/dev/xvda area=64M depth=32 min=4k max=1M flush=20 pause=20000",
        MOMENT,
    )?;
    host.ok(&["ping", "-c", "1", "-w", "60", ADDRESS])?;
    peer(
        host,
        &["tcp", "to=192.0.2.100:7007", "connections=2", "seconds=5"],
    )?;
    let counted = peer(host, &["udp", "to=192.0.2.100:7008", "seconds=5"])?;
    ensure!(counted.contains("\"corrupt\":0"), "{counted}");
    let stopped = guest.order(host, "disk stop", MOMENT)?;
    let disk = &stopped["disks"][0];
    ensure!(
        disk["errors"] == 0 && disk["mismatches"] == 0,
        "a disk lies: {disk}"
    );
    ensure!(disk["checked_blocks"].as_u64() > Some(0), "{disk}");
    let requests = |kind: &str| disk[kind]["requests"].as_u64();
    println!(
        "{:?} reads, {:?} writes, {:?} flushes",
        requests("read"),
        requests("write"),
        requests("flush")
    );
    Ok(())
}

#[test]
fn a_guest_under_the_shim_carries_data_on_the_newer_xen() {
    let mut config = Config::hosts(1);
    config.hosts = vec![Xen::V4_20];
    config.scripts = Scripts::Xen;
    Lab::run("carries-4.20", &config, |lab| {
        let host = lab.host(0);
        peer::install(host)?;
        let guest = plan(ours()?)?.create(host)?;
        guest.ready(BOOT)?;
        carries(host, &guest)
    })
    .unwrap();
}

fn domid(host: &Host) -> Result<String> {
    Ok(host.ok(&["xl", "domid", "guest"])?.trim().to_owned())
}

/// Waits until something in dom0 is true, which a shell can tell.
fn until(host: &Host, condition: &str) -> Result<()> {
    let script =
        format!("i=0; until {condition}; do i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.2; done");
    host.sh(&script)
        .with_context(|| format!("waited in vain for: {condition}"))
        .map(drop)
}

/// Devices come and go and leave nothing behind.
fn plugs(host: &Host, guest: &Guest) -> Result<()> {
    hotplug::plug(host, guest, PLUGS, |number, _, used| {
        println!("round {number}: {:?} are {used:?}", hotplug::USAGE);
    })
    .map(drop)
}

/// The toolstack rules the guest, to its end.
fn rules(host: &Host, guest: &Guest) -> Result<()> {
    let domid = domid(host)?;
    // Memory, down and up again.
    let before = guest.order(host, "balloon", MOMENT)?;
    let current = |report: &Value| report["current_kib"].as_u64();
    let at = before["current_kib"].as_u64().context("no balloon")?;
    for (mib, less) in [("192", 64 << 10), ("256", 0)] {
        host.ok(&["xl", "mem-set", "guest", mib])?;
        let mut report = Value::Null;
        for _ in 0..200 {
            report = guest.order(host, "balloon", MOMENT)?;
            if current(&report) == Some(at - less) {
                break;
            }
        }
        ensure!(
            current(&report) == Some(at - less),
            "at {mib} MiB, from {at}: {report}"
        );
    }
    // What either side writes where both may look.
    host.ok(&[
        "xenstore-write",
        &format!("/local/domain/{domid}/data/note"),
        "hello",
    ])?;
    let mut seen = Value::Null;
    for _ in 0..200 {
        seen = guest.order(host, "xenstore read data/note", MOMENT)?;
        if seen["found"] == "hello" {
            break;
        }
    }
    ensure!(seen["found"] == "hello", "{seen}");
    guest.order(host, "xenstore write attr/answer 42", MOMENT)?;
    let path = format!("/local/domain/{domid}/attr/answer");
    until(
        host,
        &format!("[ \"$(xenstore-read {path} 2>/dev/null)\" = 42 ]"),
    )?;
    // What it makes readable for the guest anywhere else.
    let role = format!("/local/domain/{domid}/vm-data/role");
    // It is refused while there is none.
    let has_role = || {
        let seen = guest.order(host, "xenstore read vm-data/role", MOMENT);
        seen.is_ok_and(|seen| seen["found"] == "web")
    };
    host.ok(&["xenstore-write", &role, "web"])?;
    ensure!(
        (0..200).any(|_| has_role()),
        "the guest is not shown {role}"
    );
    host.ok(&["xenstore-rm", &role])?;
    ensure!((0..200).any(|_| !has_role()), "the guest still sees {role}");
    // A key for the kernel, and the end.
    let mark = guest.console.mark();
    host.ok(&["xl", "sysrq", "guest", "h"])?;
    guest
        .console
        .wait_for_after(mark, "sysrq: HELP|SysRq : HELP", MOMENT)?;
    host.ok(&["xl", "shutdown", "-w", "guest"]).map(drop)
}

#[test]
fn a_guest_sees_no_name_of_its_host_which_gives_and_takes() {
    let print = |host: &Host, to: &str| -> Result<()> {
        peer(
            host,
            &["fingerprint", "to=192.0.2.100:7009", &format!("file={to}")],
        )
        .map(drop)
    };
    Lab::run("names", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        peer::install(host)?;
        let plan = plan(ours()?)?;
        let mut domids = Vec::new();
        for file in ["/root/one", "/root/two"] {
            let guest = plan.create(host)?;
            guest.ready(BOOT)?;
            host.ok(&["ping", "-c", "1", "-w", "60", ADDRESS])?;
            print(host, file)?;
            domids.push(domid(host)?);
            if domids.len() == 2 {
                plugs(host, &guest)?;
                rules(host, &guest)?;
                break;
            }
            host.ok(&["xl", "destroy", "guest"])?;
            host.sh("rm -f /var/log/xen/console/guest-guest*")?;
            // Each domain that was takes a number, and a port and a frame here and there.
            for _ in 0..3 {
                host.ok(&["xl", "create", "-p", &plan.path("cfg")])?;
                host.ok(&["xl", "destroy", "guest"])?;
            }
            host.sh("rm -f /var/log/xen/console/guest-guest*")?;
        }
        ensure!(domids[0] != domids[1], "{domids:?}");
        let differences = host.run(&[PEER, "diff", "before=/root/one", "after=/root/two"])?;
        ensure!(differences.code == 0, "{}", differences.stdout);
        let copy = lab.folder().join("fingerprint");
        host.copy_out("/root/two", &copy)?;
        let text = fs::read_to_string(&copy)?;
        for name in [
            format!("/local/domain/{}", domids[1]),
            format!("/vbd/{}/", domids[1]),
            format!("/vif/{}/", domids[1]),
        ] {
            ensure!(!text.contains(&name), "the guest sees {name}");
        }
        println!(
            "{} lines, the same as domain {domids:?}",
            text.lines().count()
        );
        Ok(())
    })
    .unwrap();
}

/// Sees that a guest carries data, then plays random requests in it and returns every request with its answer.
fn store_answers(host: &Host, system: System) -> Result<Vec<String>> {
    let guest = plan(system)?.create(host)?;
    guest.ready(BOOT)?;
    host.ok(&["ping", "-c", "1", "-w", "60", ADDRESS])?;
    carries(host, &guest)?;
    let order = "line=store-script seed=20 rounds=3 steps=250";
    let played = host.run(&[PEER, "order", "to=192.0.2.100:7009", order])?;
    let last = played.stdout.lines().last().unwrap_or_default();
    ensure!(played.code == 0, "{last} {}", played.stderr);
    let lines = played
        .stdout
        .lines()
        .filter_map(parse_line)
        .filter_map(Result::ok)
        .filter_map(|report| report["lines"].as_array().cloned())
        .flatten()
        .filter_map(|line| Some(line.as_str()?.to_owned()))
        .collect();
    host.ok(&["xl", "destroy", "guest"])?;
    host.sh("rm -f /var/log/xen/console/guest-guest*")?;
    Ok(lines)
}

#[test]
fn a_plain_guest_and_one_under_the_shim_carry_data_and_their_stores_answer_alike() {
    Lab::run("store", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        peer::install(host)?;
        // The first guest is domain 1, which every guest under the shim believes to be.
        let real = store_answers(host, System::Native)?;
        let ours = store_answers(host, ours()?)?;
        for (index, (one, other)) in real.iter().zip(&ours).enumerate() {
            ensure!(
                one == other,
                "line {index}:\n real {one}\n ours {other}\n after {}",
                ours[index.saturating_sub(12)..index].join("\n       ")
            );
        }
        ensure!(
            real.len() == ours.len() && real.len() > 500,
            "{} lines",
            real.len()
        );
        let errors = real.iter().filter(|line| line.contains(" ! ")).count();
        println!("{} lines, {errors} of them errors", real.len());
        Ok(())
    })
    .unwrap();
}
