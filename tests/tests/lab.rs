//! The lab itself: hosts start, obey, talk to each other, and can be cut off.

use std::fs;
use std::time::{Duration, Instant};

use unmoved_lab::{Config, Host, Lab, Xen};

const LONG: Duration = Duration::from_secs(120);

/// The minor version of a host's Xen.
fn minor(host: &Host) -> anyhow::Result<String> {
    let info = host.ok(&["xl", "info"])?;
    let line = info.lines().find(|line| line.starts_with("xen_minor"));
    let value = line.and_then(|line| line.split(':').nth(1));
    Ok(value.unwrap_or_default().trim().to_owned())
}

#[test]
fn a_host_obeys_and_carries_files() {
    Lab::run("obeys", &Config::hosts(1), |lab| {
        let host = lab.host(0);
        assert_eq!(minor(host)?, "17");
        let output = host.run(&["sh", "-c", "cat; echo no >&2; exit 7"])?;
        assert_eq!((output.code, output.stderr.as_str()), (7, "no\n"));
        assert!(host.run(&["/no/such/program"]).is_err());

        let task = host.start(&["sh", "-c", "read line; echo got $line; exec sleep 1000"])?;
        task.write(b"this\n")?;
        task.stdout.wait_for("got this", LONG)?;
        task.signal(15)?;
        assert_eq!(task.wait(LONG)?.code, 128 + 15);

        // Larger than the window, and no whole number of blocks.
        let content: Vec<u8> = (0..70_000_001_u32).map(|n| (n ^ (n >> 9)) as u8).collect();
        let (sent, back) = (lab.folder().join("sent"), lab.folder().join("back"));
        fs::write(&sent, &content)?;
        let begun = Instant::now();
        host.copy_in(&sent, "/root/file")?;
        let there = begun.elapsed();
        host.copy_out("/root/file", &back)?;
        let both = begun.elapsed();
        println!("70 MB: in {there:?}, out {:?}", both.saturating_sub(there));
        assert!(fs::read(&back)? == content, "the file came back changed");
        Ok(())
    })
    .unwrap();
}

#[test]
fn two_hosts_share_a_lan_and_a_disk() {
    Lab::run("pair", &Config::hosts(2), |lab| {
        let (a, b) = (lab.host(0), lab.host(1));
        a.ok(&["ping", "-c", "3", "-W", "20", &b.address()])?;
        a.sh("echo written by a | dd of=/dev/vda bs=512 conv=sync oflag=direct")?;
        let read = b.sh("dd if=/dev/vda bs=512 count=1 iflag=direct")?;
        assert!(read.starts_with("written by a\n"));

        lab.hosts[1].set_link(false)?;
        let (a, b) = (lab.host(0), lab.host(1));
        let lost = a.run(&["ping", "-c", "2", "-W", "2", &b.address()])?;
        assert_ne!(lost.code, 0, "a ping came through a cut cable");
        // Commands do not travel over the LAN.
        assert_eq!(b.ok(&["echo", "here"])?, "here\n");
        lab.hosts[1].set_link(true)?;
        let (a, b) = (lab.host(0), lab.host(1));
        a.ok(&["ping", "-c", "1", "-w", "60", &b.address()])?;
        Ok(())
    })
    .unwrap();
}

#[test]
fn two_labs_run_side_by_side() {
    Lab::run("one", &Config::hosts(1), |one| {
        one.host(0)
            .sh("echo one >/root/mark; dd if=/root/mark of=/dev/vda bs=512 conv=sync")?;
        Lab::run("other", &Config::hosts(1), |other| {
            assert_ne!(one.host(0).pid(), other.host(0).pid());
            assert!(other.host(0).sh("cat /root/mark").is_err());
            let disk = other.host(0).sh("head -c 3 /dev/vda | tr '\\0' .")?;
            assert_eq!(disk, "...");
            Ok(())
        })?;
        assert_eq!(one.host(0).sh("cat /root/mark")?, "one\n");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_host_pauses_and_dies_on_demand() {
    Lab::run("power", &Config::hosts(1), |lab| {
        let task = lab
            .host(0)
            .start(&["sh", "-c", "while echo tick; do sleep 0.1; done"])?;
        task.stdout.wait_for("tick", LONG)?;
        lab.hosts[0].pause()?;
        lab.hosts[0].unpause()?;
        let mark = task.stdout.mark();
        task.stdout.wait_for_after(mark, "tick", LONG)?;
        lab.hosts[0].kill();
        assert!(!lab.hosts[0].is_alive());
        assert!(task.wait(LONG).is_err(), "a command survived its host");
        assert!(lab.host(0).run(&["true"]).is_err());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_host_starts_from_power_on_too() {
    let mut config = Config::hosts(1);
    config.cold = true;
    Lab::run("cold", &config, |lab| {
        let list = lab.host(0).ok(&["xl", "list"])?;
        assert!(list.contains("Domain-0"));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_host_runs_the_newer_xen() {
    let config = Config {
        hosts: vec![Xen::V4_20],
        ..Config::hosts(1)
    };
    Lab::run("newer", &config, |lab| {
        assert_eq!(minor(lab.host(0))?, "20");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_failed_run_keeps_its_logs_and_says_where() {
    let result = Lab::run("fails", &Config::hosts(1), |lab| -> anyhow::Result<()> {
        lab.host(0).ok(&["false"]).map(drop)
    });
    let error = format!("{:#}", result.unwrap_err());
    let folder = error
        .split_once("(the lab's logs are in ")
        .and_then(|(_, rest)| rest.split(')').next())
        .expect("the error names the folder");
    let log = fs::read_to_string(format!("{folder}/a/dom0.log")).unwrap();
    assert!(
        log.contains("Domain-0") && log.contains("/xenconsoled "),
        "{log}"
    );
    assert!(!fs::exists(format!("{folder}/a/disk.img")).unwrap());
    fs::remove_dir_all(folder).unwrap();
}
