//! The shim's heap: a small permanent one, of which a part is set aside
//! ([`unmoved_shim::heap`]), and a large one that exists only while the guest's kernel is being
//! unpacked.

use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lock_api::{GuardSend, RawMutex};
use talc::TalcLock;
use talc::source::Manual;
use unmoved_shim::heap::{give_back, take};

/// A lock that spins: whoever holds it never waits for anything.
pub struct SpinLock(AtomicBool);

// SAFETY: `lock` returns only to the one caller that changed the flag from clear to set.
unsafe impl RawMutex for SpinLock {
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = GuardSend;

    fn lock(&self) {
        while !self.try_lock() {
            core::hint::spin_loop();
        }
    }

    fn try_lock(&self) -> bool {
        // Acquire, with the Release of `unlock`: what the last holder did to the heap is seen by
        // the next.
        !self.0.swap(true, Ordering::Acquire)
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

struct Heap {
    permanent: TalcLock<SpinLock, Manual>,
    aside: TalcLock<SpinLock, Manual>,
    aside_start: AtomicUsize,
    aside_end: AtomicUsize,
    boot: TalcLock<SpinLock, Manual>,
    boot_start: AtomicUsize,
    boot_end: AtomicUsize,
    use_boot: AtomicBool,
    /// Bytes of the permanent heap that are in use.
    in_use: AtomicUsize,
}

#[global_allocator]
static HEAP: Heap = Heap {
    permanent: TalcLock::new(Manual),
    aside: TalcLock::new(Manual),
    aside_start: AtomicUsize::new(0),
    aside_end: AtomicUsize::new(0),
    boot: TalcLock::new(Manual),
    boot_start: AtomicUsize::new(0),
    boot_end: AtomicUsize::new(0),
    use_boot: AtomicBool::new(false),
    in_use: AtomicUsize::new(0),
};

// SAFETY: each call is passed on to one of three allocators; a block goes back to the one it came
// from, which its address tells.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Relaxed here and below: one vCPU runs, and no interrupt handler allocates.
        if self.use_boot.load(Ordering::Relaxed) {
            // SAFETY: by the caller's promise.
            return unsafe { self.boot.alloc(layout) };
        }
        // Counted before it is known to succeed. One that fails everywhere ends the domain, so the
        // sum need not be right after it.
        self.in_use.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: by the caller's promise.
        let block = unsafe { self.permanent.alloc(layout) };
        if !block.is_null() {
            return block;
        }
        take(layout.size().max(1));
        // SAFETY: by the caller's promise.
        unsafe { self.aside.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let of = |start: &AtomicUsize, end: &AtomicUsize| {
            (start.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&(block as usize))
        };
        // By address, since the heap in use may be another by now: a block may outlive its time,
        // and the permanent heap may have room again.
        let heap = if of(&self.boot_start, &self.boot_end) {
            &self.boot
        } else {
            self.in_use.fetch_sub(layout.size(), Ordering::Relaxed);
            if of(&self.aside_start, &self.aside_end) {
                give_back(layout.size().max(1));
                &self.aside
            } else {
                &self.permanent
            }
        };
        // SAFETY: by the caller's promise, and by the choice above.
        unsafe { heap.dealloc(block, layout) }
    }
}

/// Returns how many bytes of the permanent heap are in use.
pub fn in_use() -> usize {
    HEAP.in_use.load(Ordering::Relaxed)
}

/// Gives memory to the permanent heap.
///
/// # Safety
///
/// The memory must be mapped, unused and given up for ever.
pub unsafe fn give(start: *mut u8, bytes: usize) {
    // SAFETY: by the caller's promise.
    let claimed = unsafe { HEAP.permanent.lock().claim(start, bytes) };
    assert!(
        claimed.is_some(),
        "a heap of {bytes} bytes is too small to manage"
    );
}

/// Sets memory aside for when the permanent heap is full.
///
/// # Safety
///
/// As for [`give`].
pub unsafe fn set_aside(start: *mut u8, bytes: usize) {
    // SAFETY: by the caller's promise.
    let claimed = unsafe { HEAP.aside.lock().claim(start, bytes) };
    assert!(
        claimed.is_some(),
        "a heap of {bytes} bytes is too small to manage"
    );
    let start = start as usize;
    HEAP.aside_start.store(start, Ordering::Relaxed);
    HEAP.aside_end.store(start + bytes, Ordering::Relaxed);
}

/// Runs `f` with every allocation made from `bytes` at `start`, which are the caller's again
/// afterwards.
///
/// # Safety
///
/// The memory must be mapped and unused, and `f` must not return or store anything allocated.
pub unsafe fn with_boot_heap<R>(start: *mut u8, bytes: usize, f: impl FnOnce() -> R) -> R {
    // SAFETY: by the caller's promise.
    let claimed = unsafe { HEAP.boot.lock().claim(start, bytes) };
    assert!(
        claimed.is_some(),
        "a heap of {bytes} bytes is too small to manage"
    );
    // The bounds stay behind for good. Nothing else of the heaps lies there, so no later block is
    // taken for one of these.
    HEAP.boot_start.store(start as usize, Ordering::Relaxed);
    HEAP.boot_end
        .store(start as usize + bytes, Ordering::Relaxed);
    HEAP.use_boot.store(true, Ordering::Relaxed);
    let result = f();
    HEAP.use_boot.store(false, Ordering::Relaxed);
    result
}
