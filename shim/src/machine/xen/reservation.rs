//! The memory that the host has for this domain.

use xen_abi::memory::{Reservation, op as memory_op};
use xen_abi::{DomId, Errno, Mfn, hypercall as nr};

use super::call::op;

/// log2 of the frames in a large extent: 2 MiB, which is what the toolstack fills domains with.
const LARGE: u32 = 9;
/// Extents in one call.
const BATCH: usize = 128;

/// Returns how many frames the host counts for the domain: all its memory, and what it keeps for
/// frames that were not touched yet.
pub fn reserved_frames() -> Result<u64, Errno> {
    let mut domain = DomId::SELF.0;
    op(nr::MEMORY_OP, memory_op::CURRENT_RESERVATION, &mut domain)
}

/// Gives back `count` frames from `first` on; returns how many the host has taken.
pub fn give_back(first: Mfn, count: u64) -> u64 {
    let end = first.0 + count;
    let mut taken = 0;
    let mut next = first.0;
    while next < end {
        let is_large = next.is_multiple_of(1 << LARGE) && end - next >= 1 << LARGE;
        let order = if is_large { LARGE } else { 0 };
        // Single frames only up to the next large one, so that the rest of the range goes in large
        // extents.
        let behind = match is_large {
            true => end & !((1 << LARGE) - 1),
            false => end.min((next + 1).next_multiple_of(1 << LARGE)),
        };
        let extents = ((behind - next) >> order).min(BATCH as u64);
        taken += decrease(next, extents, order) << order;
        // On in any case: what the host refuses it would refuse again.
        next += extents << order;
    }
    taken
}

/// Gives back adjacent extents; returns how many the host has taken.
fn decrease(first: u64, extents: u64, order: u32) -> u64 {
    let mut list = [0; BATCH];
    for (entry, index) in list.iter_mut().zip(0..extents) {
        *entry = first + (index << order);
    }
    let mut reservation = Reservation {
        extent_start: &raw const list as u64,
        nr_extents: extents,
        extent_order: order,
        domid: DomId::SELF.0,
        ..Reservation::default()
    };
    op(
        nr::MEMORY_OP,
        memory_op::DECREASE_RESERVATION,
        &mut reservation,
    )
    // As for one that takes none: the caller tells how many the host keeps.
    .unwrap_or(0)
}

/// Gives back or asks for one frame.
pub(super) fn change(command: u64, frame: Mfn) -> Result<(), Errno> {
    let extent = frame.0;
    let mut reservation = Reservation {
        extent_start: &raw const extent as u64,
        nr_extents: 1,
        domid: DomId::SELF.0,
        ..Reservation::default()
    };
    match op(nr::MEMORY_OP, command, &mut reservation)? {
        // The answer is a count; 0 is the refusal.
        1 => Ok(()),
        _ => Err(Errno::ENOMEM),
    }
}
