//! While a job runs, strangers and peers that break the rules do what they can.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use unmoved::daemon::local;
use unmoved::job::{JobOptions, Presence};
use unmoved::pki;
use unmoved::transport::frame::{read_message, write_message};
use unmoved::transport::tls::{Connected, Identity};
use unmoved::transport::{Socket, Watch};

use crate::daemons::Pair;
use crate::{ended, until};

/// Connects to the daemon of `b` as this host, and says hello.
fn connect(pair: &Pair, host: &str, hello: &Value) -> std::io::Result<(Connected, Value)> {
    let folder = pair.folder.path().join("pki");
    let identity = Identity::load(
        &folder.join(pki::AUTHORITY),
        &folder.join(format!("{host}.pem")),
        &folder.join(format!("{host}.key")),
    )?;
    let socket = Socket::new(
        TcpStream::connect(pair.address)?,
        Arc::new(Watch::default()),
    )?;
    let mut stream = identity.connect(socket, "b")?;
    write_message(&mut stream, hello)?;
    let welcome = read_message(&mut stream, 1 << 20)?;
    Ok((stream, welcome))
}

pub fn control(pair: &Pair) -> Connected {
    let hello = json!({ "control": { "version": 1 } });
    let (stream, welcome) = connect(pair, "a", &hello).unwrap();
    assert_eq!(welcome, "welcome");
    stream
}

pub fn ask(stream: &mut Connected, question: &Value) -> std::io::Result<Value> {
    write_message(stream, question)?;
    read_message(stream, 1 << 20)
}

/// A session's name as the job has it.
pub fn call(session: &str, number: u64, order: &Value) -> Value {
    json!({ "call": { "session": session, "call": number, "order": order } })
}

#[test]
fn nobody_disturbs_a_job() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    pair.a.hold_live(true);
    let job = pair
        .left
        .migrate("test", "guest", "b", JobOptions::default())
        .unwrap();
    until(&job, || pair.b.presence("u-1") == Presence::Partial);
    until(&job, || job.status(0).statistics.wire_bytes > 0);
    let session = job.id.as_str();

    // Plain TCP.
    let mut plain = TcpStream::connect(pair.address).unwrap();
    plain.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let _ = plain.read_to_end(&mut Vec::new());

    // Somebody who says nothing keeps only a place for strangers.
    let silent: Vec<_> = (0..3)
        .map(|_| TcpStream::connect(pair.address).unwrap())
        .collect();

    // A host with a good certificate that is no peer.
    assert!(connect(&pair, "c", &json!({ "control": { "version": 1 } })).is_err());

    // Another version.
    let (_, answer) = connect(&pair, "a", &json!({ "control": { "version": 99 } })).unwrap();
    assert!(answer["refused"].as_str().unwrap().contains("version 99"));

    // A stream for this session, with a ticket that was guessed.
    let data = json!({ "data": { "session": session, "ticket": "0".repeat(32), "lane": 0 } });
    let (_, answer) = connect(&pair, "a", &data).unwrap();
    assert!(
        answer["refused"].as_str().unwrap().contains("ticket"),
        "{answer}"
    );

    // The other peer is `b` itself: the session is not its own.
    let hello = json!({ "control": { "version": 1 } });
    let (mut other, _) = connect(&pair, "b", &hello).unwrap();
    let answer = ask(&mut other, &call(session, 1, &json!({ "failed": "x" }))).unwrap();
    assert_eq!(answer["reply"]["cookie"]["answer"], "refused", "{answer}");

    // The first step played again, and a hand-over with a token that was guessed.
    let mut again = control(&pair);
    let answer = ask(
        &mut again,
        &call(session, 7, &json!({ "take-over": "0".repeat(64) })),
    );
    assert_eq!(answer.unwrap()["reply"]["status"], "failed");
    assert!(
        ask(&mut again, &call(session, 7, &json!("retire"))).is_err(),
        "a call that comes twice ends the connection"
    );

    // A message that is too long, and one that is none.
    let mut long = control(&pair);
    long.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(long.read(&mut [0; 1]).unwrap_or(0), 0);
    let mut none = control(&pair);
    none.write_all(b"\0\0\0\x03abc").unwrap();
    assert_eq!(none.read(&mut [0; 1]).unwrap_or(0), 0);

    // All of it is written down, and the job does not know.
    let audit = std::fs::read_to_string(pair.folder.path().join("b/audit.log")).unwrap();
    for why in [
        "no host that is a peer",
        "version 99",
        "ticket",
        "came again",
        "too long",
    ] {
        assert!(
            audit.contains(why),
            "{why} is not in the audit log:\n{audit}"
        );
    }
    assert!(job.result().is_none());
    pair.a.hold_live(false);
    ended(&job).unwrap();
    assert_eq!(pair.b.presence("u-1"), Presence::Running);
    drop(silent);
}

#[test]
fn a_user_without_permission_is_refused() {
    let pair = Pair::start();
    local::serve(&pair.left).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmoved"));
    command
        .arg("--socket")
        .arg(pair.folder.path().join("a.sock"));
    command.arg("list");
    if rustix::process::geteuid().is_root() {
        assert!(command.output().unwrap().status.success());
        command.uid(65534);
    }
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("has no permission"), "{error}");
    let audit = std::fs::read_to_string(pair.folder.path().join("a/audit.log")).unwrap();
    assert!(audit.contains("no permission"));
}

#[test]
fn the_command_shows_a_migration() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    if !rustix::process::geteuid().is_root() {
        // Only root may ask, and this test is not allowed to be root.
        return;
    }
    local::serve(&pair.left).unwrap();
    let unmoved = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unmoved"));
        command
            .arg("--socket")
            .arg(pair.folder.path().join("a.sock"));
        let output = command.args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    };
    let json = |arguments: &[&str]| -> Value {
        let all = [&["--json"], arguments].concat();
        serde_json::from_str(&unmoved(&all)).unwrap()
    };
    assert_eq!(json(&["check", "guest", "b"])["host"], "b");
    assert_eq!(json(&["hosts"])[1]["reachable"], true);
    let done = json(&["migrate", "guest", "b", "--parallel", "2"]);
    assert_eq!(done["report"]["tool"], "unmoved");
    assert_eq!(done["statistics"]["success"], true);
    let id = done["id"].as_str().unwrap();
    assert!(unmoved(&["status"]).contains("done"));
    assert_eq!(json(&["status", id])["domain"], "guest");
    assert!(unmoved(&["doctor"]).contains("ok       peer b"));
    assert!(unmoved(&["capabilities"]).contains("<live/>"));
    assert!(unmoved(&["completions", "bash"]).contains("migrate"));
}
