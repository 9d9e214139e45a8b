//! What the workers of a run share: the device, when to stop, and the figures.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::options::Options;
use super::pattern::Fault;
use crate::sys::time::{Clock, now, since};

/// Only so many faults are kept with their particulars; all are counted.
const FAULTS_KEPT: usize = 16;
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
    /// Nothing is done yet.
    pub(super) fn new(file: File, options: &Options) -> Self {
        Self {
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
        }
    }

    /// How many workers there are to be.
    pub(super) fn workers(&self) -> usize {
        self.began.len()
    }

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

    /// What is known of the run so far.
    pub(super) fn figures(&self) -> Value {
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
