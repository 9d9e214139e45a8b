//! Where everything lies in a new guest's memory.
//!
//! Pages are mapped from the kernel's base address upwards in the order of their PFNs:
//!
//! > memory below the kernel · kernel · ramdisk · P2M list · start info · xenstore ring · console
//! > ring · page tables · boot stack · at least 512 KiB of slack, up to a multiple of 4 MiB
//!
//! A kernel that asked for it has its ramdisk unmapped behind that, and its P2M list behind the
//! ramdisk, followed by the page tables that map it elsewhere.

use core::fmt;
use core::ops::Range;

use xen_abi::{PAGE_SHIFT, PAGE_SIZE};

use super::tables::{ENTRIES, TableCount};

/// The end of the mapping is a multiple of this, in bytes.
const ALIGNMENT: u64 = 4 << 20;
/// Bytes mapped behind the boot stack at least.
const SLACK: u64 = 512 << 10;
/// Top-level slots that belong to the hypervisor.
const HYPERVISOR_SLOTS: Range<u64> = 256..272;
/// log2 of the bytes that a top-level entry covers.
const SLOT_SHIFT: u32 = 39;

/// Why a kernel does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The guest has too few pages.
    TooLittleMemory {
        /// Pages that are needed to start it.
        needed: u64,
        /// Pages that there are.
        available: u64,
    },
    /// The kernel's mapping leaves its half of the address space, or enters the hypervisor's part.
    BadAddress {
        /// Virtual address of the first page.
        base: u64,
    },
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLittleMemory { needed, available } => write!(
                f,
                "too little memory: the kernel needs {} KiB to start, the guest has {} KiB",
                needed.saturating_mul(4),
                available.saturating_mul(4)
            ),
            Self::BadAddress { base } => {
                write!(
                    f,
                    "the kernel's mapping at {base:#x} leaves the guest's address space"
                )
            }
        }
    }
}

/// What there is to place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contents {
    pub(super) virt_base: u64,
    pub(super) kernel_pages: u64,
    pub(super) ramdisk_pages: u64,
    pub(super) unmapped_ramdisk: bool,
    pub(super) init_p2m: Option<u64>,
    pub(super) nr_pages: u64,
}

/// Where it was placed; ranges are of PFNs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Virtual address of PFN 0.
    pub virt_base: u64,
    /// The kernel and what lies below it.
    pub kernel: Range<u64>,
    /// The ramdisk.
    pub ramdisk: Range<u64>,
    /// The P2M list.
    pub p2m: Range<u64>,
    /// Virtual address of the P2M list.
    pub p2m_va: u64,
    /// Page tables that only map the P2M list, if it is not in the kernel's mapping.
    pub p2m_tables: Range<u64>,
    /// The start info page.
    pub start_info: u64,
    /// The xenstore ring.
    pub store: u64,
    /// The console ring.
    pub console: u64,
    /// Page tables, the top level first.
    pub tables: Range<u64>,
    /// The boot stack.
    pub stack: u64,
    /// End of what is mapped from the base upwards.
    pub mapped: u64,
    /// End of what has a purpose; pages from here on are the guest's to use.
    pub used: u64,
}

impl Layout {
    /// Returns the virtual address of page `pfn` in the kernel's mapping.
    pub const fn va(&self, pfn: u64) -> u64 {
        self.virt_base.wrapping_add(pfn << PAGE_SHIFT)
    }

    /// Returns whether the P2M list is outside the kernel's mapping.
    pub fn has_own_p2m_mapping(&self) -> bool {
        !self.p2m_tables.is_empty()
    }

    pub(super) fn plan(contents: &Contents) -> Result<Self, LayoutError> {
        let &Contents {
            virt_base,
            nr_pages,
            ..
        } = contents;
        let bad_address = LayoutError::BadAddress { base: virt_base };
        let mut next = 0;
        let mut place = |pages: u64| {
            let start = next;
            next += pages;
            start..next
        };
        let p2m_pages = nr_pages.div_ceil(ENTRIES);

        let kernel = place(contents.kernel_pages);
        let mut ramdisk = place(if contents.unmapped_ramdisk {
            0
        } else {
            contents.ramdisk_pages
        });
        // Whether the wish for the list's address can be granted is known only once the end of the
        // kernel's mapping is; a list in there does not move that end out of its top-level slot
        // unless the mapping fails anyway.
        let elsewhere = contents
            .init_p2m
            .filter(|&va| is_free_for_p2m(va, p2m_pages, virt_base));
        let mut p2m = place(if elsewhere.is_some() { 0 } else { p2m_pages });
        let start_info = place(1).start;
        let store = place(1).start;
        let console = place(1).start;

        // The number of tables depends on the end of the mapping, which depends on their number.
        let mut count = 0;
        let end_va = loop {
            let bytes = (next + count + 1)
                .checked_mul(PAGE_SIZE as u64)
                .ok_or(bad_address)?;
            let end = virt_base
                .checked_add(bytes + SLACK)
                .and_then(|end| end.checked_next_multiple_of(ALIGNMENT))
                .ok_or(bad_address)?;
            let needed = TableCount::of(virt_base, end).total() + 1;
            if needed == count {
                break end;
            }
            count = needed;
        };
        if !is_guest_range(virt_base, end_va) {
            return Err(bad_address);
        }
        let mut place = |pages: u64| {
            let start = next;
            next += pages;
            start..next
        };
        let tables = place(count);
        let stack = place(1).start;
        let mapped = (end_va - virt_base) >> PAGE_SHIFT;
        let _slack = place(mapped - (stack + 1));

        if contents.unmapped_ramdisk {
            ramdisk = place(contents.ramdisk_pages);
        }
        let mut p2m_tables = 0..0;
        if let Some(va) = elsewhere {
            p2m = place(p2m_pages);
            p2m_tables = place(TableCount::of(va, va + (p2m_pages << PAGE_SHIFT)).total());
        }
        if next > nr_pages {
            return Err(LayoutError::TooLittleMemory {
                needed: next,
                available: nr_pages,
            });
        }
        let mut layout = Self {
            virt_base,
            kernel,
            ramdisk,
            p2m,
            p2m_va: 0,
            p2m_tables,
            start_info,
            store,
            console,
            tables,
            stack,
            mapped,
            used: next,
        };
        layout.p2m_va = elsewhere.unwrap_or_else(|| layout.va(layout.p2m.start));
        Ok(layout)
    }
}

/// Tells whether a list of `pages` pages can be mapped at `va`, in top-level slots of its own.
fn is_free_for_p2m(va: u64, pages: u64, virt_base: u64) -> bool {
    let end = pages
        .checked_mul(PAGE_SIZE as u64)
        .and_then(|bytes| va.checked_add(bytes));
    let Some(end) = end else {
        return false;
    };
    va.is_multiple_of(PAGE_SIZE as u64)
        && end > va
        && end <= virt_base
        && (end - 1) >> SLOT_SHIFT < virt_base >> SLOT_SHIFT
        && is_guest_range(va, end)
}

/// Tells whether all of a range that is not empty is canonical and the guest's to map.
fn is_guest_range(start: u64, end: u64) -> bool {
    const SIGN_SHIFT: u32 = 47;
    let last = end - 1;
    let slots = (start >> SLOT_SHIFT & 511)..=(last >> SLOT_SHIFT & 511);
    let halves = (start >> SIGN_SHIFT, last >> SIGN_SHIFT);
    let canonical = halves == (0, 0) || halves == (0x1_ffff, 0x1_ffff);
    canonical && (*slots.end() < HYPERVISOR_SLOTS.start || *slots.start() >= HYPERVISOR_SLOTS.end)
}
