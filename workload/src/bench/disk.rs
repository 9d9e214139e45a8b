//! Disk throughput: large reads in order and small ones at random, past the page cache; and how long
//! a small one takes that is alone.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Results;
use crate::orders::{Order, OrderError};
use crate::sys::block;
use crate::sys::buffer::PageBuffer;

const LARGE: usize = 1 << 20;
const SMALL: usize = 4096;

/// What is done to the disk.
#[derive(Debug, Clone, Copy)]
struct Load {
    write: bool,
    random: bool,
    depth: u64,
    time: Duration,
}

/// Carries out `bench disk dev= reps= ms= depth= write=0|1 direct=0|1`.
///
/// # Errors
/// Senseless options, or what failed.
pub fn run(order: &Order) -> Result<Value, OrderError> {
    order.allow(&["dev", "reps", "ms", "depth", "write", "direct"])?;
    let device = Path::new(order.required("dev")?);
    let reps = order.number("reps", 5, 5..=1000)?;
    let depth = order.number("depth", 8, 1..=64)?;
    let load = Load {
        write: order.flag("write", false)?,
        random: false,
        depth,
        time: Duration::from_millis(order.number("ms", 1000, 10..=60_000)?),
    };
    let direct = order.flag("direct", true)?;
    let failed = |error: io::Error| OrderError(format!("bench: {}: {error}", device.display()));
    let (mut in_order, mut at_random, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..reps {
        let (bytes, time) = measure(device, direct, load).map_err(failed)?;
        in_order.push(bytes as f64 / f64::from(1 << 20) / time);
        let load = Load {
            random: true,
            ..load
        };
        let (bytes, time) = measure(device, direct, load).map_err(failed)?;
        at_random.push((bytes / SMALL as u64) as f64 / time);
        let (bytes, time) = measure(device, direct, Load { depth: 1, ..load }).map_err(failed)?;
        alone.push(time * 1e6 / (bytes / SMALL as u64) as f64);
    }
    let mut results = Results::default();
    results.add("disk_seq_mib_s", &in_order);
    results.add("disk_rand_iops", &at_random);
    results.add("disk_latency_us", &alone);
    Ok(results.into_json())
}

/// Bytes moved and the seconds it took.
fn measure(device: &Path, direct: bool, load: Load) -> io::Result<(u64, f64)> {
    let file = block::open(device, direct)?;
    let size = if load.random { SMALL } else { LARGE };
    let slots = block::size(&file)? / size as u64;
    if slots == 0 {
        return Err(io::Error::other("the device is too small"));
    }
    let (next, moved) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    let worker = |seed: u64| -> io::Result<()> {
        let mut buffer = PageBuffer::new(size);
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        while start.elapsed() < load.time {
            let slot = if load.random {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (random >> 20) % slots
            } else {
                next.fetch_add(1, Ordering::Relaxed) % slots
            };
            let offset = slot * size as u64;
            if load.write {
                file.write_all_at(&buffer[..size], offset)?;
            } else {
                file.read_exact_at(&mut buffer[..size], offset)?;
            }
            moved.fetch_add(size as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..=load.depth)
            .map(|seed| scope.spawn(move || worker(seed)))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a worker died")))
        })
    })?;
    if load.write {
        file.sync_data()?;
    }
    Ok((moved.load(Ordering::Relaxed), start.elapsed().as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::run;
    use crate::orders::Order;

    #[test]
    fn a_file_stands_in_for_a_disk() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let dev = format!("dev={}", file.path().display());
        let order = Order::new("bench", ["disk", &dev, "ms=10", "direct=0", "depth=2"]);
        assert!(run(&order).is_err(), "an empty device is refused");
        file.as_file().set_len(4 << 20).expect("sized");
        let found = run(&order).expect("measured");
        assert!(found["disk_seq_mib_s"].as_f64() > Some(0.0), "{found}");
        assert!(found["disk_rand_iops"].as_f64() > Some(0.0), "{found}");
        assert!(found["disk_latency_us"].as_f64() > Some(0.0), "{found}");
    }
}
