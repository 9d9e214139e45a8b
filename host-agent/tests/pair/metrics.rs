//! What Prometheus reads of a daemon, and what it does with those who ask for anything else.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use unmoved::job::JobOptions;

use crate::daemons::Pair;
use crate::ended;

/// The answer to a request: its head and its body.
fn ask(pair: &Pair, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(pair.metrics).unwrap();
    // Who refuses may close the connection before it has read everything.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (head.to_owned(), body.to_owned())
}

/// Samples by name and labels; whatever else a line may be is a comment.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with("# "));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name, value.parse().unwrap())
        })
        .collect()
}

#[test]
fn metrics_tell_of_jobs_and_nothing_else_is_served() {
    let pair = Pair::start();
    pair.a.add("guest", "u-1");
    let get = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    let (head, before) = ask(&pair, get);
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(
        head.contains(&format!("Content-Length: {}", before.len())),
        "{head}"
    );
    let succeeded = "unmoved_jobs{direction=\"outgoing\",state=\"succeeded\"}";
    assert_eq!(samples(&before)[succeeded], 0.0);

    let options = JobOptions::default();
    let job = pair.left.migrate("test", "guest", "b", options).unwrap();
    ended(&job).unwrap();
    let (_, after) = ask(&pair, get);
    let found = samples(&after);
    assert_eq!(found[succeeded], 1.0);
    let status = job.status(0);
    let of = |name: &str| found[&*format!("unmoved_{name}{{job=\"{}\"}}", job.id)];
    assert_eq!(of("job_wire_bytes"), status.statistics.wire_bytes as f64);
    assert_eq!(
        of("job_blackout_seconds"),
        status.report.unwrap().blackout_ms / 1000.0
    );
    assert!(of("job_predicted_blackout_seconds") > 0.0);
    // Each family is described before its samples.
    for name in found.keys() {
        let family = name.split('{').next().unwrap();
        assert!(
            after.contains(&format!("# TYPE {family} gauge\n")),
            "{family}"
        );
    }

    let (head, _) = ask(&pair, "GET /secrets HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    assert_eq!(ask(&pair, &long), Default::default());
    assert!(ask(&pair, get).0.starts_with("HTTP/1.1 200 OK"));
}
