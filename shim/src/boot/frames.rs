//! Lists of frames, kept as runs: memory comes in few large pieces, and a list of single frame
//! numbers for many GiB would need memory of its own.

use alloc::vec::Vec;
use core::ops::Range;

use xen_abi::Mfn;

/// Frames that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRun {
    /// The first of them.
    pub first: Mfn,
    /// How many there are.
    pub count: u64,
}

/// An ordered list of frames.
#[derive(Clone, Debug, Default)]
pub struct FrameList {
    /// Each run with the index of its first frame in the list; none is empty.
    runs: Vec<(u64, FrameRun)>,
    len: u64,
}

impl FrameList {
    /// Makes an empty list.
    pub const fn new() -> Self {
        Self {
            runs: Vec::new(),
            len: 0,
        }
    }

    /// Returns the number of frames.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a frame.
    pub fn push(&mut self, frame: Mfn) {
        self.push_run(FrameRun {
            first: frame,
            count: 1,
        });
    }

    /// Appends the frames of `run`.
    pub fn push_run(&mut self, run: FrameRun) {
        if run.count == 0 {
            return;
        }
        match self.runs.last_mut() {
            Some((_, last)) if last.first.0 + last.count == run.first.0 => last.count += run.count,
            _ => self.runs.push((self.len, run)),
        }
        self.len += run.count;
    }

    /// Keeps the first `len` frames and returns the others.
    pub fn split_off(&mut self, len: u64) -> Self {
        let mut kept = Self::new();
        let mut rest = Self::new();
        for run in self.runs() {
            let here = run.count.min(len.saturating_sub(kept.len));
            kept.push_run(FrameRun { count: here, ..run });
            rest.push_run(FrameRun {
                first: Mfn(run.first.0 + here),
                count: run.count - here,
            });
        }
        *self = kept;
        rest
    }

    /// Returns the frame at `index`, or `None` beyond the end.
    pub fn get(&self, index: u64) -> Option<Mfn> {
        let behind = self.runs.partition_point(|&(start, _)| start <= index);
        let &(start, run) = self.runs.get(behind.checked_sub(1)?)?;
        let within = index - start;
        (within < run.count).then(|| Mfn(run.first.0 + within))
    }

    /// Returns the runs in order.
    pub fn runs(&self) -> impl Iterator<Item = FrameRun> {
        self.runs.iter().map(|&(_, run)| run)
    }

    /// Returns the frames in order.
    pub fn iter(&self) -> impl Iterator<Item = Mfn> {
        self.runs()
            .flat_map(|run| (run.first.0..run.first.0 + run.count).map(Mfn))
    }
}

impl FromIterator<Mfn> for FrameList {
    fn from_iter<I: IntoIterator<Item = Mfn>>(frames: I) -> Self {
        let mut list = Self::new();
        frames.into_iter().for_each(|frame| list.push(frame));
        list
    }
}

impl From<Range<u64>> for FrameList {
    fn from(frames: Range<u64>) -> Self {
        let mut list = Self::new();
        list.push_run(FrameRun {
            first: Mfn(frames.start),
            count: frames.end.saturating_sub(frames.start),
        });
        list
    }
}

/// Frames of a list that are handed out one after the other.
#[derive(Debug, Default)]
pub(super) struct Pool {
    frames: FrameList,
    taken: u64,
}

impl Pool {
    pub(super) fn new(frames: FrameList) -> Self {
        Self { frames, taken: 0 }
    }

    /// Takes the next frame.
    pub(super) fn take(&mut self) -> Option<Mfn> {
        let frame = self.frames.get(self.taken)?;
        self.taken += 1;
        Some(frame)
    }

    /// Adds a frame at the end.
    pub(super) fn add(&mut self, frame: Mfn) {
        self.frames.push(frame);
    }

    pub(super) const fn left(&self) -> u64 {
        self.frames.len() - self.taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, proptest};
    use proptest::{collection::vec, prop_assert_eq};
    use xen_abi::Mfn;

    use super::FrameList;

    proptest! {
        #[test]
        fn a_list_is_the_sequence_that_was_pushed(
            frames in vec((0u64..50, 1u64..5), 0..30).prop_map(|runs| {
                runs.into_iter().flat_map(|(first, len)| first..first + len).collect::<Vec<_>>()
            })
        ) {
            let list: FrameList = frames.iter().copied().map(Mfn).collect();
            prop_assert_eq!(list.len(), frames.len() as u64);
            prop_assert_eq!(list.iter().map(|mfn| mfn.0).collect::<Vec<_>>(), frames.clone());
            for (index, &frame) in frames.iter().enumerate() {
                prop_assert_eq!(list.get(index as u64), Some(Mfn(frame)));
            }
            prop_assert_eq!(list.get(list.len()), None);
        }

        #[test]
        fn a_list_in_two_parts_is_still_the_list(frames in vec(0u64..50, 0..30), at in 0u64..40) {
            let mut list: FrameList = frames.iter().copied().map(Mfn).collect();
            let rest = list.split_off(at);
            prop_assert_eq!(list.len(), at.min(frames.len() as u64));
            let both: Vec<u64> = list.iter().chain(rest.iter()).map(|mfn| mfn.0).collect();
            prop_assert_eq!(both, frames);
        }
    }
}
