//! Entries of a PAGE_DATA record: a frame and what it is.

use std::fmt;

use crate::error::Defect;

/// Frames per record that writers use (`MAX_BATCH_SIZE`), and the largest batch that is held.
pub const MAX_BATCH: usize = 1024;

const TYPE_SHIFT: u32 = 60;
const PFN_MASK: u64 = (1 << 52) - 1;
const RESERVED: u64 = 0xff << 52;

/// What a frame is (`XEN_DOMCTL_PFINFO_*`); only types that exist.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageType(u8);

impl PageType {
    /// Ordinary memory.
    pub const NORMAL: Self = Self(0);
    /// Cannot be read; no contents.
    pub const BROKEN: Self = Self(0xd);
    /// To be allocated only; no contents.
    pub const ALLOCATE: Self = Self(0xe);
    /// Not there (any more); no contents.
    pub const INVALID: Self = Self(0xf);

    /// A PV page table of this level (1 to 4), perhaps pinned.
    #[must_use]
    pub fn table(level: u8, pinned: bool) -> Option<Self> {
        let flag = if pinned { 8 } else { 0 };
        (1..=4).contains(&level).then_some(Self(level | flag))
    }

    /// The type with this number, if there is one.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        matches!(number, 0..=4 | 9..=15).then_some(Self(number))
    }

    /// Its number, 0 to 15.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// Whether the contents are in the record.
    #[must_use]
    pub fn has_contents(self) -> bool {
        self.0 < Self::BROKEN.0
    }
}

impl fmt::Debug for PageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("NOTAB"),
            0xd => f.write_str("BROKEN"),
            0xe => f.write_str("XALLOC"),
            0xf => f.write_str("XTAB"),
            table if table & 8 != 0 => write!(f, "L{}TAB_PIN", table & 7),
            table => write!(f, "L{table}TAB"),
        }
    }
}

/// One entry: frame number and type, valid by construction.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageEntry(u64);

impl PageEntry {
    /// An entry for frame `pfn`; none if the number has more than 52 bits.
    #[must_use]
    pub fn new(pfn: u64, kind: PageType) -> Option<Self> {
        (pfn <= PFN_MASK).then_some(Self(pfn | u64::from(kind.0) << TYPE_SHIFT))
    }

    /// Checks an entry from outside; with `strict`, reserved bits must be zero, otherwise they
    /// are ignored.  `index` is for the message.
    pub(crate) fn decode(raw: u64, index: u64, strict: bool) -> Result<Self, Defect> {
        let kind = (raw >> TYPE_SHIFT) as u8;
        if PageType::new(kind).is_none() {
            return Err(Defect::PageType { index, kind });
        }
        if strict && raw & RESERVED != 0 {
            return Err(Defect::Reserved {
                field: "a page entry",
                value: raw & RESERVED,
            });
        }
        Ok(Self(raw & !RESERVED))
    }

    /// The frame number.
    #[must_use]
    pub fn pfn(self) -> u64 {
        self.0 & PFN_MASK
    }

    /// The type.
    #[must_use]
    pub fn kind(self) -> PageType {
        PageType((self.0 >> TYPE_SHIFT) as u8)
    }

    /// Whether the contents are in the record.
    #[must_use]
    pub fn has_contents(self) -> bool {
        self.kind().has_contents()
    }

    /// As it is in the stream.
    #[must_use]
    pub fn raw(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for PageEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} {:?}", self.pfn(), self.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::{PageEntry, PageType};

    #[test]
    fn types_are_those_of_the_specification() {
        let contents: Vec<u8> = (0..=255)
            .filter(|n| PageType::new(*n).is_some_and(PageType::has_contents))
            .collect();
        assert_eq!(contents, [0, 1, 2, 3, 4, 9, 10, 11, 12]);
        let without: Vec<u8> = (0..=255)
            .filter(|n| PageType::new(*n).is_some_and(|t| !t.has_contents()))
            .collect();
        assert_eq!(without, [13, 14, 15]);
        assert_eq!(PageType::table(4, true), PageType::new(12));
        assert_eq!(PageType::table(5, false), None);
    }

    #[test]
    fn entries_from_outside_are_checked() {
        let raw = 0xc000_0000_0000_1234;
        let entry = PageEntry::decode(raw, 0, true).unwrap();
        assert_eq!((entry.pfn(), entry.kind().number()), (0x1234, 12));
        assert_eq!(format!("{entry:?}"), "0x1234 L4TAB_PIN");
        assert_eq!(PageEntry::new(0x1234, entry.kind()), Some(entry));
        assert!(PageEntry::decode(5 << 60, 7, false).is_err());
        assert!(PageEntry::decode(1 << 52, 0, true).is_err());
        assert_eq!(PageEntry::decode(1 << 52, 0, false).unwrap().raw(), 0);
        assert!(PageEntry::new(1 << 52, PageType::NORMAL).is_none());
    }
}
