//! The domain's memory as the shim divides it at boot: what is free, what is taken.

use alloc::vec::Vec;

use unmoved_shim::mem::FramePool;
use xen_abi::{Mfn, PAGE_SIZE};

use super::layout;

/// Returns where a frame appears in the direct map.
pub fn direct(frame: Mfn) -> *mut u8 {
    (layout::DIRECT + frame.addr()) as *mut u8
}

/// Ranges of free frames, ascending, as `[start, end)`.
///
/// Its storage is an array, since the heap is made from what it hands out.
#[derive(Clone, Copy, Default)]
pub struct FreeMemory {
    ranges: [(u64, u64); 32],
    len: usize,
}

impl FreeMemory {
    /// Adds a range of RAM.
    pub fn add(&mut self, start: u64, end: u64) {
        if start < end && self.len < self.ranges.len() {
            self.ranges[self.len] = (start, end);
            self.len += 1;
        }
    }

    /// Adds a frame that was taken before, to a range that it touches if there is one.
    pub fn add_frame(&mut self, frame: u64) {
        let touching = self.ranges[..self.len]
            .iter_mut()
            .find(|range| range.1 == frame);
        match touching {
            Some(range) => range.1 = frame + 1,
            None => self.add(frame, frame + 1),
        }
    }

    /// Takes a range out.
    pub fn reserve(&mut self, start: u64, end: u64) {
        let old = *self;
        self.len = 0;
        for &(from, to) in &old.ranges[..old.len] {
            self.add(from, to.min(start));
            self.add(from.max(end), to);
        }
    }

    /// Takes `count` adjacent frames below 4 GiB, of which the first is a multiple of `align`.
    pub fn take(&mut self, count: u64, align: u64) -> Option<Mfn> {
        let start = self.ranges[..self.len]
            .iter()
            .map(|&(start, end)| (start.next_multiple_of(align), end.min(1 << 20)))
            .find(|&(start, end)| start + count <= end)?
            .0;
        self.reserve(start, start + count);
        Some(Mfn(start))
    }

    /// The ranges.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges[..self.len]
    }

    /// The longest range below 4 GiB.
    pub fn longest(&self) -> (u64, u64) {
        let below = self
            .ranges()
            .iter()
            .map(|&(start, end)| (start, end.min(1 << 20)));
        below
            .max_by_key(|&(start, end)| end.saturating_sub(start))
            .unwrap_or((0, 0))
    }
}

/// Frames that the shim keeps for itself.
#[derive(Default)]
pub struct Pool(Vec<Mfn>);

impl Pool {
    /// Makes a pool of adjacent frames.
    pub fn new(start: Mfn, count: u64) -> Self {
        Self((start.0..start.0 + count).rev().map(Mfn).collect())
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl FramePool for Pool {
    fn available(&self) -> usize {
        self.0.len()
    }

    fn take(&mut self) -> Option<Mfn> {
        let frame = self.0.pop()?;
        // SAFETY: the frame is the pool's, so nobody else has a pointer into it.
        unsafe { direct(frame).write_bytes(0, PAGE_SIZE) };
        Some(frame)
    }

    fn give_back(&mut self, frame: Mfn) {
        self.0.push(frame);
    }
}
