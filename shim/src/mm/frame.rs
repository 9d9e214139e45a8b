//! What the ledger says about one frame: its owner, its use and its counts, and how they share one
//! word.

use xen_abi::mmu::{ENTRIES, Level};

use super::epoch::{SHORT_BITS, STAMP_BITS};

/// Whose a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Owner {
    /// There is no memory here.
    Nobody = 0,
    /// The shim's; the guest can not reach it.
    Shim = 1,
    /// The guest's.
    Guest = 2,
    /// The shim's, and the guest may map it writable; never a table.
    Shared = 3,
    /// The shim's, and the guest may map it read-only.
    ReadOnly = 4,
    /// There is no memory here until the guest asks for it again.
    GivenUp = 5,
}

/// What a frame is used as while typed references to it exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameUse {
    /// Nothing; there are no typed references.
    None = 0,
    /// Data that the guest, or a device on its behalf, can write.
    Writable = 1,
    /// A checked page table.
    L1 = 2,
    /// A checked page table.
    L2 = 3,
    /// A checked page table.
    L3 = 4,
    /// A checked page table.
    L4 = 5,
    /// A page of checked segment descriptors.
    Descriptors = 6,
    /// A table above L1 of which only a part is checked: it is becoming one, or ceases to be one.
    /// Nothing refers to it, and nobody may change it.
    Unfinished = 7,
}

impl From<Level> for FrameUse {
    #[inline]
    fn from(level: Level) -> Self {
        match level {
            Level::L1 => Self::L1,
            Level::L2 => Self::L2,
            Level::L3 => Self::L3,
            Level::L4 => Self::L4,
        }
    }
}

impl FrameUse {
    /// Returns the level of page table that this is.
    #[inline]
    pub const fn level(self) -> Option<Level> {
        match self {
            Self::L1 => Some(Level::L1),
            Self::L2 => Some(Level::L2),
            Self::L3 => Some(Level::L3),
            Self::L4 => Some(Level::L4),
            Self::None | Self::Writable | Self::Descriptors | Self::Unfinished => None,
        }
    }
}

// The word, from bit 0: plain count; a field of 31 bits; use; pin; owner.  While there are typed
// references the field holds their count and the short stamp of when a link to the frame last went
// away; while there are none, the stamp of when the last one did, and what the frame was until then.  A
// frame that was given up has a link in the counts' place, and an unfinished table has its level and
// how many of its entries are checked in that of the typed count, which would be 0.
const PLAIN_BITS: u32 = 26;
const TYPED_BITS: u32 = 25;
pub(super) const ONE_PLAIN: u64 = 1;
pub(super) const PLAIN: u64 = (1 << PLAIN_BITS) - 1;
pub(super) const TYPED_SHIFT: u32 = PLAIN_BITS;
pub(super) const ONE_TYPED: u64 = 1 << TYPED_SHIFT;
pub(super) const TYPED: u64 = ((1 << TYPED_BITS) - 1) << TYPED_SHIFT;
pub(super) const LINK_SHIFT: u32 = TYPED_SHIFT + TYPED_BITS;
pub(super) const LINK: u64 = ((1 << SHORT_BITS) - 1) << LINK_SHIFT;
pub(super) const STAMP_SHIFT: u32 = PLAIN_BITS;
pub(super) const STAMP: u64 = ((1 << STAMP_BITS) - 1) << STAMP_SHIFT;
pub(super) const WAS_SHIFT: u32 = STAMP_SHIFT + STAMP_BITS;
/// The field.
pub(super) const HISTORY: u64 = TYPED | LINK;
pub(super) const USE_SHIFT: u32 = LINK_SHIFT + SHORT_BITS;
pub(super) const USE: u64 = 7 << USE_SHIFT;
pub(super) const PINNED: u64 = 1 << (USE_SHIFT + 3);
pub(super) const OWNER_SHIFT: u32 = USE_SHIFT + 4;
pub(super) const OWNER: u64 = 7 << OWNER_SHIFT;
const _: () = assert!(OWNER_SHIFT + 3 == 64 && WAS_SHIFT + 3 == USE_SHIFT);
/// In an unfinished table's field: how many entries are checked, all of them included.
const CHECKED_BITS: u32 = 10;
const CHECKED: u64 = (1 << CHECKED_BITS) - 1;
const _: () = assert!(ENTRIES as u64 <= CHECKED && CHECKED_BITS + 3 <= TYPED_BITS);

/// How many typed references a frame can have; it can have at least as many plain ones.
pub const MAX_REFERENCES: u64 = (1 << TYPED_BITS) - 1;

/// Returns the owner of the frame with this word.
#[inline]
pub(super) const fn owner(word: u64) -> Owner {
    match (word & OWNER) >> OWNER_SHIFT {
        1 => Owner::Shim,
        2 => Owner::Guest,
        3 => Owner::Shared,
        4 => Owner::ReadOnly,
        5 => Owner::GivenUp,
        _ => Owner::Nobody,
    }
}

/// Returns the use of the frame with this word.
#[inline]
pub(super) const fn used_as(word: u64) -> FrameUse {
    frame_use(word >> USE_SHIFT)
}

/// Returns how many typed references the frame with this word has.
#[inline]
pub(super) const fn typed(word: u64) -> u64 {
    // In these two the field holds a stamp or a place, which must not be taken for a count.
    if word & USE == 0 || word & USE == UNFINISHED {
        return 0;
    }
    (word & TYPED) >> TYPED_SHIFT
}

const UNFINISHED: u64 = (FrameUse::Unfinished as u64) << USE_SHIFT;

/// Returns the word of an unfinished table of `level` with `checked` entries; the rest as in `word`.
#[inline]
pub(super) const fn set_unfinished(word: u64, level: Level, checked: usize) -> u64 {
    let place = (level as u64) << CHECKED_BITS | checked as u64;
    // LINK stays: the table may still be walked through the link that went last, however long the
    // release takes. PINNED goes, for the pin was one of the references that are gone.
    word & !(TYPED | USE | PINNED) | UNFINISHED | place << TYPED_SHIFT
}

/// Returns level and number of checked entries, if the word is an unfinished table's.
#[inline]
pub(super) const fn unfinished(word: u64) -> Option<(Level, usize)> {
    if word & USE != UNFINISHED {
        return None;
    }
    let place = (word & TYPED) >> TYPED_SHIFT;
    let level = match place >> CHECKED_BITS {
        2 => Level::L2,
        3 => Level::L3,
        // Only `set_unfinished` writes this field, so what is left is 4.
        _ => Level::L4,
    };
    Some((level, (place & CHECKED) as usize))
}

/// Returns what the frame was before it lost its last typed reference, and the stamp of that moment;
/// for a frame that has none.
#[inline]
pub(super) const fn history(word: u64) -> (FrameUse, u64) {
    // With a use the same bits are a count and a short stamp.
    debug_assert!(word & USE == 0);
    (frame_use(word >> WAS_SHIFT), (word & STAMP) >> STAMP_SHIFT)
}

#[inline]
const fn frame_use(bits: u64) -> FrameUse {
    match bits & 7 {
        1 => FrameUse::Writable,
        2 => FrameUse::L1,
        3 => FrameUse::L2,
        4 => FrameUse::L3,
        5 => FrameUse::L4,
        6 => FrameUse::Descriptors,
        7 => FrameUse::Unfinished,
        _ => FrameUse::None,
    }
}

/// A frame's line in the ledger, for logs and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameInfo {
    /// Whose it is.
    pub owner: Owner,
    /// What it is used as.
    pub used_as: FrameUse,
    /// How many typed references there are; the pin is one of them.
    pub typed: u64,
    /// How many plain references there are.
    pub plain: u64,
    /// Whether the guest pinned it.
    pub pinned: bool,
    /// Of an [unfinished](FrameUse::Unfinished) table: its level, and how many entries are checked.
    pub unfinished: Option<(Level, usize)>,
}
