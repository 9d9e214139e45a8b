//! How much of the domain's memory is the shim's, how much the guest's, and how much of it there
//! is none of yet.
//!
//! What the shim needs grows with the memory, for it has a word for each frame in the ledger and
//! one in the machine-to-physical table, and page tables for both tables and for everything else.
//! All of it is taken at boot, so what does not fit is said before there is a guest.

use core::fmt;

use xen_abi::PAGE_SIZE;

/// Bytes of heap besides the ledger: what guest and devices make it grow by, see [`crate::heap`].
pub const HEAP_BYTES: u64 = 3 << 20;
/// Frames for rings, tables and stacks, whatever the memory.
const POOL_FRAMES: u64 = 310;
/// Frames that are neither the guest's nor among those counted besides: the image, the hole below 1
/// MiB, what the toolstack keeps for its own use, and some more, so that the guest has the same
/// memory whatever release of the toolstack starts it.
const OTHER_FRAMES: u64 = 320;
/// Memory is configured in MiB.
const FRAMES_PER_MIB: u64 = (1 << 20) / PAGE_SIZE as u64;
/// Entries of a page table, and words in a frame.
const ENTRIES: u64 = 512;
/// Frames that the direct map has addresses for: ten L4 slots, 5 TiB.
pub const MOST_FRAMES: u64 = 10 * ENTRIES * ENTRIES * ENTRIES;
/// Frames that the direct map covers in any case: the host's pages are below 4 GiB.
pub const LEAST_MAPPED: u64 = 1 << 20;

/// The domain has more memory than the shim has addresses for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch {
    /// Its frames.
    pub frames: u64,
}

impl fmt::Display for TooMuch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PER_GIB: u64 = FRAMES_PER_MIB << 10;
        let (asked, most) = (self.frames.div_ceil(PER_GIB), MOST_FRAMES / PER_GIB);
        write!(
            f,
            "{asked} GiB are more than the {most} GiB that the shim can map"
        )
    }
}

/// The frames that the shim takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShimShare {
    /// Its heap, which there has to be before its page tables are.
    pub heap: u64,
    /// What is set aside of the heap for a move.
    pub set_aside: u64,
    /// The ledger, and what the heap needs to manage it.
    pub ledger: u64,
    /// The machine-to-physical table.
    pub m2p: u64,
    /// Frames for page tables, rings and stacks.
    pub pool: u64,
}

impl ShimShare {
    /// What the shim needs for frames up to `end`.
    ///
    /// # Errors
    /// More than it can map.
    pub fn of(end: u64) -> Result<Self, TooMuch> {
        if end > MOST_FRAMES {
            return Err(TooMuch { frames: end });
        }
        let page = PAGE_SIZE as u64;
        let m2p = end.div_ceil(ENTRIES);
        // The direct map is of 2 MiB pages, the table's own mapping of 4 KiB pages.
        let direct = tables(end.max(LEAST_MAPPED).div_ceil(ENTRIES));
        Ok(Self {
            heap: HEAP_BYTES.div_ceil(page),
            set_aside: (crate::heap::SET_ASIDE as u64).div_ceil(page),
            ledger: (end * 8).div_ceil(page) + 1,
            m2p,
            pool: POOL_FRAMES + direct + tables(m2p),
        })
    }

    /// How many frames are not the guest's.
    pub fn all(&self) -> u64 {
        self.heap + self.set_aside + self.ledger + self.m2p + self.pool + OTHER_FRAMES
    }
}

/// How many page tables it takes to have `entries` entries in those of the lowest level, below L4.
fn tables(entries: u64) -> u64 {
    let mut level = entries;
    let mut sum = 0;
    while level > 1 {
        level = level.div_ceil(ENTRIES);
        sum += level;
    }
    // A single table on one level needs one on each above it.
    sum + 2
}

/// Of a domain with `of_ram` frames of RAM, how many have no memory behind them, nor will have before
/// somebody asks for it, when the host counts `reserved` frames for the domain.
///
/// `memory=` and `maxmem=` are in MiB, and the host counts some pages besides that are not RAM
/// (rings, ACPI tables), so less than half a MiB is no difference.
pub fn missing(of_ram: u64, reserved: u64) -> u64 {
    let wanted = of_ram.next_multiple_of(FRAMES_PER_MIB);
    let missing = wanted.saturating_sub(reserved);
    (missing + FRAMES_PER_MIB / 2) / FRAMES_PER_MIB * FRAMES_PER_MIB
}

/// How many frames of RAM the guest is given at first, of which `missing` are missing.
pub fn guests(of_ram: u64, missing: u64, shim: &ShimShare) -> u64 {
    of_ram
        .next_multiple_of(FRAMES_PER_MIB)
        .saturating_sub(missing)
        .saturating_sub(shim.all())
}

#[cfg(test)]
mod tests {
    use super::{ENTRIES, MOST_FRAMES, ShimShare, guests, missing, tables};

    const GIB: u64 = 1 << 18;

    /// The tables that it takes to map `count` entries one by one, beginning at an L4 entry.
    fn counted(count: u64) -> u64 {
        let mut made = 0;
        for step in (0..count).step_by(ENTRIES as usize) {
            made += 1;
            made += u64::from(step % (ENTRIES * ENTRIES) == 0);
            made += u64::from(step % (ENTRIES * ENTRIES * ENTRIES) == 0);
        }
        made
    }

    #[test]
    fn the_pool_has_every_page_table_that_the_memory_takes() {
        for gib in [1, 4, 5, 150, 151, 512, 513, 2048, 5120] {
            let end = gib * GIB;
            let share = ShimShare::of(end).expect("it fits");
            let large_pages = end.max(1 << 20).div_ceil(512);
            // Of an L1 table's level here is an L2 table, with one level less above it.
            let direct = large_pages.div_ceil(512) + large_pages.div_ceil(512 * 512);
            let needed = direct + counted(share.m2p);
            assert!(share.pool >= 300 + needed, "{gib} GiB: {share:?}, {needed}");
            assert!(share.pool <= 330 + needed, "{gib} GiB: {share:?}, {needed}");
        }
        assert_eq!(tables(1), 2);
    }

    #[test]
    fn what_can_not_be_mapped_is_refused_with_a_sentence() {
        assert!(ShimShare::of(MOST_FRAMES).is_ok());
        let refused = ShimShare::of(12 * 1024 * GIB).expect_err("12 TiB");
        let sentence = "12288 GiB are more than the 5120 GiB that the shim can map";
        assert_eq!(refused.to_string(), sentence);
        assert!(ShimShare::of(MOST_FRAMES + 1).is_err());
    }

    #[test]
    fn the_shims_share_of_a_large_guest_is_small() {
        for gib in [150, 512, 2048, 5120] {
            let share = ShimShare::of(gib * GIB).expect("it fits");
            let part = share.all() as f64 / (gib * GIB) as f64;
            assert!(part < 0.0041, "{gib} GiB: {part}");
        }
    }

    #[test]
    fn memory_that_the_host_only_promises_is_told_from_pages_that_it_adds() {
        let mib = |mib: u64| mib * 256;
        // As Xen counts: `memory=` and the pages that are no RAM.
        for extra in [0, 8, 20, 100] {
            assert_eq!(missing(mib(512), mib(512) + extra), 0);
            assert_eq!(missing(mib(512), mib(256) + extra), mib(256));
            assert_eq!(missing(mib(512), mib(511) + extra), mib(1));
        }
        // RAM that ends a little early, and a host that counts less than there is.
        assert_eq!(missing(mib(512) - 40, mib(512) - 100), 0);
        let share = ShimShare::of(mib(512)).expect("it fits");
        let some = guests(mib(512) - 40, mib(256), &share);
        assert_eq!(some + share.all(), mib(256));
    }
}
