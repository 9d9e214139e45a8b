//! What the transport costs: an image sent over the loopback interface, in every combination, beside the
//! bare loops that are the limit of what any transport could do here.
//!
//! No Xen: the pages are in memory already.  Both ends run on this machine and share its processors, and
//! the CPU seconds are those of both.  `cargo xtask bench-transfer` starts this.

mod image;
mod ways;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use unmoved::job::Compression;

use image::{Figure, Image};
use ways::{Tls, bare, ours};

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

/// What the speed of a single stream must be of a bare loop's, without TLS and with it.
const PLAIN: f64 = 0.8;
const TLS: f64 = 0.6;

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
    println!("plain single stream / bare write/read: {plain:.2} (target {PLAIN})");
    println!("TLS single stream / bare rustls:       {tls:.2} (target {TLS})");
    if let Some(file) = &arguments.json {
        write(file, arguments, rows, [plain, tls])?;
    }
    ensure!(
        plain >= PLAIN && tls >= TLS,
        "slower than it must be beside a bare loop"
    );
    Ok(())
}

fn write(
    file: &Path,
    arguments: &Arguments,
    rows: &[(String, Figure)],
    [plain, tls]: [f64; 2],
) -> Result<()> {
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
