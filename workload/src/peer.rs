//! What `unmoved-peer` does: each command takes `key=value` words and reports JSON lines; its
//! answer is whether all was well.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::disk::image;
use crate::fingerprint::{self, Fingerprint, wire::Collector};
use crate::net::{BULK_PORT, bulk, tcp_peer, udp_peer};
use crate::orders::{Order, OrderError};
use crate::report::{Reporter, parse_line};
use crate::sys::signal;
use crate::sys::time::{Clock, now};

/// How the program is called.
pub const USAGE: &str = "\
usage: unmoved-peer COMMAND key=value …
  tcp to=ADDRESS:7007 [connections=4] [message=8k] [interval=20] [window=256k] [patience=120]
      [connect=60] [seconds=0] [every=5]   connections that must not break (ms, s)
  udp to=ADDRESS:7008 [interval=10] [seconds=0] [every=5]   numbered datagrams
  serve [bind=0.0.0.0:7010] [seconds=0]    sink and source for `bench net`
  order to=ADDRESS:7009 line=LINE [limit=600]   one order to the guest
  wall to=ADDRESS:7009 [rounds=8]          the guest's wall clock against this one
  fingerprint to=ADDRESS:7009 file=FILE    the guest's fingerprint, as text
  diff before=FILE after=FILE              what differs between two of them
  disk file=FILE                           check a disk's blocks from outside
seconds=0 runs until SIGTERM or SIGINT.  Exit code 0: all well; 1: something broke; 2: bad call.";

/// Carries out a command; whether all was well.
///
/// # Errors
/// A senseless call, or what can not be reached.
pub fn run(order: &Order, reporter: &Reporter) -> Result<bool, OrderError> {
    match order.name.as_str() {
        "tcp" => tcp(order, reporter),
        "udp" => udp(order, reporter),
        "serve" => serve(order, reporter),
        "order" => give_order(order, reporter),
        "wall" => wall(order, reporter),
        "fingerprint" => take_fingerprint(order, reporter),
        "diff" => diff(order, reporter),
        "disk" => {
            order.allow(&["file"])?;
            let found = image::check(order.required("file")?.as_ref()).map_err(failed("disk"))?;
            let well = found["damaged"] == 0 && found["misplaced"] == 0;
            reporter.event("disk", found);
            Ok(well)
        }
        _ => Err(OrderError(USAGE.into())),
    }
}

fn failed(what: &str) -> impl Fn(io::Error) -> OrderError {
    move |error| OrderError(format!("{what}: {error}"))
}

fn address(order: &Order, key: &str) -> Result<SocketAddr, OrderError> {
    let text = order.required(key)?;
    text.parse()
        .map_err(|_| OrderError(format!("{key}={text} is no ADDRESS:PORT")))
}

/// Reports `figures` every `every=` seconds until `seconds=` are over or the program is told to
/// stop.
fn watch(
    order: &Order,
    reporter: &Reporter,
    figures: impl Fn() -> Value,
) -> Result<(), OrderError> {
    let seconds = order.number("seconds", 0, 0..=1 << 32)?;
    let every = Duration::from_secs(order.number("every", 5, 1..=86_400)?);
    signal::note_stop_requests().map_err(failed("signals"))?;
    let start = Instant::now();
    let mut told = start;
    while !signal::stop_requested() && (seconds == 0 || start.elapsed().as_secs() < seconds) {
        std::thread::sleep(Duration::from_millis(50));
        if told.elapsed() >= every {
            told = Instant::now();
            let figures = figures();
            if !figures.is_null() {
                reporter.event(&order.name, figures);
            }
        }
    }
    Ok(())
}

fn end(reporter: &Reporter, name: &str, mut figures: Value) -> bool {
    figures["final"] = true.into();
    let well = figures["ok"] == true;
    reporter.event(name, figures);
    well
}

fn tcp(order: &Order, reporter: &Reporter) -> Result<bool, OrderError> {
    order.allow(&[
        "to",
        "connections",
        "message",
        "interval",
        "window",
        "patience",
        "connect",
        "seconds",
        "every",
    ])?;
    let message = order.number("message", 8 << 10, 1..=1 << 20)?;
    let connections = order.number("connections", 4, 1..=200)?;
    let options = tcp_peer::Options {
        to: address(order, "to")?,
        connections: usize::try_from(connections).unwrap_or(1),
        message: usize::try_from(message).unwrap_or(1),
        interval: Duration::from_millis(order.number("interval", 20, 0..=60_000)?),
        window: order.number("window", 256 << 10, message..=1 << 30)?,
        patience: Duration::from_secs(order.number("patience", 120, 1..=86_400)?),
        connect: Duration::from_secs(order.number("connect", 60, 0..=86_400)?),
    };
    let run = tcp_peer::TcpRun::start(&options).map_err(failed("tcp"))?;
    watch(order, reporter, || run.figures())?;
    Ok(end(reporter, "tcp", run.finish()))
}

fn udp(order: &Order, reporter: &Reporter) -> Result<bool, OrderError> {
    order.allow(&["to", "interval", "seconds", "every"])?;
    let interval = Duration::from_millis(order.number("interval", 10, 1..=60_000)?);
    let run = udp_peer::UdpRun::start(address(order, "to")?, interval).map_err(failed("udp"))?;
    watch(order, reporter, || run.figures())?;
    Ok(end(reporter, "udp", run.finish()))
}

fn serve(order: &Order, reporter: &Reporter) -> Result<bool, OrderError> {
    order.allow(&["bind", "seconds"])?;
    let bind = match order.text("bind") {
        None => SocketAddr::from(([0, 0, 0, 0], BULK_PORT)),
        Some(_) => address(order, "bind")?,
    };
    let bound = bulk::serve(bind).map_err(failed("serve"))?;
    reporter.event("serving", json!({ "address": bound.to_string() }));
    watch(order, reporter, || Value::Null)?;
    Ok(true)
}

/// Sends one line to a guest's control port and hands every report to `each` until the order is
/// done; whether it went well.
///
/// # Errors
/// If the guest can not be reached, hangs up or takes longer than `limit`.
pub fn ask(
    to: SocketAddr,
    line: &str,
    limit: Duration,
    mut each: impl FnMut(&Value),
) -> io::Result<bool> {
    let end = Instant::now() + limit;
    let mut connection = TcpStream::connect_timeout(&to, limit)?;
    connection.set_nodelay(true)?;
    connection.write_all(format!("#ask {line}\n").as_bytes())?;
    let left = |end: Instant| {
        end.saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1))
    };
    connection.set_read_timeout(Some(left(end)))?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut text = String::new();
    loop {
        text.clear();
        if reader.read_line(&mut text)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        connection.set_read_timeout(Some(left(end)))?;
        let Some(Ok(report)) = parse_line(&text) else {
            continue;
        };
        if report["re"] != "ask" {
            continue;
        }
        each(&report);
        if report["ev"] == "done" {
            let _ = connection.shutdown(Shutdown::Both);
            return Ok(report["ok"] == true);
        }
    }
}

fn print(reporter: &Reporter, report: &Value) {
    let name = report["ev"].as_str().unwrap_or("odd").to_owned();
    let mut body = report.clone();
    if let Some(members) = body.as_object_mut() {
        // This program's own numbers stand in their place.
        members.retain(|key, _| !matches!(key.as_str(), "ev" | "n" | "pid" | "re"));
    }
    reporter.event(&name, body);
}

fn give_order(order: &Order, reporter: &Reporter) -> Result<bool, OrderError> {
    order.allow(&["to", "limit", "line"])?;
    let line = order.required("line")?;
    let limit = Duration::from_secs(order.number("limit", 600, 1..=86_400)?);
    ask(address(order, "to")?, line, limit, |report| {
        print(reporter, report);
    })
    .map_err(failed("order"))
}

/// Compares wall clocks over several rounds and believes the quickest: the guest's reading was
/// taken somewhere between our two, so the error is known to half the round trip.
fn wall(order: &Order, reporter: &Reporter) -> Result<bool, OrderError> {
    order.allow(&["to", "rounds"])?;
    let to = address(order, "to")?;
    let mut best: Option<(i64, i64)> = None;
    for _ in 0..order.number("rounds", 8, 1..=1000)? {
        let before = now(Clock::Realtime);
        let mut guest = None;
        ask(to, "clock report", Duration::from_secs(60), |report| {
            guest = guest.or(report["realtime_ns"].as_i64());
        })
        .map_err(failed("wall"))?;
        let after = now(Clock::Realtime);
        let guest = guest.ok_or_else(|| OrderError("wall: no answer".into()))?;
        let trip = after.saturating_sub(before);
        let error = guest.saturating_sub(before.saturating_add(trip / 2));
        if best.is_none_or(|(_, shortest)| trip < shortest) {
            best = Some((error, trip));
        }
    }
    let (error, trip) = best.unwrap_or_default();
    reporter.event(
        "wall",
        json!({ "wall_error_ns": error, "uncertainty_ns": trip / 2 }),
    );
    Ok(true)
}

fn take_fingerprint(order: &Order, reporter: &Reporter) -> Result<bool, OrderError> {
    order.allow(&["to", "file", "limit"])?;
    let file = order.required("file")?;
    let limit = Duration::from_secs(order.number("limit", 600, 1..=86_400)?);
    let mut collector = Collector::default();
    let mut found = None;
    let asked = ask(address(order, "to")?, "fingerprint", limit, |report| {
        found = found.take().or_else(|| collector.take(report));
    });
    let well = asked.map_err(failed("fingerprint"))?;
    let taken = found
        .ok_or_else(|| OrderError("fingerprint: none came".into()))?
        .map_err(|error| OrderError(format!("fingerprint: {}", error.0)))?;
    std::fs::write(file, taken.to_text()).map_err(failed(file))?;
    reporter.event(
        "fingerprint",
        json!({ "entries": taken.len(), "sha256": taken.hash() }),
    );
    Ok(well)
}

fn diff(order: &Order, reporter: &Reporter) -> Result<bool, OrderError> {
    order.allow(&["before", "after"])?;
    let read = |key: &str| -> Result<Fingerprint, OrderError> {
        let path = order.required(key)?;
        let text = std::fs::read_to_string(path).map_err(failed(path))?;
        Ok(Fingerprint::from_text(&text))
    };
    let found = fingerprint::diff(&read("before")?, &read("after")?);
    for one in &found {
        reporter.event(
            "difference",
            json!({ "key": one.key, "before": one.before, "after": one.after }),
        );
    }
    reporter.event("diff", json!({ "differences": found.len() }));
    Ok(found.is_empty())
}
