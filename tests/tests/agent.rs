//! The agent's half that knows Xen, on real hosts: live domains read by it, and built from what it sends,
//! with itself, the stock toolstack or a file at the other end.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use unmoved_lab::images::GuestKernel;
use unmoved_lab::stream_tools::StreamTools;
use unmoved_lab::tools::Tools;
use unmoved_lab::{Config, Guest, Host, Lab, Xen};
use unmoved_tests::direct::{self, RECEIVE, Sender, UNMOVED, XL_RECEIVE};
use unmoved_tests::unnoticed;

const BOOT: Duration = Duration::from_secs(300);
const MOMENT: Duration = Duration::from_secs(120);
/// All that the guest sees is read and hashed: minutes where other work takes the processors.
const LONG: Duration = Duration::from_secs(900);
const FILE: &str = "/root/web1.save";
/// The console of a guest that arrived in another way than by migration appends to its own.
const FORGET: &str = "rm -f /var/log/xen/console/guest-web1*.log";

/// An unfriendly guest with disk, network and clocks, by agents from host to host and back, beside the
/// same by the stock toolstack.
#[test]
fn agents_move_an_unfriendly_guest_that_does_not_notice() {
    Lab::run("agents", &Config::hosts(2), |lab| {
        let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
        for host in [lab.host(0), lab.host(1)] {
            direct::install(host)?;
        }
        let by_agents = |guest: &str, from: &Host, to: &Host| {
            direct::by(Sender::Unmoved, RECEIVE, guest, from, to)
        };
        let ours = unnoticed::run(lab, &kernel, &by_agents, 1)?;
        ensure!(ours.noticed().is_empty(), "{:?}", ours.noticed());
        lab.host(0).ok(&["xl", "destroy", "web1"])?;
        for host in [lab.host(0), lab.host(1)] {
            host.sh(FORGET)?;
        }
        let xls = unnoticed::run(lab, &kernel, &unnoticed::by_xl, 1)?;
        // Times are for people: a test that ran on a loaded machine would be wrong about them.
        for (name, moves) in [("unmoved", &ours.moves), ("xl", &xls.moves)] {
            for (number, one) in moves.iter().enumerate() {
                println!(
                    "{name:8} move {}: {:6.1} s, blackout {:7.1} ms",
                    number + 1,
                    one.total.as_secs_f64(),
                    one.blackout_us() as f64 / 1e3
                );
            }
        }
        Ok(())
    })
    .unwrap();
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
        let plan = unnoticed::plan(&kernel)?;
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

/// What one tool saves the other restores, on both releases of Xen.
#[test]
fn xl_restores_what_unmoved_saves_and_the_other_way_round() {
    for (name, xen) in [("files", Xen::V4_17), ("files-new", Xen::V4_20)] {
        let mut config = Config::hosts(1);
        config.hosts = vec![xen];
        Lab::run(name, &config, |lab| {
            let kernel = GuestKernel::Debian12.get(&Tools::get()?)?;
            let host = lab.host(0);
            direct::install(host)?;
            let plan = unnoticed::plan(&kernel)?;
            let guest = plan.create(host)?;
            guest.ready(BOOT)?;
            let before = fingerprint(&guest, host)?;
            let ours = [UNMOVED, "direct"];
            let xls = ["xl"];
            for (save, restore) in [(&ours[..], &xls[..]), (&xls[..], &ours[..])] {
                host.ok(&[save, &["save", "web1", FILE]].concat())?;
                ensure!(names(host)?.is_empty(), "{:?}", names(host)?);
                if save == ours {
                    accepted_by_xens_verifier(lab, host)?;
                }
                host.sh(FORGET)?;
                let restored = Guest::attach_incoming(&plan.name, host)?;
                let same_name = Guest::attach(&plan.name, host)?;
                host.ok(&[restore, &["restore", FILE]].concat())?;
                // Xen's tool restores under the final name, ours as if it had come by migration.
                let restored = if restore == xls { same_name } else { restored };
                restored.alive(MOMENT)?;
                ensure!(fingerprint(&restored, host)? == before, "it saw {save:?}");
            }
            host.sh(&format!("rm -f {FILE}"))?;

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
        .unwrap();
    }
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
