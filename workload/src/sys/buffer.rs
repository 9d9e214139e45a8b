//! Page-aligned memory, as direct I/O wants it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const ALIGN: usize = 4096;

/// A zeroed byte buffer that starts on a page boundary.
pub struct PageBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its memory and hands it out by the usual borrow rules only.
unsafe impl Send for PageBuffer {}
// SAFETY: as above; shared access is read-only.
unsafe impl Sync for PageBuffer {}

impl PageBuffer {
    /// A buffer of `length` bytes (at least one page is reserved).
    #[must_use]
    pub fn new(length: usize) -> Self {
        let layout = Layout::from_size_align(length.max(ALIGN), ALIGN)
            .expect("buffer sizes are bounded by the callers, far below isize::MAX");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self { start, layout }
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and not freed before.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid and initialised for the layout's size as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}
