//! Serves metrics to Prometheus: plain text over HTTP, `GET /metrics` and nothing else.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Daemon, Direction};
use crate::transport::{Socket, Watch};

/// Longest request that is read.
const REQUEST_MOST: usize = 4 << 10;
/// Longest time for a request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until the program ends, one client at a time.  A slow client delays others, but not for long.
pub(super) fn serve(daemon: &Arc<Daemon>, listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        if let Err(error) = answer(daemon, stream) {
            log::debug!("metrics: {error}");
        }
    }
}

fn answer(daemon: &Daemon, stream: TcpStream) -> io::Result<()> {
    let mut socket = Socket::new(stream, Arc::new(Watch::default()))?;
    socket.set_deadline(Some(Instant::now() + PATIENCE));
    let mut request = Vec::new();
    let mut piece = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = socket.read(&mut piece)?;
        if length == 0 || request.len() + length > REQUEST_MOST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        request.extend_from_slice(&piece[..length]);
    }
    let (status, body) = if request.starts_with(b"GET /metrics ") {
        ("200 OK", text(daemon))
    } else {
        ("404 Not Found", "only /metrics exists here\n".to_owned())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes())?;
    socket.write_all(body.as_bytes())
}

/// The figures.
fn text(daemon: &Daemon) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
        let _ = writeln!(
            text,
            "# HELP unmoved_{name} {help}\n# TYPE unmoved_{name} {kind}"
        );
        for (labels, value) in samples {
            let _ = writeln!(text, "unmoved_{name}{labels} {value}");
        }
    };
    let all: Vec<_> = daemon
        .jobs()
        .iter()
        .map(|job| job.status(u64::MAX))
        .collect();
    let count = |direction: Direction, state: &str| {
        let is_in = |job: &&super::JobStatus| {
            let is = match job.statistics.success {
                _ if job.is_held => "held",
                None => "running",
                Some(true) => "succeeded",
                Some(false) => "failed",
            };
            job.direction == direction && is == state
        };
        let name = direction.name();
        let labels = format!("{{direction=\"{name}\",state=\"{state}\"}}");
        (labels, all.iter().filter(is_in).count() as f64)
    };
    let mut jobs = Vec::new();
    for direction in [
        Direction::Outgoing,
        Direction::Incoming,
        Direction::Save,
        Direction::Restore,
    ] {
        for state in ["running", "held", "succeeded", "failed"] {
            jobs.push(count(direction, state));
        }
    }
    family("jobs", "gauge", "Jobs that the daemon remembers.", &jobs);
    let of = |value: fn(&super::JobStatus) -> Option<f64>| {
        let label = |job: &super::JobStatus| format!("{{job=\"{}\"}}", job.id);
        let sample = |job| value(job).map(|value| (label(job), value));
        all.iter().filter_map(sample).collect::<Vec<_>>()
    };
    family(
        "job_wire_bytes",
        "gauge",
        "Bytes on the wire.",
        &of(|job| Some(job.statistics.wire_bytes as f64)),
    );
    family(
        "job_elapsed_seconds",
        "gauge",
        "Time since the job began.",
        &of(|job| Some(job.statistics.time_elapsed as f64 / 1000.0)),
    );
    family(
        "job_remaining_bytes",
        "gauge",
        "Memory left to send in this round.",
        &of(|job| Some(job.statistics.memory_remaining as f64)),
    );
    family(
        "job_dirty_pages_per_second",
        "gauge",
        "Pages that the guest dirties.",
        &of(|job| Some(job.statistics.memory_dirty_rate as f64)),
    );
    family(
        "job_iteration",
        "gauge",
        "The pre-copy round.",
        &of(|job| Some(f64::from(job.statistics.memory_iteration))),
    );
    family(
        "job_blackout_seconds",
        "gauge",
        "Time from the guest's suspend until it ran again.",
        &of(|job| {
            job.report
                .as_ref()
                .map(|report| report.blackout_ms / 1000.0)
        }),
    );
    family(
        "job_predicted_blackout_seconds",
        "gauge",
        "The blackout predicted before the job began.",
        &of(|job| job.prediction.map(|expected| expected.blackout_ms / 1000.0)),
    );
    text
}
