//! The frames that the shim keeps for itself, and where it sees a frame.

use alloc::vec::Vec;

use unmoved_shim::mem::FramePool;
use xen_abi::{Mfn, PAGE_SIZE};

use super::layout;

/// Returns where a frame appears in the direct map.
pub fn direct(frame: Mfn) -> *mut u8 {
    (layout::DIRECT + frame.addr()) as *mut u8
}

/// Frames that the shim keeps for itself.
#[derive(Default)]
pub struct Pool(Vec<Mfn>);

impl Pool {
    /// Makes a pool of adjacent frames.
    pub fn new(start: Mfn, count: u64) -> Self {
        // Descending, so that the lowest is taken first.
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
        // Cleared when it is taken, not here. On top, for its lines may still be in the caches.
        self.0.push(frame);
    }
}
