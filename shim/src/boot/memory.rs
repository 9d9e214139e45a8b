//! The new guest's memory while it is put together: which frame is behind which page.
//!
//! The only record of that is the guest's own P2M list, written in place.

use xen_abi::{Mfn, PAGE_SIZE, Pfn};

use super::frames::{FrameList, Pool};
use super::tables::ENTRIES;
use crate::mem::Frames;

/// A P2M entry without a frame (`INVALID_P2M_ENTRY`).
const NO_FRAME: u64 = !0;

/// There are fewer frames than pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfFrames;

pub(super) struct Memory<'a, F, M> {
    pub(super) frames: &'a F,
    pool: Pool,
    p2m: FrameList,
    set_m2p: M,
}

impl<'a, F: Frames, M: FnMut(Mfn, Pfn)> Memory<'a, F, M> {
    /// Starts a guest of up to `nr_pages` pages on the frames in `pool`; its P2M list takes the
    /// first of them.
    pub(super) fn new(
        frames: &'a F,
        mut pool: Pool,
        nr_pages: u64,
        set_m2p: M,
    ) -> Result<Self, OutOfFrames> {
        let p2m: FrameList = (0..nr_pages.div_ceil(ENTRIES))
            .map_while(|_| pool.take())
            .collect();
        if p2m.len() * ENTRIES < nr_pages {
            return Err(OutOfFrames);
        }
        for frame in p2m.iter() {
            frames.write(frame, 0, &[0xff; PAGE_SIZE]);
        }
        Ok(Self {
            frames,
            pool,
            p2m,
            set_m2p,
        })
    }

    /// Returns the frames of the P2M list.
    pub(super) const fn p2m_frames(&self) -> &FrameList {
        &self.p2m
    }

    /// Puts `frame` behind page `pfn`.
    pub(super) fn assign(&mut self, pfn: u64, frame: Mfn) {
        let (list, at) = self.entry(pfn);
        self.frames.store64(list, at, frame.0);
        (self.set_m2p)(frame, Pfn(pfn));
    }

    /// Puts a frame of the pool, whatever it holds, behind page `pfn`.
    pub(super) fn fresh(&mut self, pfn: u64) -> Result<Mfn, OutOfFrames> {
        let frame = self.pool.take().ok_or(OutOfFrames)?;
        self.assign(pfn, frame);
        Ok(frame)
    }

    /// Puts a frame of zeroes behind page `pfn`.
    pub(super) fn zeroed(&mut self, pfn: u64) -> Result<Mfn, OutOfFrames> {
        let frame = self.fresh(pfn)?;
        self.frames.clear(frame);
        Ok(frame)
    }

    /// Returns the frame behind page `pfn`, if there is one by now.
    pub(super) fn find(&self, pfn: u64) -> Option<Mfn> {
        let (list, at) = self.entry(pfn);
        let frame = self.frames.load64(list, at);
        (frame != NO_FRAME).then_some(Mfn(frame))
    }

    /// Returns the frame behind page `pfn`, which must have been assigned.
    pub(super) fn mfn(&self, pfn: u64) -> Mfn {
        self.find(pfn)
            .expect("every page of the layout was assigned a frame")
    }

    /// Gives the pool a frame that turned out not to be needed.
    pub(super) fn release(&mut self, frame: Mfn) {
        self.pool.add(frame);
    }

    /// Returns how many frames wait in the pool.
    pub(super) const fn left(&self) -> u64 {
        self.pool.left()
    }

    fn entry(&self, pfn: u64) -> (Mfn, usize) {
        let list = self
            .p2m
            .get(pfn / ENTRIES)
            .expect("the list has an entry for every page");
        (list, (pfn % ENTRIES) as usize * 8)
    }
}
