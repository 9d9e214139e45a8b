//! What a disk is: as this host's backend describes it, and as the guest was told once and for all.
//!
//! The first backend decides what the guest sees ([`Shown::fix`]).  Each later one is measured
//! against that ([`Shown::refuses`]): most of what it lacks is made up for elsewhere in this
//! point, and the rest is a reason why the disk can not be attached there.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use xen_abi::blkif::{MAX_SEGMENTS, SECTOR_SIZE, info};

use crate::points::device::Features;
use crate::points::xenbus::Nodes;

/// Sectors that one discard at the host may have, 32 MiB, unless the storage's granularity is
/// coarser.
pub(super) const DISCARD_SECTORS: u64 = (32 << 20) / SECTOR_SIZE;
/// Segments that a guest may put into one indirect request: 1 MiB.
pub(super) const SHOWN_SEGMENTS: usize = 256;
/// log2 of the frames that a guest's ring may have.
pub(super) const SHOWN_RING_ORDER: u32 = 4;

/// The backend's nodes that describe the disk.
pub(super) const DETAIL_KEYS: &[&str] = &[
    "sectors",
    "sector-size",
    "physical-sector-size",
    "info",
    "mode",
    "removable",
    "dev",
    "feature-barrier",
    "feature-flush-cache",
    "feature-discard",
    "discard-granularity",
    "discard-alignment",
    "discard-secure",
    "feature-max-indirect-segments",
];

/// How completed writes are made to survive a power failure on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlushBy {
    /// By a flush.
    Flush,
    /// By an empty barrier.
    Barrier,
    /// They do already: the backend knows the feature and says 0, which Linux does for a disk
    /// without a volatile cache.
    Nothing,
    /// The backend has never heard of it.
    Unknown,
}

/// Discards and their granularity in bytes, as the backend's nodes give them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Discard {
    granularity: Option<u32>,
    alignment: Option<u32>,
    /// Whether no copy survives if so asked.
    pub secure: bool,
}

impl Discard {
    /// How many of the `left` sectors from `first` on one request is to discard: no more than are
    /// done soon, and up to where a unit of the storage ends, for it ignores what is less.
    pub fn part(&self, first: u64, left: u64) -> u64 {
        let sectors = |bytes: Option<u32>| u64::from(bytes.unwrap_or(0)) / SECTOR_SIZE;
        let unit = sectors(self.granularity).max(1);
        let start = sectors(self.alignment) % unit;
        // Sectors since the last end of a unit, whatever lies before the first.
        let over = |sector: u64| (sector % unit + unit - start) % unit;
        let longest = match DISCARD_SECTORS.checked_sub(over(first.saturating_add(DISCARD_SECTORS)))
        {
            Some(whole @ 1..) => whole,
            _ => unit - over(first),
        };
        left.min(longest)
    }
}

/// What this host's backend offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Size, in 512 byte sectors.
    pub sectors: u64,
    sector_size: u32,
    physical_sector_size: u32,
    info: u32,
    removable: bool,
    dev: Option<String>,
    /// Whether there are barriers.
    pub barrier: bool,
    /// How to flush.
    pub(super) flush_by: FlushBy,
    /// Whether there are discards.
    pub(super) discard: Option<Discard>,
    /// Segments that a read or write may have: more than the ordinary 11 if indirect ones are
    /// offered.
    pub max_segments: usize,
}

impl Offer {
    /// Reads what a backend published.
    pub fn parse(nodes: &Nodes) -> Result<Self, String> {
        let sectors = parse_sectors(nodes)?;
        let sector_size = nodes.number("sector-size").unwrap_or(512u32);
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            return Err(format!("a sector size of {sector_size}"));
        }
        let mut flags = nodes.number("info").unwrap_or(0u32);
        if nodes.text("mode") == Some("r") {
            flags |= info::READONLY;
        }
        let barrier = nodes.flag("feature-barrier");
        let indirect: usize = nodes.number("feature-max-indirect-segments").unwrap_or(0);
        Ok(Self {
            sectors,
            sector_size,
            physical_sector_size: nodes
                .number("physical-sector-size")
                .filter(|&size: &u32| size.is_power_of_two() && size >= sector_size)
                .unwrap_or(sector_size),
            info: flags,
            removable: nodes.flag("removable"),
            dev: nodes.text("dev").map(ToOwned::to_owned),
            barrier,
            flush_by: match nodes.number::<u32>("feature-flush-cache") {
                Some(1..) => FlushBy::Flush,
                _ if barrier => FlushBy::Barrier,
                Some(0) => FlushBy::Nothing,
                None => FlushBy::Unknown,
            },
            discard: nodes.flag("feature-discard").then(|| Discard {
                granularity: nodes.number("discard-granularity"),
                alignment: nodes.number("discard-alignment"),
                secure: nodes.flag("discard-secure"),
            }),
            // An ordinary request is taken by every backend, whatever it says here, and nobody is
            // asked for more than the guest may ask of us.
            max_segments: indirect.clamp(MAX_SEGMENTS, SHOWN_SEGMENTS),
        })
    }
}

/// Reads a backend's `sectors`.
fn parse_sectors(nodes: &Nodes) -> Result<u64, String> {
    nodes
        .number("sectors")
        .filter(|sectors| *sectors <= u64::MAX / SECTOR_SIZE)
        .ok_or_else(|| "no size in sectors".to_owned())
}

/// What the guest was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Size, in 512 byte sectors; the only thing here that may change, when the host resizes the
    /// disk.
    pub sectors: u64,
    /// Bytes of the smallest part that can be read or written.
    pub sector_size: u32,
    physical_sector_size: u32,
    info: u32,
    removable: bool,
    dev: Option<String>,
    /// Whether the guest may use barriers.
    pub barrier: bool,
    flush: bool,
    discard: Option<Discard>,
}

impl Shown {
    /// Whether the guest may write.
    pub fn is_writable(&self) -> bool {
        self.info & (info::READONLY | info::CDROM) == 0
    }

    /// Whether the guest may discard.
    pub fn has_discard(&self) -> bool {
        self.discard.is_some()
    }
}

impl Features for Shown {
    type Offer = Offer;

    fn parse(nodes: &Nodes) -> Result<Offer, String> {
        Offer::parse(nodes)
    }

    fn fix(offer: &Offer) -> Self {
        Self {
            sectors: offer.sectors,
            sector_size: offer.sector_size,
            physical_sector_size: offer.physical_sector_size,
            info: offer.info,
            removable: offer.removable,
            dev: offer.dev.clone(),
            barrier: offer.barrier,
            // Also where nothing needs flushing, for on the next host something might.
            flush: offer.flush_by != FlushBy::Unknown,
            discard: offer.discard.clone(),
        }
    }

    fn refuses(&self, offer: &Offer) -> Option<String> {
        if offer.sector_size > self.sector_size {
            return Some(format!(
                "its sectors have {} bytes, the guest was told {}",
                offer.sector_size, self.sector_size
            ));
        }
        // The medium in a drive may be another one; the guest finds out when it reads.
        if offer.sectors < self.sectors && self.info & info::CDROM == 0 {
            return Some(format!(
                "it has {} sectors, the guest was told {}",
                offer.sectors, self.sectors
            ));
        }
        if self.is_writable() && offer.info & info::READONLY != 0 {
            return Some("it is read-only, the guest was told that it may write".to_owned());
        }
        if (self.flush || self.barrier) && offer.flush_by == FlushBy::Unknown {
            return Some("it can not flush, the guest was told that it may".to_owned());
        }
        None
    }

    fn nodes(&self) -> Vec<(&'static str, String)> {
        let yes = |is: bool| u32::from(is).to_string();
        let mut nodes = Vec::from([
            ("sectors", self.sectors.to_string()),
            ("sector-size", self.sector_size.to_string()),
            (
                "physical-sector-size",
                self.physical_sector_size.to_string(),
            ),
            ("info", self.info.to_string()),
            ("removable", yes(self.removable)),
            (
                "mode",
                if self.info & info::READONLY == 0 {
                    "w"
                } else {
                    "r"
                }
                .to_owned(),
            ),
            ("feature-barrier", yes(self.barrier)),
            ("feature-flush-cache", yes(self.flush)),
            ("feature-max-indirect-segments", SHOWN_SEGMENTS.to_string()),
            ("max-ring-page-order", SHOWN_RING_ORDER.to_string()),
        ]);
        if let Some(dev) = &self.dev {
            nodes.push(("dev", dev.clone()));
        }
        if let Some(discard) = &self.discard {
            nodes.push(("feature-discard", yes(true)));
            nodes.push(("discard-secure", yes(discard.secure)));
            for (key, value) in [
                ("discard-granularity", discard.granularity),
                ("discard-alignment", discard.alignment),
            ] {
                nodes.extend(value.map(|value| (key, value.to_string())));
            }
        }
        nodes
    }

    fn follow(&mut self, nodes: &Nodes) -> Result<Option<(&'static str, String)>, String> {
        let sectors = parse_sectors(nodes)?;
        let before = core::mem::replace(&mut self.sectors, sectors);
        Ok((before != sectors).then(|| ("sectors", sectors.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::{FlushBy, Offer, Shown};
    use crate::points::device::Features;
    use crate::points::xenbus::Nodes;

    fn offer(pairs: &[(&'static str, &str)]) -> Offer {
        let mut all = vec![("sectors", "2048"), ("feature-flush-cache", "1")];
        all.extend_from_slice(pairs);
        Offer::parse(&Nodes::from_pairs(&all)).unwrap()
    }

    #[test]
    fn senseless_disks_are_refused() {
        for pairs in [
            &[][..],
            &[("sectors", "x")],
            &[("sectors", "36028797018963968")],
            &[("sectors", "8"), ("sector-size", "0")],
            &[("sectors", "8"), ("sector-size", "1000")],
            &[("sectors", "8"), ("sector-size", "8192")],
        ] {
            assert!(
                Offer::parse(&Nodes::from_pairs(pairs)).is_err(),
                "{pairs:?}"
            );
        }
    }

    #[test]
    fn a_cache_that_is_not_there_needs_no_flush() {
        assert_eq!(offer(&[]).flush_by, FlushBy::Flush);
        let none = offer(&[("feature-flush-cache", "0")]);
        assert_eq!(none.flush_by, FlushBy::Nothing);
        assert!(
            Shown::fix(&none)
                .nodes()
                .contains(&("feature-flush-cache", "1".to_owned())),
            "the next host may have one"
        );
        let barrier = offer(&[("feature-flush-cache", "0"), ("feature-barrier", "1")]);
        assert_eq!(barrier.flush_by, FlushBy::Barrier);
    }

    #[test]
    fn a_host_that_can_not_stand_in_says_why() {
        let shown = Shown::fix(&offer(&[
            ("feature-discard", "1"),
            ("feature-barrier", "1"),
        ]));
        assert_eq!(
            shown.refuses(&offer(&[])),
            None,
            "discard and barrier are made up for"
        );
        assert_eq!(shown.refuses(&offer(&[("sectors", "4096")])), None);
        let why = |pairs| shown.refuses(&offer(pairs)).expect("refused");
        assert!(why(&[("sectors", "2047")]).contains("2047"));
        assert!(why(&[("sector-size", "4096")]).contains("4096"));
        assert!(why(&[("mode", "r")]).contains("read-only"));
        let dumb = Offer::parse(&Nodes::from_pairs(&[("sectors", "2048")])).unwrap();
        assert!(shown.refuses(&dumb).expect("refused").contains("flush"));
    }

    #[test]
    fn a_drive_may_hold_another_medium() {
        let shown = Shown::fix(&offer(&[("info", "5")]));
        assert_eq!(
            shown.refuses(&offer(&[("info", "5"), ("sectors", "0")])),
            None
        );
        assert!(!shown.is_writable());
    }
}
