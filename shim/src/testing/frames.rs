//! Frames made of ordinary memory, for tests.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use xen_abi::{Mfn, PAGE_SIZE};

use crate::mem::{FramePool, Frames};

/// A machine's frames; a frame exists once [`add`](Self::add) was called for it.
///
/// A clone has the same contents and shares nothing that can be seen; a page is copied when one of
/// the two changes it.
#[derive(Default)]
pub struct FakeFrames {
    frames: RefCell<BTreeMap<Mfn, Rc<[u8; PAGE_SIZE]>>>,
    record: RefCell<Option<Record>>,
    on_store: RefCell<Option<OnStore>>,
}

/// What is asked before each store.
type OnStore = Box<dyn Fn(Mfn)>;

/// What the host has recorded of writes, as Xen 4.17 does: a frame that comes is not marked, and what is
/// written to it goes unnoticed, until the record is cleared (`p2m_add_page`, `hap_clean_dirty_bitmap`).
#[derive(Clone, Debug, Default)]
struct Record {
    marked: BTreeSet<Mfn>,
    unprotected: BTreeSet<Mfn>,
}

impl Clone for FakeFrames {
    fn clone(&self) -> Self {
        Self {
            frames: self.frames.clone(),
            record: self.record.clone(),
            on_store: RefCell::default(),
        }
    }
}

impl core::fmt::Debug for FakeFrames {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("FakeFrames")
            .field(&self.frames.borrow().len())
            .finish()
    }
}

impl FakeFrames {
    /// Makes a machine whose frames are `0..count`, all zero.
    pub fn new(count: u64) -> Self {
        let zeros = Rc::new([0; PAGE_SIZE]);
        let frames = (0..count).map(|mfn| (Mfn(mfn), Rc::clone(&zeros)));
        Self {
            frames: RefCell::new(frames.collect()),
            ..Self::default()
        }
    }

    /// Starts recording which frames are written.
    pub fn record_writes(&self) {
        *self.record.borrow_mut() = Some(Record::default());
    }

    /// Takes the frames that were marked as written since the last call, or since writes are recorded.
    pub fn take_written(&self) -> BTreeSet<Mfn> {
        let mut record = self.record.borrow_mut();
        let record = record.as_mut().expect("writes are recorded");
        std::mem::take(record).marked
    }

    /// Marks a frame as written, whatever else is known of it; what Xen does when it writes itself.
    pub fn mark(&self, frame: Mfn) {
        if let Some(record) = &mut *self.record.borrow_mut() {
            record.marked.insert(frame);
        }
    }

    /// Fills a frame; the host does not notice.
    pub fn fill_unnoticed(&self, frame: Mfn, byte: u8) {
        let mut frames = self.frames.borrow_mut();
        let page = frames.get_mut(&frame);
        *page.unwrap_or_else(|| panic!("no frame {frame:?}")) = Rc::new([byte; PAGE_SIZE]);
    }

    /// Adds a zeroed frame.
    pub fn add(&self, frame: Mfn) {
        if let Some(record) = &mut *self.record.borrow_mut() {
            record.unprotected.insert(frame);
        }
        self.frames
            .borrow_mut()
            .insert(frame, Rc::new([0; PAGE_SIZE]));
    }

    /// Removes a frame; any later access to it panics.
    pub fn remove(&self, frame: Mfn) {
        let removed = self.frames.borrow_mut().remove(&frame);
        assert!(removed.is_some(), "{frame:?} is not there");
    }

    /// Whether there is such a frame.
    pub fn contains(&self, frame: Mfn) -> bool {
        self.frames.borrow().contains_key(&frame)
    }

    /// Has `judge` called with the frame before each store; it panics if that must not be.
    pub fn on_store(&self, judge: impl Fn(Mfn) + 'static) {
        self.on_store.replace(Some(Box::new(judge)));
    }

    /// Returns a frame's entries, as they are now.
    pub fn words(&self, frame: Mfn) -> Vec<u64> {
        let page = self.page(frame);
        let (words, _) = page.as_chunks();
        words.iter().map(|&word| u64::from_le_bytes(word)).collect()
    }

    /// Sets bits as the CPU's page walker does, of which nobody is told.
    pub fn note_walk(&self, frame: Mfn, offset: usize, bits: u64) {
        let value = self.load64(frame, offset) | bits;
        self.set(frame, offset, &value.to_le_bytes());
    }

    fn page(&self, frame: Mfn) -> Rc<[u8; PAGE_SIZE]> {
        let frames = self.frames.borrow();
        let page = frames.get(&frame);
        page.unwrap_or_else(|| panic!("no frame {frame:?}")).clone()
    }

    fn set(&self, frame: Mfn, offset: usize, buf: &[u8]) {
        let mut frames = self.frames.borrow_mut();
        let page = frames
            .get_mut(&frame)
            .unwrap_or_else(|| panic!("no frame {frame:?}"));
        Rc::make_mut(page)[offset..offset + buf.len()].copy_from_slice(buf);
        if let Some(record) = &mut *self.record.borrow_mut()
            && !record.unprotected.contains(&frame)
        {
            record.marked.insert(frame);
        }
    }

    fn get<const N: usize>(&self, frame: Mfn, offset: usize) -> [u8; N] {
        assert!(
            offset.is_multiple_of(N),
            "misaligned access at {frame:?}+{offset:#x}"
        );
        let mut bytes = [0; N];
        self.read(frame, offset, &mut bytes);
        bytes
    }

    fn put<const N: usize>(&self, frame: Mfn, offset: usize, bytes: [u8; N]) {
        assert!(
            offset.is_multiple_of(N),
            "misaligned access at {frame:?}+{offset:#x}"
        );
        self.write(frame, offset, &bytes);
    }
}

impl Frames for FakeFrames {
    fn load8(&self, frame: Mfn, offset: usize) -> u8 {
        u8::from_le_bytes(self.get(frame, offset))
    }
    fn store8(&self, frame: Mfn, offset: usize, value: u8) {
        self.put(frame, offset, value.to_le_bytes());
    }
    fn load16(&self, frame: Mfn, offset: usize) -> u16 {
        u16::from_le_bytes(self.get(frame, offset))
    }
    fn store16(&self, frame: Mfn, offset: usize, value: u16) {
        self.put(frame, offset, value.to_le_bytes());
    }
    fn cas16(&self, frame: Mfn, offset: usize, old: u16, new: u16) -> u16 {
        let seen = self.load16(frame, offset);
        if seen == old {
            self.store16(frame, offset, new);
        }
        seen
    }
    fn load32(&self, frame: Mfn, offset: usize) -> u32 {
        u32::from_le_bytes(self.get(frame, offset))
    }
    fn store32(&self, frame: Mfn, offset: usize, value: u32) {
        self.put(frame, offset, value.to_le_bytes());
    }
    fn load64(&self, frame: Mfn, offset: usize) -> u64 {
        u64::from_le_bytes(self.get(frame, offset))
    }
    fn store64(&self, frame: Mfn, offset: usize, value: u64) {
        self.put(frame, offset, value.to_le_bytes());
    }
    fn cas64(&self, frame: Mfn, offset: usize, old: u64, new: u64) -> u64 {
        let seen = self.load64(frame, offset);
        if seen == old {
            self.store64(frame, offset, new);
        }
        seen
    }
    fn fetch_or64(&self, frame: Mfn, offset: usize, bits: u64) -> u64 {
        let seen = self.load64(frame, offset);
        self.store64(frame, offset, seen | bits);
        seen
    }
    fn fetch_and64(&self, frame: Mfn, offset: usize, bits: u64) -> u64 {
        let seen = self.load64(frame, offset);
        self.store64(frame, offset, seen & bits);
        seen
    }
    fn read(&self, frame: Mfn, offset: usize, buf: &mut [u8]) {
        let frames = self.frames.borrow();
        let page = frames
            .get(&frame)
            .unwrap_or_else(|| panic!("no frame {frame:?}"));
        buf.copy_from_slice(&page[offset..offset + buf.len()]);
    }
    fn write(&self, frame: Mfn, offset: usize, buf: &[u8]) {
        if let Some(judge) = &*self.on_store.borrow() {
            judge(frame);
        }
        self.set(frame, offset, buf);
    }
    fn clear(&self, frame: Mfn) {
        self.write(frame, 0, &[0; PAGE_SIZE]);
    }
}

/// A pool over a list of frames that exist already.
impl FramePool for Vec<Mfn> {
    fn available(&self) -> usize {
        self.len()
    }
    fn take(&mut self) -> Option<Mfn> {
        self.pop()
    }
    fn give_back(&mut self, frame: Mfn) {
        self.push(frame);
    }
}
