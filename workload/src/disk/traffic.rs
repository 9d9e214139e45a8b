//! A run of disk traffic: workers over disjoint parts of a device, and a final check.
//!
//! Each worker is a thread with one request in flight, so `depth` workers make the queue's depth.
//! Each owns a contiguous part of the device and knows what every block of it must hold; so no two
//! requests in flight overlap and every read is checkable.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::options::Options;
use super::pattern::BLOCK;
use super::shared::Shared;
use super::worker::Worker;
use crate::sys::block;
use crate::sys::time::{Clock, now, since};

/// The workers do little but wait; 32 of them must fit in a small guest.
const STACK: usize = 64 << 10;

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
        let mut this = Self {
            shared: Arc::new(Shared::new(file, options)),
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
        figures["complete"] = (threads == self.shared.workers()).into();
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
