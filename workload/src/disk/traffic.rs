//! A run of disk traffic: workers over disjoint parts of a device, shared figures, a final check.
//!
//! Each worker is a thread with one request in flight, so `depth` workers make the queue's depth.
//! Each owns a contiguous part of the device and knows what every block of it must hold; so no two
//! requests in flight overlap and every read is checkable.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::options::Options;
use super::pattern::{BLOCK, Fault};
use super::worker::Worker;
use crate::sys::block;
use crate::sys::time::{Clock, now, since};

/// Only so many faults are kept with their particulars; all are counted.
const FAULTS_KEPT: usize = 16;
/// The workers do little but wait; 32 of them must fit in a small guest.
const STACK: usize = 64 << 10;

/// The kinds of request, as indices of the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Write,
    Read,
    Flush,
    Discard,
}

const KINDS: [(&str, Kind); 4] = [
    ("write", Kind::Write),
    ("read", Kind::Read),
    ("flush", Kind::Flush),
    ("discard", Kind::Discard),
];

#[derive(Default)]
struct Figures {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    max_ns: AtomicU64,
}

/// What the workers of a run have in common.
pub(super) struct Shared {
    pub(super) file: File,
    pub(super) run: u64,
    pub(super) stop: AtomicBool,
    pub(super) sequence: AtomicU64,
    pub(super) discard_refused: AtomicBool,
    figures: [Figures; 4],
    verified: AtomicU64,
    mismatches: AtomicU64,
    faults: Mutex<Vec<Value>>,
    /// When each worker's request in flight began (monotonic ns); 0: none.
    began: Vec<AtomicI64>,
}

impl Shared {
    /// Times one request and counts it.
    pub(super) fn request<T>(
        &self,
        worker: usize,
        kind: Kind,
        bytes: usize,
        act: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let start = now(Clock::Monotonic);
        self.began[worker].store(start, Ordering::Relaxed);
        let result = act();
        self.began[worker].store(0, Ordering::Relaxed);
        let figures = &self.figures[kind as usize];
        let took = since(Clock::Monotonic, start);
        figures.requests.fetch_add(1, Ordering::Relaxed);
        figures.max_ns.fetch_max(took, Ordering::Relaxed);
        match &result {
            Ok(_) => {
                figures.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(error) => {
                figures.errors.fetch_add(1, Ordering::Relaxed);
                self.keep(json!({ "kind": KINDS[kind as usize].0, "why": error.to_string() }));
            }
        }
        result
    }

    pub(super) fn good(&self, blocks: u64) {
        self.verified.fetch_add(blocks, Ordering::Relaxed);
    }

    pub(super) fn mismatch(&self, block: u64, expected: u64, fault: Fault) {
        self.mismatches.fetch_add(1, Ordering::Relaxed);
        self.keep(json!({
            "kind": "mismatch", "block": block, "expected": expected, "why": fault.to_string(),
        }));
    }

    fn keep(&self, fault: Value) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() < FAULTS_KEPT {
            faults.push(fault);
        }
    }

    fn figures(&self) -> Value {
        let mut all = serde_json::Map::new();
        let mut errors = self.mismatches.load(Ordering::Relaxed);
        for (name, kind) in KINDS {
            let one = &self.figures[kind as usize];
            errors += one.errors.load(Ordering::Relaxed);
            all.insert(
                name.into(),
                json!({
                    "requests": one.requests.load(Ordering::Relaxed),
                    "bytes": one.bytes.load(Ordering::Relaxed),
                    "errors": one.errors.load(Ordering::Relaxed),
                    "max_us": one.max_ns.load(Ordering::Relaxed) / 1000,
                }),
            );
        }
        let in_flight: Vec<i64> = self
            .began
            .iter()
            .map(|began| began.load(Ordering::Relaxed))
            .filter(|&began| began != 0)
            .collect();
        let oldest = in_flight
            .iter()
            .min()
            .map_or(0, |&began| since(Clock::Monotonic, began));
        all.insert("run".into(), format!("{:x}", self.run).into());
        all.insert("in_flight".into(), in_flight.len().into());
        all.insert("oldest_us".into(), (oldest / 1000).into());
        all.insert(
            "verified_blocks".into(),
            self.verified.load(Ordering::Relaxed).into(),
        );
        all.insert(
            "mismatches".into(),
            self.mismatches.load(Ordering::Relaxed).into(),
        );
        all.insert("errors".into(), errors.into());
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert("faults".into(), faults.clone().into());
        Value::Object(all)
    }
}

/// A running workload on one device.
pub struct Traffic {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Worker>>,
    device: String,
    started: i64,
}

impl Traffic {
    /// The device's path.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Starts the workers.  What the device held before is overwritten.
    ///
    /// # Errors
    /// If the device can not be opened or is too small for so many workers.
    pub fn start(options: &Options) -> io::Result<Self> {
        wait_for(&options.device, options.wait);
        let file = block::open(&options.device, options.direct)?;
        let size = match options.area {
            0 => block::size(&file)?,
            area => area.min(block::size(&file)?),
        };
        let part = size / BLOCK as u64 / options.depth as u64;
        if part < options.max_blocks {
            return Err(io::Error::other(format!(
                "{size} bytes are too few for {} requests of {} blocks",
                options.depth, options.max_blocks
            )));
        }
        let shared = Arc::new(Shared {
            file,
            run: crate::sys::time::tsc() ^ now(Clock::Realtime).unsigned_abs(),
            stop: AtomicBool::new(false),
            sequence: AtomicU64::new(1),
            discard_refused: AtomicBool::new(options.discard_every == 0),
            figures: Default::default(),
            verified: AtomicU64::new(0),
            mismatches: AtomicU64::new(0),
            faults: Mutex::default(),
            began: (0..options.depth).map(|_| AtomicI64::new(0)).collect(),
        });
        let mut this = Self {
            shared,
            workers: Vec::new(),
            device: options.device.display().to_string(),
            started: now(Clock::Monotonic),
        };
        for index in 0..options.depth {
            let mut worker = Worker::new(this.shared.clone(), options, index, part);
            let thread = std::thread::Builder::new()
                .stack_size(STACK)
                .spawn(move || {
                    worker.run();
                    worker
                });
            match thread {
                Ok(thread) => this.workers.push(thread),
                Err(error) => {
                    let _ = this.finish();
                    return Err(error);
                }
            }
        }
        Ok(this)
    }

    /// The figures so far.
    #[must_use]
    pub fn figures(&self) -> Value {
        let mut figures = self.shared.figures();
        figures["device"] = self.device.as_str().into();
        figures["seconds"] = (since(Clock::Monotonic, self.started) / 1_000_000_000).into();
        figures
    }

    /// Stops the workers, then reads and checks every block that was ever written; the figures
    /// with `checked_blocks` added.
    #[must_use]
    pub fn finish(mut self) -> Value {
        self.shared.stop.store(true, Ordering::Relaxed);
        let workers: Vec<Worker> = self
            .workers
            .drain(..)
            .filter_map(|thread| thread.join().ok())
            .collect();
        let mut checked = 0;
        let checks: Vec<JoinHandle<u64>> = workers
            .into_iter()
            .filter_map(|mut worker| {
                std::thread::Builder::new()
                    .stack_size(STACK)
                    .spawn(move || worker.check_all())
                    .ok()
            })
            .collect();
        let threads = checks.len();
        for thread in checks {
            checked += thread.join().unwrap_or(0);
        }
        let mut figures = self.figures();
        figures["checked_blocks"] = checked.into();
        figures["complete"] = (threads == self.shared.began.len()).into();
        figures
    }
}

/// Waits for a device to appear: its driver may still be shaking hands with the host.
fn wait_for(device: &Path, limit: Duration) {
    let end = Instant::now() + limit;
    while !device.exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::Traffic;
    use crate::disk::{Options, image, pattern::BLOCK};
    use crate::orders::Order;
    use std::io::{Seek, SeekFrom, Write};
    use std::time::Duration;

    fn traffic(path: &std::path::Path) -> Traffic {
        let dev = format!("dev={}", path.display());
        let words = [
            &dev,
            "depth=4",
            "max=64k",
            "direct=0",
            "flush=200",
            "discard=9",
        ];
        let order = Order::new("disk", words);
        Traffic::start(&Options::from_order(&order).expect("options")).expect("starts")
    }

    fn wait_for_requests(traffic: &Traffic, count: u64) {
        for _ in 0..3000 {
            if traffic.figures()["write"]["requests"].as_u64() >= Some(count) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no progress: {}", traffic.figures());
    }

    #[test]
    fn a_good_disk_has_no_errors_and_is_checked_whole() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        file.as_file().set_len(8 << 20).expect("sized");
        let traffic = traffic(file.path());
        wait_for_requests(&traffic, 500);
        let end = traffic.finish();
        assert_eq!(
            (&end["errors"], &end["mismatches"]),
            (&0.into(), &0.into()),
            "{end}"
        );
        assert!(end["checked_blocks"].as_u64() > Some(100), "{end}");
        assert_eq!(end["complete"], true);

        let from_outside = image::check(file.path()).expect("readable");
        assert_eq!(from_outside["damaged"], 0, "{from_outside}");
        assert!(from_outside["good"].as_u64() > Some(100), "{from_outside}");
    }

    #[test]
    fn one_corrupted_block_is_found() {
        let mut file = tempfile::NamedTempFile::new().expect("temporary file");
        file.as_file().set_len(8 << 20).expect("sized");
        let traffic = traffic(file.path());
        wait_for_requests(&traffic, 1000);
        // Between the last write and the check, as a lost write would.
        traffic
            .shared
            .stop
            .store(true, std::sync::atomic::Ordering::Relaxed);
        while traffic.workers.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let written = (0..2048)
            .find(|index| image::stamp_at(file.path(), *index).is_ok())
            .expect("some block is written");
        file.seek(SeekFrom::Start(written * BLOCK as u64 + 2000))
            .expect("seek");
        file.write_all(b"wrong").expect("write");
        let end = traffic.finish();
        assert_eq!(end["mismatches"], 1, "{end}");
        assert_eq!(end["faults"][0]["block"], written, "{end}");
    }

    #[test]
    fn a_device_too_small_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let dev = format!("dev={}", file.path().display());
        let order = Order::new("disk", [dev.as_str(), "direct=0"]);
        assert!(Traffic::start(&Options::from_order(&order).expect("options")).is_err());
    }
}
