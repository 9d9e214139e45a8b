//! `cargo xtask bench-stream`: our stream tools beside Xen's own, on the same files in the same run.
//!
//! The tools take turns, so that a change of the machine's load hits both; the median counts.  Files
//! were written just before, so that they are read from memory as far as it reaches.

mod measure;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use measure::{Measured, measure};
use serde_json::{Value, json};
use unmoved_lab::stream_tools::StreamTools;
use unmoved_lab::{paths, progress};
use unmoved_stream::legacy::Width;
use unmoved_stream::libxc::PvInfo;
use unmoved_stream::testing::{Guest, LegacySample, Sample};

/// Measure.
#[derive(Debug, Args)]
pub struct BenchStream {
    /// Size of the guest's memory in GiB
    #[arg(long, value_name = "GIB", default_value_t = 4)]
    size: u64,
    /// How often each tool runs; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
    /// Where to put the files, one at a time
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Frames in a GiB.
const FRAMES: u64 = (1 << 30) / 4096;
const VERIFY: f64 = 3.0;
const CONVERT: f64 = 1.5;
/// Most memory that our tools may use.
const MEMORY_KIB: u64 = 32 << 10;

/// One comparison.
struct Row {
    name: &'static str,
    xen: Measured,
    ours: Measured,
    /// Ours must be so many times as fast.
    target: Option<f64>,
}

impl BenchStream {
    /// Do it.
    ///
    /// # Errors
    /// If a tool fails, or ours are slower or larger than they must be.
    pub fn run(self) -> Result<()> {
        ensure!(self.repeat > 0, "--repeat must be 1 or more");
        let xen = StreamTools::get()?;
        let unmoved = build()?;
        let folder = self.folder.clone().unwrap_or_else(paths::target);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot write to {}", folder.display()))?;
        let folder = tempfile::Builder::new()
            .prefix("bench-stream-")
            .tempdir_in(folder)?;
        let mut rows = self.verify(&xen, &unmoved, folder.path())?;
        rows.extend(self.convert(&xen, &unmoved, folder.path())?);
        let figures: Vec<Value> = rows.iter().map(|row| row.figures(self.size)).collect();
        rows.iter().for_each(|row| row.print(self.size));
        let figures = json!({"gib": self.size, "repeat": self.repeat, "rows": figures});
        crate::json::write(self.json.as_deref(), &figures)?;
        let missed: Vec<&str> = rows
            .iter()
            .filter(|r| !r.is_met())
            .map(|r| r.name)
            .collect();
        if !missed.is_empty() {
            bail!("slower or larger than it must be: {}", missed.join(", "));
        }
        Ok(())
    }

    fn verify(&self, xen: &StreamTools, unmoved: &Path, folder: &Path) -> Result<Vec<Row>> {
        let file = folder.join("guest.save");
        let sample = Sample {
            pages: self.size * FRAMES,
            ..Sample::new(Guest::Pv(PvInfo::Bits64))
        };
        write(&file, |out| Ok(sample.xl(out)?.flush()?))?;
        let theirs = || {
            let mut command = xen.verify();
            command.args(["-f", "xl", "-i"]).arg(&file);
            command
        };
        let ours = |more: &[&str]| {
            let mut command = Command::new(unmoved);
            command.args(["stream", "verify", "--format", "xl"]);
            command.args(more).arg(&file);
            command
        };
        let rows = vec![
            self.row("verify a file", Some(VERIFY), theirs, || ours(&[]))?,
            self.row("verify, read all of it", None, theirs, || {
                ours(&["--read-all"])
            })?,
        ];
        std::fs::remove_file(&file)?;
        Ok(rows)
    }

    fn convert(&self, xen: &StreamTools, unmoved: &Path, folder: &Path) -> Result<Vec<Row>> {
        let file = folder.join("legacy.save");
        let sample = LegacySample {
            pages: self.size * FRAMES,
            batch: 1024,
            ..LegacySample::new(Width::Bits64, Guest::Pv(PvInfo::Bits64))
        };
        write(&file, |out| Ok(sample.write(out)?.flush()?))?;
        let theirs = |target: &str| {
            let mut command = xen.convert();
            command.args(["-w", "64", "-g", "pv", "-f", "libxl", "-i"]);
            command.arg(&file).arg("-o").arg(target);
            command
        };
        let ours = |target: &str| {
            let mut command = Command::new(unmoved);
            command.args(["stream", "convert"]).arg(&file).arg(target);
            command
        };
        let rows = vec![
            self.row(
                "convert to nowhere",
                Some(CONVERT),
                || theirs("/dev/null"),
                || ours("/dev/null"),
            )?,
            self.row(
                "convert to a pipe",
                None,
                || theirs("/dev/stdout"),
                || ours("-"),
            )?,
        ];
        Ok(rows)
    }

    fn row(
        &self,
        name: &'static str,
        target: Option<f64>,
        xen: impl Fn() -> Command,
        ours: impl Fn() -> Command,
    ) -> Result<Row> {
        let step = progress::step(name);
        let (mut theirs, mut mine) = (Vec::new(), Vec::new());
        for _ in 0..self.repeat {
            theirs.push(measure(xen())?);
            mine.push(measure(ours())?);
        }
        let row = Row {
            name,
            xen: Measured::median(theirs),
            ours: Measured::median(mine),
            target,
        };
        step.done(&format!("{:.2} times as fast", row.ratio()));
        Ok(row)
    }
}

impl Row {
    fn ratio(&self) -> f64 {
        self.xen.seconds / self.ours.seconds
    }

    fn is_met(&self) -> bool {
        self.target.is_none_or(|target| self.ratio() >= target) && self.ours.peak_kib <= MEMORY_KIB
    }

    fn figures(&self, gib: u64) -> Value {
        json!({
            "name": self.name,
            "xen": self.xen.figures(gib),
            "unmoved": self.ours.figures(gib),
            "ratio": self.ratio(),
            "cpu_ratio": self.xen.cpu_seconds / self.ours.cpu_seconds,
            "target": self.target,
            "met": self.is_met(),
        })
    }

    fn print(&self, gib: u64) {
        let target = match self.target {
            Some(target) => format!("target {target}"),
            None => String::new(),
        };
        println!(
            "{:24} xen {}   unmoved {}   {:7.2}x {target}",
            self.name,
            self.xen.describe(gib),
            self.ours.describe(gib),
            self.ratio()
        );
    }
}

/// Builds the command and says where it is.
fn build() -> Result<PathBuf> {
    let step = progress::step("building unmoved");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(paths::workspace())
        .args(["build", "--quiet", "--release", "--package", "unmoved"])
        .args(["--bin", "unmoved"])
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cannot build unmoved");
    step.done("ok");
    Ok(paths::target().join("release/unmoved"))
}

/// Writes one of the files.
fn write(path: &Path, make: impl FnOnce(BufWriter<File>) -> Result<()>) -> Result<()> {
    let step = progress::step(format!("writing {}", path.display()));
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    make(BufWriter::new(file)).with_context(|| format!("cannot write {}", path.display()))?;
    step.done("ok");
    Ok(())
}
