//! A guest's behaviour, measured for a second.

use std::time::{Duration, Instant};

use event_listener::Listener;

use super::guest::{Bitmap, Memory};
use super::rounds;
use crate::job::{Control, Error, Estimate, PAGE_SIZE, Result, is_zero};

/// Half the time of the measurement: what is written in both halves counts as always written.
const WATCH: Duration = Duration::from_millis(500);
/// Most frames whose contents are sampled.
const SAMPLE: usize = 512;
/// Headers, CPU policy, vCPU state of a small guest.
const CONSTANT_BYTES: u64 = 16 << 10;
/// Number of pieces in which the sample is read and compressed.  The fastest one counts, because the first
/// runs with cold caches and other work interferes.
const PIECES: usize = 4;

/// The result of watching a guest.
pub(super) struct Seen {
    /// The estimate, for predictions.
    pub(super) estimate: Estimate,
    /// Its frames.
    pub(super) frames: Bitmap,
    /// What was written since the frames were listed.
    pub(super) dirty: Bitmap,
}

/// Watches a guest in log-dirty mode.
pub(super) fn estimate(guest: &mut dyn Memory, control: &Control) -> Result<Seen> {
    guest.take_dirty(false)?;
    let begun = Instant::now();
    let frames = rounds::present(guest, control)?;
    let pages = frames.len();
    let sample = sample(guest, &frames)?;
    pause(WATCH.saturating_sub(begun.elapsed()), control)?;
    let (mut first, first_time) = (guest.take_dirty(false)?, begun.elapsed());
    let begun = Instant::now();
    pause(WATCH, control)?;
    let (second, second_time) = (guest.take_dirty(false)?, begun.elapsed());
    let seconds = (first_time + second_time).as_secs_f64().max(0.001);
    let estimate = Estimate {
        pages,
        zero_share: sample.zero_share,
        compressed_share: sample.compressed_share,
        compress_bytes_per_second: sample.compress_bytes_per_second,
        read_bytes_per_second: sample.read_bytes_per_second,
        dirty_pages_per_second: (first.len() + second.len()) as f64 / seconds,
        hot_pages: first.common(&second),
        // The frames themselves are named once.
        constant_bytes: CONSTANT_BYTES + pages * 8,
    };
    first.add(&second);
    log::debug!("{estimate:?}");
    Ok(Seen {
        estimate,
        frames,
        dirty: first,
    })
}

/// Samples contents from all over the memory.
struct Sample {
    zero_share: f64,
    compressed_share: f64,
    compress_bytes_per_second: f64,
    read_bytes_per_second: f64,
}

fn sample(guest: &mut dyn Memory, frames: &Bitmap) -> Result<Sample> {
    let step = usize::try_from(frames.len()).unwrap_or(usize::MAX);
    let step = step.div_ceil(SAMPLE).max(1);
    let frames: Vec<u64> = frames.frames().step_by(step).collect();
    let (mut all, mut with_content, mut packed) = (0, 0, 0);
    let (mut read_bytes_per_second, mut compress_bytes_per_second) = (0.0_f64, 0.0_f64);
    let (mut data, mut content) = (Vec::new(), Vec::new());
    // Reuses its memory, as the rounds do: new memory is expensive in a paravirtualised control domain.
    let mut compressor = zstd::bulk::Compressor::new(1).map_err(Error::io("zstd"))?;
    let mut compressed = Vec::new();
    for piece in frames.chunks(frames.len().div_ceil(PIECES).max(1)) {
        data.clear();
        content.clear();
        let begun = Instant::now();
        guest.read(&mut piece.to_vec(), &mut data)?;
        read_bytes_per_second = read_bytes_per_second.max(speed(data.len(), begun));
        for page in data.chunks_exact(PAGE_SIZE).filter(|page| !is_zero(page)) {
            content.extend_from_slice(page);
        }
        let most = zstd::zstd_safe::compress_bound(content.len());
        if compressed.len() < most {
            compressed.resize(most, 0);
        }
        let begun = Instant::now();
        let size = compressor.compress_to_buffer(&content, &mut compressed[..]);
        let size = size.map_err(Error::io("zstd"))?;
        // Pages that do not get smaller are sent uncompressed.
        packed += size.min(content.len());
        if !content.is_empty() {
            let speed = speed(content.len(), begun);
            compress_bytes_per_second = compress_bytes_per_second.max(speed);
        }
        all += data.len();
        with_content += content.len();
    }
    let share = |part: usize, of: usize| part as f64 / of.max(1) as f64;
    Ok(Sample {
        zero_share: share(all - with_content, all),
        compressed_share: share(packed, with_content).min(1.0),
        compress_bytes_per_second,
        read_bytes_per_second,
    })
}

fn speed(bytes: usize, since: Instant) -> f64 {
    bytes as f64 / since.elapsed().as_secs_f64().max(1e-6)
}

/// Lets the guest run for a while; returns at once if the job is aborted.
fn pause(time: Duration, control: &Control) -> Result<()> {
    let until = Instant::now() + time;
    loop {
        let changed = control.listen();
        control.check()?;
        if changed.wait_deadline(until).is_none() {
            return control.check();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::estimate;
    use crate::job::{Control, Error, JobOptions};
    use crate::save::guest::Memory;
    use crate::save::guest::fake::FakeGuest;

    fn guest() -> FakeGuest {
        let mut guest = FakeGuest::default();
        // One half of the pages is zero.
        guest
            .frames
            .extend((0..4096).map(|frame| (frame, (frame / 16 % 2) as u8)));
        guest.record_writes(4096).unwrap();
        guest
    }

    #[test]
    fn a_sample_tells_how_much_is_zero() {
        let control = Control::new(JobOptions::default());
        let estimate = estimate(&mut guest(), &control).unwrap().estimate;
        assert_eq!(estimate.pages, 4096);
        assert_eq!(estimate.zero_share, 0.5);
        // Pages full of one byte become almost nothing.
        assert!(estimate.compressed_share < 0.1, "{estimate:?}");
        assert!(estimate.compress_bytes_per_second > 0.0 && estimate.read_bytes_per_second > 0.0);
        assert_eq!(estimate.hot_pages, 0);
    }

    #[test]
    fn an_abort_ends_the_watching() {
        let control = Control::new(JobOptions::default());
        control.abort();
        let result = estimate(&mut guest(), &control);
        assert!(matches!(result, Err(Error::Aborted)));
    }
}
