//! What the transport costs: an image sent over the loopback interface, in every combination, beside the
//! bare loops that are the limit of what any transport could do here.
//!
//! No Xen: the pages are in memory already.  Both ends run on this machine and share its processors, and
//! the CPU seconds are those of both.  `cargo xtask bench-transfer` starts this.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use serde_json::{Value, json};
use unmoved::job::{Batch, Compression, Control, JobOptions, PAGE_SIZE, Sink};
use unmoved::pki;
use unmoved::transport::tls::Identity;
use unmoved::transport::{Duplex, Sender, Socket, Watch, receive};

/// Measure the transport.
#[derive(Debug, Parser)]
struct Arguments {
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Size of the image
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    size: usize,
    /// How often each is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// What `cargo bench` says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// A batch as large as Xen's own writer makes them.
const BATCH: usize = Batch::MOST * PAGE_SIZE;
const MIB: usize = 1 << 20;

/// What was measured.
#[derive(Clone, Copy, Debug)]
struct Figure {
    mib_per_second: f64,
    cpu_seconds_per_gib: f64,
    wire_share: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.size >= 64, "--size must be 64 or more");
    let tls = Tls::new()?;
    let image = Image::new(arguments.size);
    let mut rows = Vec::new();
    type Case<'a> = Box<dyn Fn() -> Result<Figure> + 'a>;
    let mut cases: Vec<(String, Case<'_>)> = vec![
        (
            "bare write/read".to_owned(),
            Box::new(|| bare(&image, None)),
        ),
        (
            "bare rustls".to_owned(),
            Box::new(|| bare(&image, Some(&tls))),
        ),
    ];
    for secure in [None, Some(&tls)] {
        for compress in [Compression::None, Compression::Zstd(1)] {
            for streams in [1, 2, 4] {
                let with = if secure.is_some() { "TLS" } else { "plain" };
                let name = format!("{with}, {compress}, {streams} streams");
                let image = &image;
                cases.push((
                    name,
                    Box::new(move || ours(image, secure, compress, streams)),
                ));
            }
        }
    }
    println!(
        "{:32}{:>12}{:>14}{:>12}",
        "", "MiB/s", "CPU s/GiB", "wire/image"
    );
    // In turns, so that a change of the machine's load hits all of them.
    let mut found = vec![Vec::new(); cases.len()];
    for _ in 0..arguments.repeat.max(1) {
        for (case, figures) in cases.iter().zip(&mut found) {
            figures.push((case.1)()?);
        }
    }
    for ((name, _), mut figures) in cases.into_iter().zip(found) {
        figures.sort_by(|a, b| a.mib_per_second.total_cmp(&b.mib_per_second));
        let median = figures[figures.len() / 2];
        println!(
            "{name:32}{:>12.0}{:>14.3}{:>12.3}",
            median.mib_per_second, median.cpu_seconds_per_gib, median.wire_share
        );
        rows.push((name, median));
    }
    report(&arguments, &rows)
}

fn report(arguments: &Arguments, rows: &[(String, Figure)]) -> Result<()> {
    let speed = |wanted: &str| {
        let row = rows.iter().find(|(name, _)| name == wanted);
        row.map_or(f64::NAN, |(_, figure)| figure.mib_per_second)
    };
    let plain = speed("plain, none, 1 streams") / speed("bare write/read");
    let tls = speed("TLS, none, 1 streams") / speed("bare rustls");
    println!("plain single stream / bare write/read: {plain:.2} (target 0.8)");
    println!("TLS single stream / bare rustls:       {tls:.2} (target 0.6)");
    let Some(file) = &arguments.json else {
        return Ok(());
    };
    let rows: Vec<Value> = rows
        .iter()
        .map(|(name, figure)| {
            json!({
                "name": name,
                "mib_per_s": figure.mib_per_second,
                "cpu_s_per_gib": figure.cpu_seconds_per_gib,
                "wire_share": figure.wire_share,
            })
        })
        .collect();
    let figures = json!({
        "image_mib": arguments.size,
        "repeat": arguments.repeat,
        "rows": rows,
        "plain_to_bare": plain,
        "tls_to_bare": tls,
    });
    std::fs::write(file, serde_json::to_string_pretty(&figures)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))
}

/// The image: a few different batches over and over, larger together than any cache.  A page in eight is
/// zero, the others are half noise and half text, as memory often is.
struct Image {
    batches: Vec<Batch>,
    number: usize,
}

impl Image {
    fn new(size_mib: usize) -> Self {
        let number = (size_mib * MIB).div_ceil(BATCH);
        let mut state = 1_u64;
        let mut page = |zero: bool| {
            let mut bytes = vec![0; PAGE_SIZE];
            if !zero {
                for word in bytes[..PAGE_SIZE / 2].chunks_exact_mut(8) {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    word.copy_from_slice(&state.to_le_bytes());
                }
                for (byte, text) in bytes[PAGE_SIZE / 2..].iter_mut().zip(TEXT.iter().cycle()) {
                    *byte = *text;
                }
            }
            bytes
        };
        let batches = (0..number.min(32))
            .map(|_| Batch {
                words: (0..Batch::MOST as u64).collect(),
                data: (0..Batch::MOST).flat_map(|n| page(n % 8 == 7)).collect(),
            })
            .collect();
        Self { batches, number }
    }

    fn bytes(&self) -> usize {
        self.number * BATCH
    }

    /// Measures what sends the whole image and gives the bytes on the wire.
    fn measure(&self, send: impl FnOnce() -> Result<u64>) -> Result<Figure> {
        let (begun, cpu) = (Instant::now(), cpu_seconds()?);
        let wire = send()?;
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
        let bytes = self.bytes() as f64;
        Ok(Figure {
            mib_per_second: bytes / MIB as f64 / seconds,
            cpu_seconds_per_gib: cpu / (bytes / (1 << 30) as f64),
            wire_share: wire as f64 / bytes,
        })
    }
}

const TEXT: &[u8] = b"The quick brown fox jumps over the lazy dog. ";

/// CPU time of this process so far.
fn cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields = text.rsplit_once(") ").context("/proc/self/stat")?.1;
    let ticks = |index: usize| {
        fields
            .split(' ')
            .nth(index)
            .and_then(|n| n.parse::<f64>().ok())
    };
    // Fields 14 and 15 of proc(5), counted from the third; a tick is a hundredth of a second on Linux.
    let (user, system) = (ticks(11).context("utime")?, ticks(12).context("stime")?);
    Ok((user + system) / 100.0)
}

/// Identities of two hosts, and the folder that they were read from.
struct Tls {
    near: Identity,
    far: Identity,
}

impl Tls {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        pki::init(folder.path())?;
        let of = |host: &str| -> Result<Identity> {
            pki::issue(folder.path(), &[host.to_owned()])?;
            Ok(Identity::load(
                &folder.path().join(pki::AUTHORITY),
                &folder.path().join(format!("{host}.pem")),
                &folder.path().join(format!("{host}.key")),
            )?)
        };
        Ok(Self {
            near: of("near")?,
            far: of("far")?,
        })
    }
}

fn tcp() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    Ok((near, listener.accept()?.0))
}

/// Both ends of a connection, plain or TLS.
fn pair(tls: Option<&Tls>, watch: &Arc<Watch>) -> Result<(Box<dyn Duplex>, Box<dyn Duplex>)> {
    let (near, far) = tcp()?;
    let near = Socket::new(near, watch.clone())?;
    let far = Socket::new(far, watch.clone())?;
    let Some(tls) = tls else {
        return Ok((Box::new(near), Box::new(far)));
    };
    thread::scope(|scope| {
        let accepting = scope.spawn(|| tls.far.accept(far, ["near"]));
        let mut near = tls.near.connect(near, "far")?;
        let accepted = accepting
            .join()
            .map_err(|_| anyhow!("accepting panicked"))?;
        let mut far = accepted?.0;
        near.sock.set_deadline(None);
        far.sock.set_deadline(None);
        let ends: (Box<dyn Duplex>, Box<dyn Duplex>) = (Box::new(near), Box::new(far));
        Ok(ends)
    })
}

/// The limit: one thread writes the image, another reads it, in pieces of the same size.
fn bare(image: &Image, tls: Option<&Tls>) -> Result<Figure> {
    let (near, far) = tcp()?;
    let (mut near, mut far): (Box<dyn Duplex>, Box<dyn Duplex>) = match tls {
        None => (Box::new(near), Box::new(far)),
        Some(_) => pair(tls, &Arc::new(Watch::default()))?,
    };
    image.measure(|| {
        thread::scope(|scope| {
            let reading = scope.spawn(move || -> Result<()> {
                let mut buffer = vec![0; BATCH];
                while far.read(&mut buffer)? > 0 {}
                Ok(())
            });
            for batch in image.batches.iter().cycle().take(image.number) {
                near.write_all(&batch.data)?;
            }
            near.flush()?;
            drop(near);
            // The end of a TLS connection without a farewell is an error, and expected here.
            let end = reading.join().map_err(|_| anyhow!("reading panicked"))?;
            if tls.is_none() {
                end?;
            }
            Ok(image.bytes() as u64)
        })
    })
}

/// Counts what it takes.
#[derive(Default)]
struct Count(AtomicU64);

impl Sink for Count {
    fn bytes(&self, _: &[u8]) -> unmoved::job::Result<()> {
        Ok(())
    }

    fn pages(&self, batch: &mut Batch) -> unmoved::job::Result<()> {
        self.0.fetch_add(batch.data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn barrier(&self) -> unmoved::job::Result<()> {
        Ok(())
    }
}

/// Our transport.
fn ours(image: &Image, tls: Option<&Tls>, compress: Compression, streams: u8) -> Result<Figure> {
    let control = Arc::new(Control::new(JobOptions {
        compress,
        parallel: streams,
        timeout_ms: Some(Duration::from_secs(600).as_secs() * 1000),
        ..JobOptions::default()
    }));
    let watch = Watch::of(control.clone());
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for _ in 0..streams {
        let (a, b) = pair(tls, &watch)?;
        near.push(a);
        far.push(b);
    }
    let mut batches = image.batches.clone();
    let count = Count::default();
    let figure = image.measure(|| {
        thread::scope(|scope| {
            let receiving = scope.spawn(|| receive(far, &count, &watch));
            let sender = Sender::new(near, control.clone())?;
            for number in 0..image.number {
                let index = number % batches.len();
                let mut batch = std::mem::take(&mut batches[index]);
                sender.pages(&mut batch)?;
                // What comes back is a batch that was sent before, content and all.
                batches[index] = batch;
                if batches[index].words.is_empty() {
                    let next = (index + 1) % batches.len();
                    batches[index] = batches[next].clone();
                }
            }
            sender.finish()?;
            let received = receiving
                .join()
                .map_err(|_| anyhow!("receiving panicked"))??;
            Ok(received.wire)
        })
    })?;
    let arrived = count.0.into_inner();
    ensure!(
        arrived == image.bytes() as u64,
        "only {arrived} bytes have arrived"
    );
    Ok(figure)
}
