//! Whether the heap has room for what a guest makes grow.
//!
//! The heap is as large as it was made at boot, and an allocation that fails ends the domain.  So a
//! part of it is *set aside*: it is used only when all the rest is full, and while more than a
//! little of it is in use, there is no *room*.  Without room nothing grows by the guest's doing; it
//! gets an error, or waits, and what it can do to free memory still works.  What is set aside is
//! for that, for answers, and for a move, which can not be refused once it has begun.
//!
//! The rule: whoever keeps something on behalf of the guest asks for [`room`] before each step,
//! which takes a few KiB at most.  Structures whose size is fixed by the configuration need not.

use xen_abi::Errno;

/// Bytes that are set aside.  A move with everything at its limits takes less than two thirds of
/// it, which a test measures.
pub const SET_ASIDE: usize = 1 << 20;
/// Bytes of it that may be in use while there still is room: what is kept for long, such as the
/// buffer of a queue, would else deny it for ever.
pub const TOLERATED: usize = SET_ASIDE / 8;

/// Whether no more of what is set aside is in use than is tolerated.
#[inline]
pub fn has_room() -> bool {
    borrowed::bytes() < TOLERATED
}

/// [`has_room`], as an error for the guest.
///
/// # Errors
/// `ENOMEM` without room.
#[inline]
pub fn room() -> Result<(), Errno> {
    match has_room() {
        true => Ok(()),
        false => Err(Errno::ENOMEM),
    }
}

pub use borrowed::{give_back, take};

/// What of the part that is set aside is in use, as the allocator says.
#[cfg(not(test))]
mod borrowed {
    use core::sync::atomic::{AtomicUsize, Ordering};

    static BORROWED: AtomicUsize = AtomicUsize::new(0);

    pub(super) fn bytes() -> usize {
        BORROWED.load(Ordering::Relaxed)
    }

    /// The allocator has taken `bytes` of what is set aside.
    pub fn take(bytes: usize) {
        BORROWED.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The allocator has got them back.
    pub fn give_back(bytes: usize) {
        BORROWED.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The same for each thread, since tests run beside each other.
#[cfg(test)]
mod borrowed {
    use core::cell::Cell;

    std::thread_local! {
        static BORROWED: Cell<isize> = const { Cell::new(0) };
    }

    pub(super) fn bytes() -> usize {
        BORROWED.get().max(0).cast_unsigned()
    }

    /// The allocator has taken `bytes` of what is set aside.
    pub fn take(bytes: usize) {
        BORROWED.set(BORROWED.get() + bytes.cast_signed());
    }

    /// The allocator has got them back.
    pub fn give_back(bytes: usize) {
        BORROWED.set(BORROWED.get() - bytes.cast_signed());
    }
}
