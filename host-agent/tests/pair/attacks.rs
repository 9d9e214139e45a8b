//! While a job runs, strangers and peers that break the rules do what they can: each is refused, that is
//! written down, and the job does not know.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use unmoved::daemon::local;
use unmoved::job::{JobOptions, Presence};
use unmoved::journal::Journal;
use unmoved::pki;
use unmoved::transport::tls::HANDSHAKE;

use crate::attacked::{
    Attacked, LONG, ask, call, connect, control, controlled, hello, is_closed, secure,
};
use crate::daemons::Pair;
use crate::ended;

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let attacked = Attacked::begin();
    let pair = &attacked.pair;
    let other = pair.folder.path().join("other");
    pki::init(&other).unwrap();
    pki::issue(&other, &["a".to_owned()]).unwrap();
    // Our end is through with its part of the handshake before the daemon has seen the certificate.
    let (mut stream, below) = secure(pair, "other", "a").unwrap();
    let who = below.local_addr().unwrap().to_string();
    ask(&mut stream, &hello()).unwrap_err();
    attacked.is_audited("b", &who, "invalid peer certificate");
    attacked.refuse_if_stopping();
}

#[test]
fn a_host_that_is_no_peer_is_refused() {
    let attacked = Attacked::begin();
    let (mut stream, below) = secure(&attacked.pair, "pki", "c").unwrap();
    let who = below.local_addr().unwrap().to_string();
    ask(&mut stream, &hello()).unwrap_err();
    attacked.is_audited("b", &who, "belong to a configured peer");
    attacked.refuse_if_stopping();
}

#[test]
fn who_speaks_no_tls_is_refused() {
    let attacked = Attacked::begin();
    let mut plain = TcpStream::connect(attacked.pair.address).unwrap();
    let who = plain.local_addr().unwrap().to_string();
    plain.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    // At most an alert.
    assert!(said.len() < 16, "{said:x?}");
    attacked.is_audited("b", &who, "corrupt message");
    attacked.refuse_if_stopping();
}

/// Sends a byte now and then, until the other end has enough of it; gives how long that took.
fn drip(
    begun: Instant,
    below: &TcpStream,
    mut write: impl FnMut(u8) -> io::Result<()>,
) -> Duration {
    // This is what lies between two bytes.
    below
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    // A message of 256 spaces, or the beginning of a TLS record that is as long.
    for number in 0_u32.. {
        let byte = b"\x16\x03\x01\x01\x00".get(number as usize).copied();
        let look = below.peek(&mut [0]);
        let is_over = match look {
            Ok(read) => read == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        if is_over || write(byte.unwrap_or(b' ')).is_err() {
            break;
        }
        assert!(begun.elapsed() < LONG, "nobody minds");
    }
    begun.elapsed()
}

/// The only test that takes long: it waits for the limit as it is.
#[test]
fn who_drips_is_dropped_at_the_limit() {
    let attacked = Attacked::begin();
    let pair = &attacked.pair;
    let begun = Instant::now();
    let stranger = TcpStream::connect(pair.address).unwrap();
    let (mut peer, below) = secure(pair, "pki", "a").unwrap();
    peer.write_all(&[0, 0, 1, 0]).unwrap();
    let who = [&stranger, &below].map(|stream| stream.local_addr().unwrap().to_string());
    let times = thread::scope(|scope| {
        let handshake =
            scope.spawn(|| drip(begun, &stranger, |byte| (&stranger).write_all(&[byte])));
        let message = scope.spawn(|| drip(begun, &below, |byte| peer.write_all(&[byte])));
        // Meanwhile others are served.
        control(pair);
        [handshake.join().unwrap(), message.join().unwrap()]
    });
    for (who, time) in who.iter().zip(times) {
        assert!(time >= HANDSHAKE, "{time:?}");
        attacked.is_audited("b", who, "did not answer in time");
    }
    attacked.refuse_if_stopping();
}

#[test]
fn messages_that_are_too_long_or_none_end_their_connection() {
    let attacked = Attacked::begin();
    let pair = &attacked.pair;
    // The first message may have a kibibyte, the others four mebibytes.
    let (mut first, below) = secure(pair, "pki", "a").unwrap();
    let who = below.local_addr().unwrap().to_string();
    first.write_all(&1025_u32.to_be_bytes()).unwrap();
    assert!(is_closed(&mut first));
    attacked.is_audited("b", &who, "a message of 1025 bytes is too long");
    for (bytes, why) in [
        (
            &((4_u32 << 20) + 1).to_be_bytes()[..],
            "a message of 4194305 bytes is too long",
        ),
        (
            b"\xff\xff\xff\xff",
            "a message of 4294967295 bytes is too long",
        ),
        (b"\0\0\0\x03abc", "invalid message"),
    ] {
        let (mut stream, who) = controlled(pair);
        stream.write_all(bytes).unwrap();
        assert!(is_closed(&mut stream));
        attacked.is_audited("b", &who, why);
    }
    attacked.refuse_if_stopping();
}

#[test]
fn a_peer_has_no_say_in_what_is_not_its_own() {
    let attacked = Attacked::begin();
    let (pair, session) = (&attacked.pair, attacked.session());
    // Another version.
    let (_, answer, who) = connect(pair, "a", &json!({ "control": { "version": 99 } })).unwrap();
    assert!(answer["refused"].as_str().unwrap().contains("version 99"));
    attacked.is_audited("b", &who, "version 99");

    // A stream for this session, with a ticket that was guessed.
    let data = json!({ "data": { "session": session, "ticket": "0".repeat(32), "lane": 0 } });
    let (_, answer, who) = connect(pair, "a", &data).unwrap();
    assert!(
        answer["refused"].as_str().unwrap().contains("ticket"),
        "{answer}"
    );
    attacked.is_audited("b", &who, "ticket");

    // The other peer is `b` itself: the session is not its own.
    let (mut other, ..) = connect(pair, "b", &hello()).unwrap();
    let answer = ask(&mut other, &call(session, 1, &json!({ "failed": "x" }))).unwrap();
    assert_eq!(answer["reply"]["cookie"]["answer"], "refused", "{answer}");
    attacked.is_audited("b", "peer b", "belongs to another peer");

    // A hand-over with a token that was guessed.
    let (mut again, who) = controlled(pair);
    let guessed = json!({ "take-over": "0".repeat(64) });
    let answer = ask(&mut again, &call(session, 7, &guessed)).unwrap();
    assert_eq!(answer["reply"]["cookie"]["answer"], "refused", "{answer}");
    attacked.is_audited("b", "peer a", "is not valid now");

    // A call that comes twice ends the connection.
    ask(&mut again, &call(session, 7, &json!("retire"))).unwrap_err();
    attacked.is_audited("b", &who, "call 7 came again");
    attacked.refuse_if_stopping();
}

/// The records of a session at the destination, as they are on the disk.
fn records(pair: &Pair, session: &str) -> Vec<Value> {
    let folder = pair.folder.path().join("b/destination");
    let (_, reading) = Journal::read(&folder, session.parse().unwrap());
    reading.records
}

/// What a source has begun that goes away is thrown away, also if that does not work at once.
#[test]
fn nothing_is_kept_for_a_source_that_has_gone() {
    let pair = Pair::start();
    pair.a.add("first", "u-0");
    let options = JobOptions::default();
    let first = pair.left.migrate("test", "first", "b", options).unwrap();
    ended(&first).unwrap();
    let mut request = records(&pair, &first.id)[0]["request"].clone();
    request["needs"]["destination_name"] = json!("second");
    request["needs"]["uuid"] = json!("u-1");
    pair.b.stumble(1);
    let session = "12".repeat(16);
    let reserve = call(&session, 1, &json!({ "reserve": request }));
    let mut source = control(&pair);
    let answer = ask(&mut source, &reserve).unwrap();
    assert_eq!(answer["reply"]["cookie"]["answer"], "continue", "{answer}");
    drop(source);
    let until = Instant::now() + LONG;
    while records(&pair, &session).last().unwrap()["state"] != "discarded" {
        assert!(Instant::now() < until, "it is kept");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Whoever has listened to an earlier session, and could read it, can do nothing with what it has heard.
#[test]
fn what_an_earlier_session_said_is_of_no_use_on_a_new_connection() {
    let pair = Pair::start();
    pair.a.add("first", "u-0");
    let first = pair
        .left
        .migrate("test", "first", "b", JobOptions::default())
        .unwrap();
    ended(&first).unwrap();
    let records = records(&pair, &first.id);
    let of = |state: &str| {
        records
            .iter()
            .find(|record| record["state"] == state)
            .unwrap()
    };
    let take_over = json!({ "take-over": of("taken")["token"] });
    let reserve = json!({ "reserve": of("reserved")["request"] });
    // Were it taken over again, it would run.
    pair.b.set("u-0", Presence::Paused);

    let attacked = Attacked::beside(pair);
    let mut again = control(&attacked.pair);
    let mut answer = |session: &str, number, order| {
        let answer = ask(&mut again, &call(session, number, order)).unwrap();
        answer["reply"]["cookie"].clone()
    };
    // The token in another session.
    assert_eq!(
        answer(attacked.session(), 1, &take_over)["answer"],
        "refused"
    );
    attacked.is_audited("b", "peer a", "this order is not valid now");
    // Its own session is not begun again, nor is its guest let run again: that it was once is all it says.
    assert_eq!(answer(&first.id, 2, &reserve)["answer"], "refused");
    attacked.is_audited("b", "peer a", "this session was begun already");
    assert_eq!(answer(&first.id, 3, &take_over)["answer"], "complete");
    assert_eq!(
        answer(&first.id, 4, &json!({ "failed": "x" }))["answer"],
        "refused"
    );
    assert_eq!(attacked.pair.b.presence("u-0"), Presence::Paused);
    // Nor is there a stream any more.
    let ticket = "0".repeat(32);
    let data = json!({ "data": { "session": first.id, "ticket": ticket, "lane": 0 } });
    let (_, refused, who) = connect(&attacked.pair, "a", &data).unwrap();
    assert_eq!(refused["refused"], "no stream is expected");
    attacked.is_audited("b", &who, "no stream is expected");
    attacked.refuse_if_stopping();
}

#[test]
fn a_user_without_permission_is_refused() {
    let attacked = Attacked::beside(Pair::prepare().strict().go());
    local::serve(&attacked.pair.left).unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unmoved"));
        let socket = attacked.pair.folder.path().join("a.sock");
        command.arg("--socket").arg(socket).args(arguments);
        command
    };
    // Whoever is not root is somebody without permission; root can become one.
    let user = rustix::process::geteuid();
    let uid = if user.is_root() { 65534 } else { user.as_raw() };
    if user.is_root() {
        assert!(command(&["list"]).output().unwrap().status.success());
    }
    for arguments in [&["list"][..], &["abort", attacked.session()]] {
        let mut command = command(arguments);
        if user.is_root() {
            command.uid(uid);
        }
        let output = command.output().unwrap();
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("has no permission"), "{error}");
    }
    attacked.is_audited("a", &format!("uid {uid}"), "no permission");
    attacked.refuse_if_stopping();
}
