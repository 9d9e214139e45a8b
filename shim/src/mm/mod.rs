//! The guest's memory: who owns a frame, what it is used as, and every change of a page table.
//!
//! The guest's page tables are used by the CPU as they stand, so safety rests on what they may
//! contain.  [`Ledger`] keeps one word per frame: its owner and, while anything refers to it, *one*
//! use with a count.  A frame in use as a page table or descriptor table is therefore mapped
//! writable nowhere, and its entries were checked when it got that use ([`validate`]) and are
//! checked at every change ([`update`], [`store`]).  [`Mm`] is the view through which all of it is
//! done; it borrows the ledger for the length of one hypercall or fault.
//!
//! Two rules about translations that a CPU may still cache:
//! * An operation returns the [`Flush`] that its caller owes *before any guest code runs*.
//! * A frame whose last typed reference went away may still be reached as what it was: written
//!   through a stale translation, or walked as a table.  The [ledger](epoch) remembers that, and the
//!   frame gets another use, or a store from the shim, only after a full flush; [`Tlb`] performs it
//!   when nobody else did meanwhile.  This can not wait for the end of the operation: the shim
//!   itself reads guest memory through the same translations.

mod balloon;
mod descriptor;
mod entry;
mod epoch;
mod frame;
mod ledger;
mod m2p;
mod pages;
mod roots;
mod store;
mod update;
mod validate;
mod walk;
pub mod work;

#[cfg(test)]
mod tests;

use xen_abi::GuestVa;
use xen_abi::mmu::XEN_SLOTS;

use crate::mem::Frames;

pub use descriptor::{check_descriptor, check_ldt};
pub use entry::{adjust_l1, adjust_table};
pub use frame::{FrameInfo, FrameUse, MAX_REFERENCES, Owner};
pub use ledger::Ledger;
pub use m2p::{M2p, M2pTable};
pub use roots::AddressSpaces;
pub use store::LiveEntry;
pub use walk::{Mapping, walk};

/// What the CPUs must flush before guest code runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[must_use]
pub enum Flush {
    /// Nothing.
    #[default]
    None,
    /// The translation of one page, on the vCPUs that the guest named.
    Page(GuestVa),
    /// Every translation, global ones included.  On every vCPU, unless the operation was a change
    /// of base (then the calling vCPU) or an `update_va_mapping` (then those that the guest named).
    Full,
}

impl Flush {
    /// Returns a flush that covers both.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, one) | (one, Self::None) => one,
            (a, b) if a == b => a,
            // Pages are not collected: a list may name thousands, and one full flush costs less.
            _ => Self::Full,
        }
    }
}

/// Performs the one flush that can not wait for the end of an operation.
pub trait Tlb {
    /// Flushes every cached translation, global ones included, on every vCPU before it returns.
    fn flush_everything(&self);
}

/// The shim's own L4 entries, for slots 256 to 271 of every address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShimSlots(pub [u64; XEN_SLOTS]);

/// A view of guest memory for the length of one operation.
///
/// Everything that it is given (frame numbers, addresses, entries) may come from the guest
/// unchecked, unless a method says otherwise.
pub struct Mm<'a, F: Frames + ?Sized> {
    /// The machine's frames.
    pub frames: &'a F,
    /// Owner and use of each.
    pub ledger: &'a mut Ledger,
    /// What every L4 table holds in the shim's slots.
    pub slots: &'a ShimSlots,
    /// How to flush at once.
    pub tlb: &'a dyn Tlb,
}
