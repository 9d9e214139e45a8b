//! One worker of a run of disk traffic: one request at a time on a part of the device it owns.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::options::Options;
use super::pattern::{self, BLOCK, Stamp};
use super::shared::{Kind, Shared};
use crate::sys::block;
use crate::sys::buffer::PageBuffer;

/// What a block must hold: the number of the write, or nothing known (never written, discarded, or
/// a write that failed and may or may not have reached the medium).
const UNKNOWN: u64 = 0;

pub(super) struct Worker {
    shared: Arc<Shared>,
    index: usize,
    first: u64,
    expected: Vec<u64>,
    buffer: PageBuffer,
    options: Options,
    random: u64,
    writes: u64,
    requests: u64,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, options: &Options, index: usize, part: u64) -> Self {
        let blocks = usize::try_from(part).unwrap_or(usize::MAX);
        let largest = usize::try_from(options.max_blocks).unwrap_or(1) * BLOCK;
        let random = shared.run.wrapping_add(index as u64) | 1;
        Self {
            shared,
            index,
            first: index as u64 * part,
            expected: vec![UNKNOWN; blocks],
            buffer: PageBuffer::new(largest),
            options: options.clone(),
            random,
            writes: 0,
            requests: 0,
        }
    }

    /// The next number of a xorshift sequence, below `limit` (not 0).
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // The upper half: the lower bits of xorshift are the weaker ones.
        (self.random >> 32) % limit.max(1)
    }

    /// A random range of the own part: first block (relative) and number of blocks.
    fn range(&mut self) -> (usize, usize) {
        let span = self.options.max_blocks - self.options.min_blocks + 1;
        // Small requests are as frequent as large ones by halving the span at random.
        let halvings = self.below(u64::from(span.ilog2()) + 1);
        let count = self.options.min_blocks + self.below((span >> halvings).max(1));
        let start = self.below((self.expected.len() as u64).saturating_sub(count) + 1);
        (
            usize::try_from(start).unwrap_or(0),
            usize::try_from(count).unwrap_or(1),
        )
    }

    fn offset(&self, start: usize) -> u64 {
        (self.first + start as u64) * BLOCK as u64
    }

    /// Makes requests until told to stop.
    pub(super) fn run(&mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.requests += 1;
            let (start, count) = self.range();
            let discards = self.options.discard_every;
            if discards != 0
                && self.requests.is_multiple_of(discards)
                && !self.shared.discard_refused.load(Ordering::Relaxed)
            {
                self.discard(start, count);
            } else if self.below(100) < self.options.reads {
                self.read(start, count);
            } else {
                self.write(start, count);
            }
            if self.options.pause_us != 0 {
                std::thread::sleep(Duration::from_micros(self.options.pause_us));
            }
        }
    }

    fn write(&mut self, start: usize, count: usize) {
        let sequence = self.shared.sequence.fetch_add(1, Ordering::Relaxed);
        let data = &mut self.buffer[..count * BLOCK];
        for (index, block) in data.chunks_exact_mut(BLOCK).enumerate() {
            pattern::fill(
                block,
                Stamp {
                    run: self.shared.run,
                    block: self.first + (start + index) as u64,
                    sequence,
                },
            );
        }
        let offset = self.offset(start);
        let data = &self.buffer[..count * BLOCK];
        let written = self
            .shared
            .request(self.index, Kind::Write, data.len(), || {
                self.shared.file.write_all_at(data, offset)
            });
        let holds = if written.is_ok() { sequence } else { UNKNOWN };
        self.expected[start..start + count].fill(holds);
        self.writes += 1;
        if self.options.flush_every != 0 && self.writes.is_multiple_of(self.options.flush_every) {
            let _ = self
                .shared
                .request(self.index, Kind::Flush, 0, || self.shared.file.sync_data());
        }
    }

    fn discard(&mut self, start: usize, count: usize) {
        // Before the request: once it is made, either content is right.
        self.expected[start..start + count].fill(UNKNOWN);
        let (offset, length) = (self.offset(start), count * BLOCK);
        let done = self.shared.request(self.index, Kind::Discard, length, || {
            block::discard(&self.shared.file, offset, length as u64)
        });
        if done.is_err_and(|error| error.kind() == std::io::ErrorKind::Unsupported) {
            self.shared.discard_refused.store(true, Ordering::Relaxed);
        }
    }

    /// Reads a range and checks what is known of it; the number of blocks checked.
    fn read(&mut self, start: usize, count: usize) -> u64 {
        let offset = self.offset(start);
        let data = &mut self.buffer[..count * BLOCK];
        let read = self.shared.request(self.index, Kind::Read, data.len(), || {
            self.shared.file.read_exact_at(data, offset)
        });
        if read.is_err() {
            return 0;
        }
        let mut good = 0;
        let mut checked = 0;
        for (index, block) in self.buffer[..count * BLOCK].chunks_exact(BLOCK).enumerate() {
            let sequence = self.expected[start + index];
            if sequence == UNKNOWN {
                continue;
            }
            let stamp = Stamp {
                run: self.shared.run,
                block: self.first + (start + index) as u64,
                sequence,
            };
            checked += 1;
            match pattern::check(block, stamp) {
                Ok(()) => good += 1,
                Err(fault) => self.shared.mismatch(stamp.block, sequence, fault),
            }
        }
        self.shared.good(good);
        checked
    }

    /// Reads the whole part and checks everything that is known of it; the number of blocks.
    pub(super) fn check_all(&mut self) -> u64 {
        let step = self.buffer.len() / BLOCK;
        let mut checked = 0;
        let mut start = 0;
        while start < self.expected.len() {
            let count = step.min(self.expected.len() - start);
            checked += self.read(start, count);
            start += count;
        }
        checked
    }
}
