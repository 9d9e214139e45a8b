//! A guest whose memory is a map, and that writes when it is looked at.
//!
//! Its Xen keeps the record of writes as Xen does with hardware-assisted paging, seen from 4.17 to 4.21.0: a
//! frame that is put into the domain's P2M (`p2m_add_page`) is writable at once and not marked, so nothing is
//! known of it, nor of what is written to it, until the next time that the record is read and cleared; that
//! write-protects it like all others (`hap_clean_dirty_bitmap`).  One that is taken out is not marked either.
//! (4.19.5, 4.20.3 and 4.21.1 mark what is put in, as does commit 98fccdf0ac7c of Xen.)  What Xen itself writes
//! into a guest's frame, for a hypercall, is marked always (`__hvm_copy`); the shim makes use of that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{ABSENT, Bitmap, Memory};
use crate::job::{PAGE_SIZE, Result};

/// Frames with one byte each: what their page is full of.
pub(crate) struct FakeGuest {
    pub(crate) frames: BTreeMap<u64, u8>,
    /// What it writes while a batch is read, one list for each.
    pub(crate) writes: VecDeque<Vec<(u64, Option<u8>)>>,
    pub(crate) dirty: BTreeSet<u64>,
    /// Frames whose writes are not noticed until the record is cleared.
    pub(crate) unprotected: BTreeSet<u64>,
    /// It has Xen write into each frame that it gets, as guests in the shim have.
    pub(crate) has_shim: bool,
    /// Frames that a backend writes, through a grant of the guest's.
    pub(crate) granted: BTreeSet<u64>,
    pub(crate) recording: Option<u64>,
    pub(crate) end_of_ram: u64,
    /// How many frames it was asked the types of.
    pub(crate) asked: u64,
}

impl Default for FakeGuest {
    fn default() -> Self {
        Self {
            frames: BTreeMap::new(),
            writes: VecDeque::new(),
            dirty: BTreeSet::new(),
            unprotected: BTreeSet::new(),
            has_shim: true,
            granted: BTreeSet::new(),
            recording: None,
            end_of_ram: 3000,
            asked: 0,
        }
    }
}

impl FakeGuest {
    fn run(&mut self) {
        for (frame, value) in self.writes.pop_front().unwrap_or_default() {
            let Some(value) = value else {
                self.frames.remove(&frame);
                self.unprotected.remove(&frame);
                continue;
            };
            if self.frames.insert(frame, value).is_none() {
                self.unprotected.insert(frame);
                if self.has_shim {
                    self.dirty.insert(frame);
                }
            } else if !self.unprotected.contains(&frame) && !self.granted.contains(&frame) {
                self.dirty.insert(frame);
            }
        }
    }
}

impl Memory for FakeGuest {
    fn end_of_frames(&self) -> Result<u64> {
        Ok(self.frames.keys().last().map_or(0, |last| last + 1))
    }

    fn end_of_ram(&self) -> Result<u64> {
        Ok(self.end_of_ram)
    }

    fn own_frames(&self) -> Result<u64> {
        Ok(self.frames.len() as u64)
    }

    fn types(&mut self, words: &mut [u64]) -> Result<()> {
        self.run();
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

    fn written_by_others(&self) -> Result<Vec<u64>> {
        Ok(self.granted.iter().copied().collect())
    }

    fn record_writes(&mut self, frames: u64) -> Result<()> {
        self.recording = Some(frames);
        self.dirty.clear();
        self.unprotected.clear();
        Ok(())
    }

    fn stop_recording(&mut self) -> Result<()> {
        self.recording = None;
        Ok(())
    }

    fn take_dirty(&mut self, _: bool) -> Result<Bitmap> {
        let end = self.recording.unwrap();
        let mut dirty = Bitmap::below(end);
        let known = std::mem::take(&mut self.dirty);
        dirty.extend(known.into_iter().filter(|frame| *frame < end));
        self.unprotected.clear();
        self.run();
        Ok(dirty)
    }
}
