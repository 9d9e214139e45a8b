//! A guest whose memory is a map, and that writes when it is looked at.

use std::collections::BTreeMap;

use super::{ABSENT, Bitmap, Memory};
use crate::job::{PAGE_SIZE, Result};

/// Frames with one byte each: what their page is full of.
#[derive(Default)]
pub(crate) struct FakeGuest {
    pub(crate) frames: BTreeMap<u64, u8>,
    /// What it writes while a batch is read, one list for each.
    pub(crate) writes: std::collections::VecDeque<Vec<(u64, Option<u8>)>>,
    pub(crate) dirty: std::collections::BTreeSet<u64>,
    pub(crate) recording: Option<u64>,
    /// How many frames it was asked the types of.
    pub(crate) asked: u64,
}

impl FakeGuest {
    fn run(&mut self) {
        for (frame, value) in self.writes.pop_front().unwrap_or_default() {
            match value {
                Some(value) => drop(self.frames.insert(frame, value)),
                None => drop(self.frames.remove(&frame)),
            }
            self.dirty.insert(frame);
        }
    }
}

impl Memory for FakeGuest {
    fn end_of_frames(&self) -> Result<u64> {
        Ok(self.frames.keys().last().map_or(0, |last| last + 1))
    }

    fn own_frames(&self) -> Result<u64> {
        Ok(self.frames.len() as u64)
    }

    fn types(&mut self, words: &mut [u64]) -> Result<()> {
        self.asked += words.len() as u64;
        for word in words {
            if !self.frames.contains_key(word) {
                *word |= ABSENT << 60;
            }
        }
        Ok(())
    }

    fn read(&mut self, frames: &mut Vec<u64>, into: &mut Vec<u8>) -> Result<()> {
        self.run();
        frames.retain(|frame| self.frames.contains_key(frame));
        for frame in frames {
            into.resize(into.len() + PAGE_SIZE, self.frames[frame]);
        }
        Ok(())
    }

    fn record_writes(&mut self, frames: u64) -> Result<()> {
        self.recording = Some(frames);
        self.dirty.clear();
        Ok(())
    }

    fn stop_recording(&mut self) -> Result<()> {
        self.recording = None;
        Ok(())
    }

    fn take_dirty(&mut self, _: bool) -> Result<Bitmap> {
        let end = self.recording.unwrap();
        let mut bits = vec![0; end.div_ceil(64) as usize];
        for frame in std::mem::take(&mut self.dirty) {
            if frame < end {
                bits[(frame / 64) as usize] |= 1 << (frame % 64);
            }
        }
        Ok(Bitmap(bits))
    }
}
