//! The agent's half that knows Xen, on real hosts: live domains read by it, and built from what it sends,
//! with itself, the stock toolstack or a file at the other end.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use unmoved_lab::images::GuestKernel;
use unmoved_lab::stream_tools::StreamTools;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, Host, Lab, Xen};
use unmoved_tests::direct::{self, RECEIVE, Sender, UNMOVED, XL_RECEIVE};
use unmoved_tests::load::Load;
use unmoved_tests::{agents, unnoticed};

const BOOT: Duration = Duration::from_secs(600);
const MOMENT: Duration = Duration::from_secs(300);
/// All that the guest sees is read and hashed: minutes where other work takes the processors.
const LONG: Duration = Duration::from_secs(900);
const FILE: &str = "/root/web1.save";
/// The console of a guest that arrived in another way than by migration appends to its own.
const FORGET: &str = "rm -f /var/log/xen/console/guest-web1*.log";

/// An unfriendly guest with disk, network and clocks, from host to host and back by `unmoved migrate`,
/// with all that an operator would ask before, meanwhile and afterwards; the way back over two connections.
#[test]
fn agents_move_an_unfriendly_guest_that_does_not_notice() {
    Lab::run("agents", &Config::hosts(2), |lab| {
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        agents::start(lab)?;
        let first = Cell::new(true);
        let by_agents = |guest: &str, from: &Host, to: &Host| {
            let mut options: &[&str] = &["--parallel", "2", "--compress", "zstd"];
            if first.take() {
                options = &[];
                others_are_left_alone(guest, from, to)?;
                killed_while_looking(guest, from, to)?;
                looked_at(guest, from, to)?;
                aborted(guest, from, to)?;
                overtaken(guest, from, to, NO_ROOM, "No space left")?;
                overtaken(guest, from, to, KILLED, "Failed to save domain")?;
            }
            let (total, report) = agents::migrate(guest, from, to, options)?;
            reported(&report)?;
            Ok(total)
        };
        let seen = unnoticed::run(lab, &kernel, &by_agents, 1)?;
        ensure!(seen.noticed().is_empty(), "{:?}", seen.noticed());
        // Times are for people: a test that ran on a loaded machine would be wrong about them.
        seen.tell("unmoved migrate");
        for host in &lab.hosts {
            let problems = host.run(&[UNMOVED, "doctor"])?;
            ensure!(problems.code == 0, "{}", problems.stdout);
            ensure!(weight(host)? == USUAL, "{} has priority", host.name());
        }
        Ok(())
    })
    .unwrap();
}

/// Runs `xl migrate` of a guest to a receiver that takes some of the memory, waits for a file, and fails.
const HANGING: &str = "cat >/root/hangs <<'END'
printf 'xl migration receiver ready, send binary domain data.\\n'
head -c 3000000 >/dev/null; touch /root/under-way
until [ -e /root/goes-on ]; do sleep 0.2; done; exit 1
END
echo 'xl migrate -s \"\" \"$1\" \"sh /root/hangs\"; touch /root/ended' >/root/moves
setsid sh /root/moves \"$1\" >/root/xl.log 2>&1 </dev/null &
for i in $(seq 600); do [ ! -e /root/under-way ] || exit 0; sleep 0.2; done; cat /root/xl.log >&2; exit 1";
/// Lets it fail, and gives what it said.
const GO_ON: &str = "touch /root/goes-on
for i in $(seq 600); do [ ! -e /root/ended ] || break; sleep 0.2; done; cat /root/xl.log";
/// Saves a guest by the toolstack to where there is no room for it, and says what came of it.
const NO_ROOM: &str = "mkdir -p /root/small && mount -t tmpfs -o size=2m none /root/small || exit 1
xl save -c \"$1\" /root/small/file 2>&1; umount /root/small";
/// Begins such a save, kills its helper as soon as it is there, and says what came of it.
const KILLED: &str = "xl save -c \"$1\" /root/killed >/root/killed.log 2>&1 </dev/null &
for i in $(seq 1000); do helper=$(pgrep -x libxl-save-help) && break; sleep 0.02; done
sleep 0.2; kill -KILL $helper || exit 1
wait; cat /root/killed.log; rm -f /root/killed";
/// The control domain's weight as it is, and while a guest is copied.
const USUAL: &str = "256";
const RAISED: &str = "1024";
/// If an agent has raised it.
const IS_RAISED: &str = "[ -e /run/unmoved/weight ]";
/// If a guest is marked as one that an agent reads.
const IS_MARKED: &str = "xenstore-ls /tool/unmoved/source 2>/dev/null | grep -q =";

/// While `xl migrate` reads a guest, agents keep off: Xen records writes for one only.  When its way is cut
/// it leaves the recording on, which must not keep them off for ever.
fn others_are_left_alone(guest: &str, from: &Host, to: &Host) -> Result<()> {
    from.ok(&["sh", "-c", HANGING, "sh", guest])?;
    let refused = agents::refused(from, &["check", guest, to.name()])?;
    ensure!(refused.contains("is saving or migrating"), "{refused}");
    let end = from.sh(GO_ON)?;
    // It was not us who made it fail.
    ensure!(
        end.contains("Migration failed") && !end.contains("logdirty"),
        "{end}"
    );
    ensure!(names(from)? == [guest], "it had an effect");
    Ok(())
}

/// A save by the toolstack that came and went while an agent copies, by itself or because somebody killed it,
/// has taken the record of writes with it: the agent gives up, and the guest stays whole where it is.
fn overtaken(guest: &str, from: &Host, to: &Host, save: &str, end: &str) -> Result<()> {
    let job = agents::begin(guest, from, to, &["--bandwidth", "1M"])?;
    let watch = agents::watch(from, &job)?;
    watch.stderr.wait_for("round 1", MOMENT)?;
    let saved = from.ok(&["sh", "-c", save, "sh", guest])?;
    ensure!(saved.contains(end), "{saved}");
    let end = watch.wait(MOMENT)?;
    let is_told = end.stderr.contains("is saving or migrating");
    ensure!(end.code != 0 && is_told, "{end:?}");
    ensure!(
        names(from)? == [guest] && names(to)?.is_empty(),
        "it had an effect"
    );
    Ok(())
}

/// A daemon that dies while it watches a guest takes its hands off when it is started again.
fn killed_while_looking(guest: &str, from: &Host, to: &Host) -> Result<()> {
    let host = to.name();
    from.sh(&format!(
        "daemon=$(pgrep -x unmovedd)
         setsid {UNMOVED} check {guest} {host} >/root/check.log 2>&1 </dev/null &
         for i in $(seq 1200); do {IS_RAISED} && break; sleep 0.05; done
         kill -KILL $daemon && {IS_MARKED} || {{ cat /root/check.log >&2; exit 1; }}"
    ))?;
    agents::run_daemon(from)?;
    from.sh(&format!("! {IS_MARKED} && ! {IS_RAISED}"))?;
    ensure!(weight(from)? == USUAL, "it kept its priority");
    Ok(())
}

/// `list`, `check` and `hosts` tell what is there and change nothing.
fn looked_at(guest: &str, from: &Host, to: &Host) -> Result<()> {
    let list = agents::ask(from, &["list"])?;
    ensure!(list[0]["name"] == guest && list[0]["vcpus"] == 1, "{list}");
    let check = agents::ask(from, &["check", guest, to.name()])?;
    let expected = &check["prediction"];
    ensure!(expected["rounds"].as_u64() >= Some(2), "{check}");
    ensure!(expected["total_ms"].as_f64() > Some(0.0), "{check}");
    ensure!(
        check["estimate"]["pages"].as_u64() > Some(20_000),
        "{check}"
    );
    let refused = agents::refused(from, &["check", guest, "nowhere"])?;
    ensure!(refused.contains("no peer nowhere"), "{refused}");
    ensure!(
        agents::ask(from, &["status"])? == json!([]),
        "a check is no job"
    );
    ensure!(
        names(from)? == [guest] && names(to)?.is_empty(),
        "it had an effect"
    );
    Ok(())
}

/// A job in the middle can be watched and aborted; nobody else gets the guest meanwhile.
fn aborted(guest: &str, from: &Host, to: &Host) -> Result<()> {
    let job = agents::begin(guest, from, to, &["--bandwidth", "1M"])?;
    let watch = agents::watch(from, &job)?;
    watch.stderr.wait_for("round 1", MOMENT)?;
    for again in ["migrate", "check"] {
        let refused = agents::refused(from, &[again, guest, to.name()])?;
        ensure!(
            refused.contains("migrating or saving this guest"),
            "{refused}"
        );
    }
    let there = agents::ask(to, &["status"])?;
    ensure!(
        there[0]["direction"] == "incoming" && there[0]["id"] == *job,
        "{there}"
    );
    for host in [from, to] {
        ensure!(weight(host)? == RAISED, "{} has no priority", host.name());
    }
    let refused = agents::refused(to, &["abort", &job])?;
    ensure!(refused.contains("abort the job at its source"), "{refused}");
    agents::ask(from, &["abort", &job])?;
    let end = watch.wait(MOMENT)?;
    ensure!(end.code != 0 && end.stderr.contains("aborted"), "{end:?}");
    ensure!(
        names(from)? == [guest] && names(to)?.is_empty(),
        "it had an effect"
    );
    let there = agents::ask(to, &["status", &job])?;
    ensure!(there["statistics"]["success"] == false, "{there}");
    Ok(())
}

/// The control domain's weight with the scheduler, as the toolstack tells it.
fn weight(host: &Host) -> Result<String> {
    host.sh("set -- $(xl sched-credit2 -d 0 | tail -n 1); printf %s \"$3\"")
}

/// The report compares what was expected with what came.
fn reported(report: &Value) -> Result<()> {
    let figure = |name: &str| report[name].as_f64().filter(|value| *value > 0.0);
    for name in [
        "total_ms",
        "blackout_ms",
        "rounds",
        "bytes_on_wire",
        "bytes_total",
        "predicted_total_ms",
        "predicted_blackout_ms",
    ] {
        ensure!(figure(name).is_some(), "no {name}: {report}");
    }
    // Pages of zeros are not sent, and a guest of this size has many.
    ensure!(figure("bytes_on_wire") < figure("bytes_total"), "{report}");
    ensure!(figure("blackout_ms") < figure("total_ms"), "{report}");
    Ok(())
}

/// Each end of a move may be Xen's own.
#[test]
fn an_agent_works_with_the_stock_toolstack_at_the_other_end() {
    Lab::run("stock-ends", &Config::hosts(2), |lab| {
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        let (a, b) = (lab.host(0), lab.host(1));
        for host in [a, b] {
            direct::install(host)?;
        }
        let plan = unnoticed::plan(&kernel, Load::Steady)?;
        let guest = plan.create(a)?;
        guest.ready(BOOT)?;
        let before = fingerprint(&guest, a)?;
        let ends = [
            (Sender::Unmoved, XL_RECEIVE, a, b),
            (Sender::Xl, RECEIVE, b, a),
        ];
        for (sender, receiver, from, to) in ends {
            to.sh(FORGET)?;
            let arrived = Guest::attach_incoming(&plan.name, to)?;
            direct::by(sender, receiver, &plan.name, from, to)?;
            arrived.alive(MOMENT)?;
            ensure!(fingerprint(&arrived, to)? == before, "it saw {sender:?}");
            ensure!(
                names(from)?.is_empty(),
                "a copy is left: {:?}",
                names(from)?
            );
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn xl_restores_what_unmoved_saves_and_the_other_way_round() {
    files("files", Xen::V4_17).unwrap();
}

#[test]
fn xl_restores_what_unmoved_saves_and_the_other_way_round_on_the_newer_xen() {
    files("files-new", Xen::V4_20).unwrap();
}

/// What one tool saves the other restores.
fn files(name: &str, xen: Xen) -> Result<()> {
    let mut config = Config::hosts(1);
    config.hosts = vec![xen];
    Lab::run(name, &config, |lab| {
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        let host = lab.host(0);
        agents::start(lab)?;
        let plan = unnoticed::plan(&kernel, Load::Steady)?;
        let guest = plan.create(host)?;
        guest.ready(BOOT)?;
        let before = fingerprint(&guest, host)?;
        let (ours, daemons, xls) = ([UNMOVED, "direct"], [UNMOVED], ["xl"]);
        for (save, restore) in [
            (&ours[..], &xls[..]),
            (&xls[..], &ours[..]),
            (&daemons[..], &daemons[..]),
        ] {
            host.ok(&[save, &["save", "web1", FILE]].concat())?;
            ensure!(names(host)?.is_empty(), "{:?}", names(host)?);
            accepted_by_xens_verifier(lab, host)?;
            host.sh(FORGET)?;
            let restored = Guest::attach_incoming(&plan.name, host)?;
            let same_name = Guest::attach(&plan.name, host)?;
            host.ok(&[restore, &["restore", FILE]].concat())?;
            // Xen's tool restores under the final name, ours as if it had come by migration.
            let restored = if restore == xls { same_name } else { restored };
            restored.alive(MOMENT)?;
            ensure!(fingerprint(&restored, host)? == before, "it saw {save:?}");
            // Ours never write over a file.
            host.sh(&format!("rm {FILE}"))?;
        }

        // What the guest does not survive leaves it running: a file that cannot be written.
        let refused = host.run(&[UNMOVED, "direct", "save", "web1", "/proc/nothing"])?;
        ensure!(refused.code != 0, "it wrote into /proc");
        ensure!(names(host)? == ["web1"], "{:?}", names(host)?);
        ensure!(
            host.ok(&["xl", "list", "web1"])?.lines().count() == 2,
            "the guest is gone"
        );
        Ok(())
    })
}

fn accepted_by_xens_verifier(lab: &Lab, host: &Host) -> Result<()> {
    let file = lab.folder().join("web1.save");
    host.copy_out(FILE, &file)?;
    let mut verify = StreamTools::get()?.verify();
    let output = verify.arg("-i").arg(&file).args(["-f", "xl"]).output()?;
    std::fs::remove_file(&file)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "verify-stream-v2: {said}");
    Ok(())
}

/// What the guest can see, as one number.
fn fingerprint(guest: &Guest, host: &Host) -> Result<Value> {
    Ok(guest.order(host, "fingerprint hash", LONG)?["sha256"].clone())
}

/// The host's guests.
fn names(host: &Host) -> Result<Vec<String>> {
    let list = host.ok(&["xl", "list"])?;
    let names = list
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    Ok(names
        .filter(|name| *name != "Domain-0")
        .map(str::to_owned)
        .collect())
}
