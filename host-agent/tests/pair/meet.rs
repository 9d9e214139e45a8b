//! Step 0: two agents that have too little in common, and one that asks for what cannot be had.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde_json::{Value, json};
use unmoved::capabilities::Capabilities;
use unmoved::daemon::Daemon;
use unmoved::job::{JobOptions, Needs, Presence};
use unmoved::pki;
use unmoved::transport::frame::{read_message, write_message};
use unmoved::transport::tls::Identity;
use unmoved::transport::{Socket, Watch};

use crate::attacked::{ask, call, control};
use crate::daemons::Pair;
use crate::ended;
use crate::fake::Handle;

/// An agent of `b` that gives each connection the next of these answers to step 0; gives where it listens,
/// and what it was asked.
fn other_agent(pair: &Pair, answers: Vec<Value>) -> (SocketAddr, Receiver<Value>) {
    let folder = pair.folder.path().join("pki");
    let identity = Identity::load(
        &folder.join(pki::AUTHORITY),
        &folder.join("b.pem"),
        &folder.join("b.key"),
    )
    .unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, questions) = channel();
    thread::spawn(move || {
        for answer in answers {
            let socket = Socket::new(listener.accept().unwrap().0, Arc::new(Watch::default()));
            let (mut stream, _) = identity.accept(socket.unwrap(), ["a"]).unwrap();
            let _: Value = read_message(&mut stream, 1 << 10).unwrap();
            write_message(&mut stream, &"welcome").unwrap();
            asked
                .send(read_message(&mut stream, 1 << 20).unwrap())
                .unwrap();
            write_message(&mut stream, &answer).unwrap();
            // It says no more to such as us.
            let next: std::io::Result<Value> = read_message(&mut stream, 1 << 20);
            next.unwrap_err();
        }
    });
    (address, questions)
}

fn met(capabilities: &str, stream_version: u32) -> Value {
    let facts = json!({
        "xen_version": "4.17.0", "free_memory_bytes": 1_u64 << 40, "cpus": 1,
        "stream_version": stream_version,
    });
    json!({ "met": { "capabilities": capabilities, "facts": facts } })
}

#[test]
fn a_source_leaves_alone_who_has_too_little_in_common_with_it() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    let ours = Capabilities::ours().to_xml();
    let cases = [
        (
            met(&ours.replace("<verify/>", ""), 3),
            "b does not support --verify",
        ),
        (met(&ours.replace("unmoved+tls", "tcp"), 3), "in common"),
        (met(&ours.replace("stream>3<", "stream>2<"), 3), "version 3"),
        (met(&ours.replace("<live/>", ""), 3), "\"live\""),
        (met(&ours, 2), "the toolstack at b reads version 2"),
    ];
    let answers = cases.iter().map(|(answer, _)| answer.clone()).collect();
    let (address, questions) = other_agent(&pair, answers);
    let mut config = pair.left.config().clone();
    config.state = pair.folder.path().join("alone");
    config.listen.set_port(0);
    config.metrics = None;
    for peer in &mut config.peers {
        peer.address = address.to_string();
    }
    let daemon = Daemon::new(config, Handle::new(&pair.a)).unwrap();
    for (_, why) in cases {
        let options = JobOptions {
            verify: Some(true),
            ..JobOptions::default()
        };
        let job = daemon.migrate("test", "guest", "b", options).unwrap();
        let error = ended(&job).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(pair.a.presence("u-1"), Presence::Running);
        // The way and the rest of what is asked for are named.
        let question = questions.recv().unwrap();
        let parameters = &question["meet"]["parameters"];
        assert_eq!(parameters["uri"], format!("unmoved+tls://{address}"));
        assert_eq!(parameters["flags"], 1);
    }
}

#[test]
fn a_destination_refuses_what_cannot_be_had() {
    let pair = Pair::start();
    let ours = Capabilities::ours().to_xml();
    let meet = |capabilities: &str, change: &dyn Fn(&mut Value)| {
        let mut parameters = json!({
            "uri": "unmoved+tls://192.0.2.2:7711", "dname": null, "resource": null, "flags": 1,
        });
        change(&mut parameters);
        json!({ "meet": { "capabilities": capabilities, "parameters": parameters } })
    };
    let but = |key: &'static str, value: Value| {
        meet(&ours, &move |parameters| parameters[key] = value.clone())
    };
    let same = |_: &mut Value| {};
    let needs = Needs {
        destination_name: "../guest".to_owned(),
        ..Needs::default()
    };
    let cases = [
        (but("flags", json!(5)), "unknown flags 0x4"),
        (but("dname", json!("../guest")), "is not a domain name"),
        (but("resource", json!(0)), "bandwidth must not be 0"),
        (but("uri", json!("ssh://192.0.2.2")), "unsupported URI"),
        (meet("<host/>", &same), "without migration_features"),
        (
            meet(&ours.replace("unmoved+tls", "tcp"), &same),
            "a has no stream transport",
        ),
        (
            meet(&ours.replace("stream>3<", "stream>2<"), &same),
            "a does not support version 3",
        ),
        (json!({ "check": needs }), "is not a domain name"),
    ];
    let mut stream = control(&pair);
    for (question, why) in &cases {
        let answer = ask(&mut stream, question).unwrap();
        let said = answer["refused"].as_str().unwrap_or_default();
        assert!(said.contains(why), "{why}: {answer}");
    }
    let request = json!({
        "needs": needs, "leave_paused": false, "parallel": 1, "seal": "0".repeat(64),
    });
    let order = call(&"7".repeat(32), 1, &json!({ "reserve": request }));
    let answer = ask(&mut stream, &order).unwrap();
    assert_eq!(answer["reply"]["cookie"]["answer"], "refused", "{answer}");
    // All on one connection, which is as good as before.
    let answer = ask(&mut stream, &meet(&ours, &same)).unwrap();
    assert_eq!(answer["met"]["facts"]["stream_version"], 3, "{answer}");
    let audit = std::fs::read_to_string(pair.folder.path().join("b/audit.log")).unwrap();
    for (_, why) in cases {
        assert!(audit.contains(why), "{why} is not in {audit}");
    }
    // What is no number is no message.
    ask(&mut stream, &but("resource", json!("fast"))).unwrap_err();
}
