//! The toolstack's commands do to a guest under our shim what they do to one under Xen's own: the same
//! script is played on both, and its outcomes are compared.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use unmoved_lab::images::GuestKernel;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, GuestPlan, Host, Lab, System, initramfs, programs};

const BOOT: Duration = Duration::from_secs(300);
const MOMENT: Duration = Duration::from_secs(60);
/// Stock xen-shim under emulation stalls now and then (`lab/README.md`): it gets more chances.
const ATTEMPTS: usize = 3;

fn plan(system: System) -> Result<GuestPlan> {
    let files = GuestKernel::Debian12.get(&Tools::get()?)?;
    let mut plan = GuestPlan::new("guest", system, files.unpacked());
    plan.initrd = Some(initramfs::workload(&files)?);
    plan.arguments += " quiet unmoved.heartbeat=1";
    // The last one of a key counts.
    plan.lines.push("on_reboot = \"restart\"".to_owned());
    Ok(plan)
}

/// What the script showed, a line for each command.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcomes(Vec<String>);

impl Outcomes {
    fn add(&mut self, command: &str, outcome: impl std::fmt::Display) {
        println!("  {command}: {outcome}");
        self.0.push(format!("{command}: {outcome}"));
    }
}

/// Plays the whole script.
fn play(host: &Host, system: System) -> Result<Outcomes> {
    let mut outcomes = Outcomes::default();
    let plan = plan(system)?;
    let guest = plan.create(host)?;
    let is_ready = |report: &Value| report["ev"] == "ready";
    guest.report_unless_still(host, 0, BOOT, is_ready)?;

    let listed = host.ok(&["xl", "list", "guest"])?;
    let words: Vec<&str> = listed
        .lines()
        .last()
        .context("no line")?
        .split_whitespace()
        .collect();
    ensure!(words.len() == 6, "{listed}");
    let state = words[4].chars().filter(|letter| *letter != '-');
    let lives = state.clone().all(|letter| "rb".contains(letter));
    outcomes.add(
        "xl list",
        format!(
            "{} with {} MiB and {} CPU, lives: {lives}",
            words[0], words[2], words[3]
        ),
    );

    console(host, &mut outcomes)?;

    let mark = guest.console.mark();
    host.ok(&["xl", "sysrq", "guest", "h"])?;
    guest
        .console
        .wait_for_after(mark, "sysrq: HELP|SysRq : HELP", MOMENT)?;
    outcomes.add("xl sysrq", "the kernel gives help");

    balloon(host, &guest, &mut outcomes)?;

    let (before, mark) = (domid(host)?, guest.console.mark());
    host.ok(&["xl", "reboot", "guest"])?;
    guest.report_unless_still(host, mark, BOOT, is_ready)?;
    outcomes.add(
        "xl reboot",
        format!("another domain: {}", domid(host)? != before),
    );

    host.ok(&["xl", "shutdown", "-w", "guest"])?;
    until(host, "! xl domid guest 2>/dev/null")?;
    outcomes.add("xl shutdown", "the domain is gone");

    drop(guest);
    // While it boots.
    let _guest = plan.start(host)?;
    host.ok(&["xl", "destroy", "guest"])?;
    let left = host.run(&["xl", "domid", "guest"])?;
    outcomes.add(
        "xl destroy",
        format!("the domain is gone: {}", left.code != 0),
    );
    let zombies = host.sh("xl list | grep -c '(null)' || true")?;
    outcomes.add(
        "xl list",
        format!("{} domains without a name", zombies.trim()),
    );
    Ok(outcomes)
}

/// An order that is typed at `xl console` is carried out, and its report shown there.
fn console(host: &Host, outcomes: &mut Outcomes) -> Result<()> {
    // On a pipe it would only show.
    let terminal = "EXEC:xl console guest,pty,rawer,setsid,ctty";
    let console = host.start(&["socat", "-", terminal])?;
    console
        .stdout
        .wait_for("\"ev\":\"alive\"", MOMENT)
        .context("xl console shows nothing")?;
    console.write(b"#typed balloon\n")?;
    console
        .stdout
        .wait_for("\"re\":\"typed\"", MOMENT)
        .context("xl console types nothing")?;
    console.signal(15)?;
    outcomes.add("xl console", "carries both ways");
    Ok(())
}

/// Down by 64 MiB of configured memory and up again.
///
/// How much of it the guest gives differs: Xen's own shim passes the target on without its own share.
fn balloon(host: &Host, guest: &Guest, outcomes: &mut Outcomes) -> Result<()> {
    let current = |guest: &Guest| -> Result<u64> {
        let report: Value = guest.order(host, "balloon", MOMENT)?;
        report["current_kib"].as_u64().context("no balloon")
    };
    let first = current(guest)?;
    let less = |at: u64| at + (32 << 10) <= first;
    let as_before = |at: u64| at == first;
    for (mib, there) in [("192", &less as &dyn Fn(u64) -> bool), ("256", &as_before)] {
        host.ok(&["xl", "mem-set", "guest", mib])?;
        let mut at = current(guest)?;
        for _ in 0..200 {
            if there(at) {
                break;
            }
            at = current(guest)?;
        }
        println!("  {at} KiB of {first} KiB");
        outcomes.add(&format!("xl mem-set {mib}"), format!("done: {}", there(at)));
    }
    Ok(())
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

/// Plays the script until Xen's own shim does not stall in it.
fn reference(host: &Host) -> Result<Outcomes> {
    for attempt in 1..=ATTEMPTS {
        match play(host, System::XenShim) {
            Ok(outcomes) => return Ok(outcomes),
            Err(error) => println!("attempt {attempt} with stock xen-shim: {error:#}"),
        }
        host.run(&["xl", "destroy", "guest"])?;
        host.sh("rm -f /var/log/xen/console/guest-guest*")?;
    }
    bail!("stock xen-shim failed {ATTEMPTS} times");
}

#[test]
fn the_toolstacks_commands_do_what_they_do_under_xens_own_shim() {
    Lab::run("toolstack", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        let ours = play(host, System::Shim(programs::shim()?))?;
        host.sh("rm -f /var/log/xen/console/guest-guest*")?;
        assert_eq!(ours, reference(host)?);
        Ok(())
    })
    .unwrap();
}
