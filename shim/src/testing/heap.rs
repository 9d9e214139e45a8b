//! The unit tests' allocator: the system's, which a test can make as small as the shim's.
//!
//! It counts as the shim's does: what a block takes with its header, a part that is used for
//! ordinary, and one that is set aside for when that is full.

#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;
use std::thread_local;

use crate::heap;

/// What one test's heap is like and how far it is used.
#[derive(Clone, Copy, Debug, Default)]
pub struct SmallHeap {
    /// Bytes of the ordinary part.
    pub size: usize,
    /// The ordinary part is full from this allocation on, whatever is in use.
    pub full_from: u64,
    /// Allocations so far.
    pub allocations: u64,
    /// Bytes in use of the ordinary part.
    pub ordinary: usize,
    /// Bytes in use of what is set aside.
    pub aside: usize,
    /// Bytes of it that others are taken to have in use: as much as makes it a heap without room,
    /// from the moment that it is full.
    others: usize,
    /// The most that was.
    pub most_aside: usize,
    /// What is allocated is not the shim's: somebody else acts.
    is_paused: bool,
    /// How often there was no memory at all, where the shim would have ended.
    pub failures: u64,
}

thread_local! {
    static SMALL: Cell<Option<SmallHeap>> = const { Cell::new(None) };
}

struct Tests;

#[global_allocator]
static ALLOCATOR: Tests = Tests;

/// Where a block was counted.
const UNCOUNTED: usize = 0;
const ORDINARY: usize = 1;
const ASIDE: usize = 2;

/// Bytes before a block for the note of where it was counted.
fn header(layout: Layout) -> usize {
    layout.align().max(16)
}

/// What a block takes of the shim's heap: `talc` adds a word and rounds up to four.
fn cost(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(32)
}

// SAFETY: every block is one of the system's, larger by its header.
unsafe impl GlobalAlloc for Tests {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let header = header(layout);
        let Ok(larger) = Layout::from_size_align(layout.size() + header, header) else {
            return core::ptr::null_mut();
        };
        // SAFETY: its size is not 0.
        let start = unsafe { System.alloc(larger) };
        if start.is_null() {
            return start;
        }
        // SAFETY: the header is at least 16 bytes, and aligned as its size is.
        unsafe {
            start.cast::<usize>().write(count(cost(layout)));
            start.add(header)
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let header = header(layout);
        // SAFETY: `alloc` made the block with this layout, and wrote the header.
        unsafe {
            let start = block.sub(header);
            uncount(start.cast::<usize>().read(), cost(layout));
            let larger = Layout::from_size_align_unchecked(layout.size() + header, header);
            System.dealloc(start, larger);
        }
    }
}

fn count(bytes: usize) -> usize {
    let Some(mut small) = SMALL.try_with(Cell::get).ok().flatten() else {
        return UNCOUNTED;
    };
    if small.is_paused {
        return UNCOUNTED;
    }
    small.allocations += 1;
    if small.allocations > small.full_from {
        small.fill();
    }
    let is_full = small.others > 0 || small.ordinary + bytes > small.size;
    if is_full {
        small.aside += bytes;
        small.most_aside = small.most_aside.max(small.aside);
        small.failures += u64::from(small.aside + small.others > heap::SET_ASIDE);
        heap::take(bytes);
    } else {
        small.ordinary += bytes;
    }
    SMALL.set(Some(small));
    if is_full { ASIDE } else { ORDINARY }
}

fn uncount(place: usize, bytes: usize) {
    let Some(mut small) = SMALL.try_with(Cell::get).ok().flatten() else {
        return;
    };
    match place {
        // One of an earlier run may be freed in a later one.
        ORDINARY => small.ordinary = small.ordinary.saturating_sub(bytes),
        ASIDE => {
            small.aside -= bytes;
            heap::give_back(bytes);
        }
        _ => {}
    }
    SMALL.set(Some(small));
}

impl SmallHeap {
    /// Makes every allocation of `run` come from a heap of `size` bytes that is full from its
    /// `full_from`th allocation on.  What `run` has allocated is freed in it.  Returns how far the
    /// heap was used.
    pub fn with(size: usize, full_from: u64, run: impl FnOnce()) -> Self {
        SMALL.set(Some(Self {
            size,
            full_from,
            ..Self::default()
        }));
        run();
        Self::set_full(false);
        let used = SMALL.take().expect("it was set above");
        assert_eq!(used.aside, 0, "what was borrowed is given back");
        assert!(heap::has_room());
        used
    }

    /// Runs what is not the shim's, such as a fake of its host: in memory of its own.
    pub fn outside<R>(run: impl FnOnce() -> R) -> R {
        let Some(small) = SMALL.get().filter(|small| !small.is_paused) else {
            return run();
        };
        let borrowed = small.aside + small.others;
        heap::give_back(borrowed);
        SMALL.set(Some(Self {
            is_paused: true,
            ..small
        }));
        let result = run();
        let small = Self::now();
        SMALL.set(Some(Self {
            is_paused: false,
            ..small
        }));
        heap::take(borrowed);
        result
    }

    /// Returns how far the heap is used by now.
    pub fn now() -> Self {
        SMALL.get().expect("inside `with`")
    }

    /// Gives the heap room again, or takes it away.
    pub fn set_full(is_full: bool) {
        let mut small = Self::now();
        if is_full {
            small.fill();
        } else {
            small.full_from = u64::MAX;
            heap::give_back(core::mem::take(&mut small.others));
        }
        SMALL.set(Some(small));
    }

    fn fill(&mut self) {
        if self.others == 0 {
            self.others = heap::TOLERATED;
            heap::take(self.others);
        }
    }
}
