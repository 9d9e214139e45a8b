//! The image that is sent, and what sending it took.

use std::time::Instant;

use anyhow::{Context, Result};
use unmoved::job::{Batch, PAGE_SIZE};

/// A batch as large as Xen's own writer makes them.
pub const BATCH: usize = Batch::MOST * PAGE_SIZE;
const MIB: usize = 1 << 20;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    pub mib_per_second: f64,
    pub cpu_seconds_per_gib: f64,
    pub wire_share: f64,
}

/// The image: a few different batches over and over, larger together than any cache.  Pages are half noise
/// and half text, as memory often is; none is all zero, for such a page does not travel with us, and with a
/// bare loop it does.
pub struct Image {
    pub batches: Vec<Batch>,
    pub number: usize,
}

impl Image {
    pub fn new(size_mib: usize) -> Self {
        let number = (size_mib * MIB).div_ceil(BATCH);
        let mut state = 1_u64;
        let mut page = || {
            let mut bytes = vec![0; PAGE_SIZE];
            for word in bytes[..PAGE_SIZE / 2].chunks_exact_mut(8) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                word.copy_from_slice(&state.to_le_bytes());
            }
            for (byte, text) in bytes[PAGE_SIZE / 2..].iter_mut().zip(TEXT.iter().cycle()) {
                *byte = *text;
            }
            bytes
        };
        let batches = (0..number.min(32))
            .map(|_| Batch {
                words: (0..Batch::MOST as u64).collect(),
                data: (0..Batch::MOST).flat_map(|_| page()).collect(),
            })
            .collect();
        Self { batches, number }
    }

    pub fn bytes(&self) -> usize {
        self.number * BATCH
    }

    /// Measures what sends the whole image and gives the bytes on the wire.
    pub fn measure(&self, send: impl FnOnce() -> Result<u64>) -> Result<Figure> {
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
