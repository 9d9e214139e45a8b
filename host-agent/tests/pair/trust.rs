//! What a destination believes of a peer: which disks are shared, what a guest may have, whose certificate
//! counts, and what is shown of what it says.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use unmoved::daemon::local;
use unmoved::job::{JobOptions, Presence};
use unmoved::transport::tls::fingerprint;

use crate::attacked::{Attacked, ask, call, control, hello, secure};
use crate::daemons::{Pair, REVOKED};
use crate::ended;
use crate::fake::config;

const DISK: &str = "/dev/vg/web1";

fn with_disk(disk: &str) -> Pair {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.a.give("u-1", disk);
    pair
}

/// Why the guest cannot be moved: found out by a look, and again by the move itself.
fn refused(pair: &Pair, options: &JobOptions) -> String {
    let check = pair.left.check("guest", "b", options.clone());
    let looked = check.unwrap_err().to_string();
    let job = pair.left.migrate("test", "guest", "b", options.clone());
    let moved = ended(&job.unwrap()).unwrap_err();
    assert!(
        moved.contains(looked.trim_start_matches("the destination: ")),
        "{looked} {moved}"
    );
    assert_eq!(pair.a.presence("u-1"), Presence::Running);
    assert_eq!(pair.b.presence("u-1"), Presence::Absent);
    looked
}

fn moves(pair: &Pair, options: JobOptions) {
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    ended(&job).unwrap();
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
}

/// Two local volumes have the same name: the guest would go on over the data of another.
#[test]
fn a_disk_of_the_same_name_is_not_taken_for_the_same_disk() {
    let pair = with_disk(DISK);
    pair.a.attach(DISK, "WWID naa.6001");
    pair.b.attach(DISK, "WWID naa.6002");
    let why = refused(&pair, &JobOptions::default());
    assert!(
        why.contains("naa.6001") && why.contains("naa.6002"),
        "{why}"
    );
    pair.b.attach(DISK, "WWID naa.6001");
    pair.left
        .check("guest", "b", JobOptions::default())
        .unwrap();
    moves(&pair, JobOptions::default());
}

#[test]
fn where_nothing_proves_that_a_disk_is_shared_the_operator_has_to_say_so() {
    let pair = with_disk(DISK);
    pair.a.attach(DISK, "WWID naa.6001");
    let why = refused(&pair, &JobOptions::default());
    assert!(why.contains("--shared-storage=/dev/vg/web1"), "{why}");
    let said = |disk: &str| JobOptions {
        shared_storage: vec![disk.to_owned()],
        ..JobOptions::default()
    };
    // A word for a disk that there is not is a mistake, not a word for all.
    let check = pair.left.check("guest", "b", said("/dev/vg/web2"));
    let why = check.unwrap_err().to_string();
    assert!(why.contains("has no writable disk /dev/vg/web2"), "{why}");
    moves(&pair, said(DISK));
}

#[test]
fn a_guest_has_nothing_of_the_host_but_what_is_allowed() {
    let pair = with_disk("/dev/sda");
    for host in [&pair.a, &pair.b] {
        host.attach("/dev/sda", "the same");
    }
    let why = refused(&pair, &JobOptions::default());
    assert!(
        why.contains("/dev/sda") && why.contains("`volumes` of [allow]"),
        "{why}"
    );

    let pair = with_disk(DISK);
    for host in [&pair.a, &pair.b] {
        host.attach(DISK, "the same");
    }
    pair.a.boot("u-1", "/etc/shadow");
    let why = refused(&pair, &JobOptions::default());
    assert!(
        why.contains("/etc/shadow") && why.contains("`files` of [allow]"),
        "{why}"
    );
}

#[test]
fn a_certificate_that_is_revoked_counts_for_no_new_connection() {
    let attacked = Attacked::begin();
    let folder = attacked.pair.folder.path().to_owned();
    let own = CertificateDer::from_pem_file(folder.join("pki/a.pem")).unwrap();
    let print = fingerprint(&own);
    let pairs: Vec<_> = print
        .as_bytes()
        .chunks(2)
        .map(String::from_utf8_lossy)
        .collect();
    // As openssl prints it, too.
    for entry in [
        format!("{print} # alpha, stolen"),
        pairs.join(":").to_uppercase(),
    ] {
        fs::write(folder.join(REVOKED), format!("# all\n\n{entry}\n")).unwrap();
        let (mut stream, below) = secure(&attacked.pair, "pki", "a").unwrap();
        let who = below.local_addr().unwrap().to_string();
        ask(&mut stream, &hello()).unwrap_err();
        attacked.is_audited("b", &who, "is revoked here");
    }
    // Nor is anybody believed while the list cannot be read.
    for list in ["no fingerprint\n", "abcd\n"] {
        fs::write(folder.join(REVOKED), list).unwrap();
        let (mut stream, _) = secure(&attacked.pair, "pki", "a").unwrap();
        ask(&mut stream, &hello()).unwrap_err();
    }
    fs::write(folder.join(REVOKED), "").unwrap();
    control(&attacked.pair);
    attacked.refuse_if_stopping();
}

/// More than were let in before peers had room of their own.
#[test]
fn who_connects_and_says_nothing_keeps_no_peer_out() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    let connect = |_| TcpStream::connect(pair.address).unwrap();
    let silent: Vec<_> = (0..200).map(connect).collect();
    moves(&pair, JobOptions::default());
    drop(silent);
}

fn status(pair: &Pair) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmoved"));
    command
        .arg("--socket")
        .arg(pair.folder.path().join("b.sock"));
    let output = command.arg("status").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A reason could fill disk and memory for a month, make `status` fail, and write lines of its own there.
#[test]
fn what_a_peer_says_is_short_and_one_line_wherever_it_is_kept() {
    let pair = Pair::start();
    local::serve(&pair.right).unwrap();
    let mut source = control(&pair);
    let needs: Value = json!({
        "name": "n", "destination_name": "n", "uuid": "u-9", "source_domid": 1, "memory_bytes": 4096,
        "vcpus": 1, "disks": [], "xen_version": "4.17.0", "config": config("u-9", &[], None),
    });
    let session = "0a".repeat(16);
    let request = json!({
        "needs": needs, "leave_paused": false, "parallel": 1, "seal": "00".repeat(32),
    });
    let reserve = call(&session, 1, &json!({ "reserve": request }));
    let answer = ask(&mut source, &reserve).unwrap();
    assert_eq!(answer["reply"]["cookie"]["answer"], "continue", "{answer}");
    let nasty = format!(
        "\u{1b}[2J\u{1b}[H\nffffffff  db1 to beta  HELD: \u{202e}{}",
        "x".repeat(2_500_000)
    );
    let answer = ask(&mut source, &call(&session, 2, &json!({ "failed": nasty }))).unwrap();
    assert_eq!(answer["reply"]["status"], "failed", "{answer}");
    let shown = status(&pair);
    assert!(
        shown.len() < 2000 && shown.lines().count() == 1,
        "{shown:?}"
    );
    assert!(
        !shown.contains('\u{1b}') && !shown.contains('\u{202e}'),
        "{shown:?}"
    );
    assert!(shown.contains(r"\u{1b}[2J"), "{shown:?}");
    for file in [
        format!("b/destination/{session}.journal"),
        "b/audit.log".to_owned(),
    ] {
        let text = fs::read_to_string(pair.folder.path().join(&file)).unwrap();
        assert!(text.len() < 10_000, "{file}: {} bytes", text.len());
    }
}
