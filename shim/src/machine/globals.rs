//! The few facts about the machine that hot paths look up: set once while booting.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static FRAME_LIMIT: AtomicU64 = AtomicU64::new(1 << 20);
static SMAP: AtomicBool = AtomicBool::new(false);

/// Returns the first frame number that the direct map does not cover.
#[inline]
pub fn frame_limit() -> u64 {
    FRAME_LIMIT.load(Ordering::Relaxed)
}

/// Sets what [`frame_limit`] returns; the direct map must cover it.
pub fn set_frame_limit(limit: u64) {
    FRAME_LIMIT.store(limit, Ordering::Relaxed);
}

/// Whether supervisor accesses to guest memory need `stac`.
#[inline]
pub fn has_smap() -> bool {
    SMAP.load(Ordering::Relaxed)
}

/// Sets what [`has_smap`] returns.
pub fn set_smap(on: bool) {
    SMAP.store(on, Ordering::Relaxed);
}
