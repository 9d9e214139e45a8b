//! What the ledger says about one frame: whose it is and what it is used as, and how that and the counts
//! lie in one word.

use xen_abi::mmu::Level;

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
            Self::None | Self::Writable | Self::Descriptors => None,
        }
    }
}

// The word: plain count, typed count, use, pin, owner, and in which flush period (1 to 63, 0 never)
// the last writable reference went away.  A frame that was given up has a link in place of counts.
const PLAIN_BITS: u32 = 26;
const TYPED_BITS: u32 = 25;
pub(super) const ONE_PLAIN: u64 = 1;
pub(super) const PLAIN: u64 = (1 << PLAIN_BITS) - 1;
pub(super) const TYPED_SHIFT: u32 = PLAIN_BITS;
pub(super) const ONE_TYPED: u64 = 1 << TYPED_SHIFT;
pub(super) const TYPED: u64 = ((1 << TYPED_BITS) - 1) << TYPED_SHIFT;
pub(super) const USE_SHIFT: u32 = TYPED_SHIFT + TYPED_BITS;
pub(super) const USE: u64 = 7 << USE_SHIFT;
pub(super) const PINNED: u64 = 1 << (USE_SHIFT + 3);
pub(super) const OWNER_SHIFT: u32 = USE_SHIFT + 4;
pub(super) const OWNER: u64 = 7 << OWNER_SHIFT;
pub(super) const PERIOD_SHIFT: u32 = OWNER_SHIFT + 3;
pub(super) const PERIOD: u64 = 63 << PERIOD_SHIFT;
const _: () = assert!(PERIOD_SHIFT == 58);

/// How many typed references a frame can have; it can have at least as many plain ones.
pub const MAX_REFERENCES: u64 = (1 << TYPED_BITS) - 1;

/// Returns whose the frame is that has this word.
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

/// Returns what the frame is used as that has this word.
#[inline]
pub(super) const fn used_as(word: u64) -> FrameUse {
    match (word & USE) >> USE_SHIFT {
        1 => FrameUse::Writable,
        2 => FrameUse::L1,
        3 => FrameUse::L2,
        4 => FrameUse::L3,
        5 => FrameUse::L4,
        6 => FrameUse::Descriptors,
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
}
