//! A guest's request: from the bytes in its ring to something that was checked.

use alloc::vec::Vec;

use xen_abi::Mfn;
use xen_abi::blkif::{
    DISCARD_SECURE, MAX_SEGMENTS, Request, RequestDiscard, RequestIndirect, SECTOR_SIZE,
    SECTORS_PER_PAGE, SEGMENTS_PER_PAGE, SLOT_SIZE, Segment, op, status,
};
use zerocopy::{FromBytes, IntoBytes};

use super::features::{SHOWN_SEGMENTS, Shown};
use crate::mem::Frames;
use crate::points::GuestGrants;

/// A part of a frame of the guest, of which a hold was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldSegment {
    pub frame: Mfn,
    pub first: u8,
    pub last: u8,
}

impl HeldSegment {
    /// Number of sectors.
    pub fn sectors(self) -> u64 {
        u64::from(self.last - self.first) + 1
    }
}

/// What is asked for; everything in it was checked against what the guest was told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The guest's own name for the request.
    pub id: u64,
    /// The operation as the response has to name it.
    pub operation: u8,
    /// First sector.
    pub sector: u64,
    /// Number of sectors, of a discard.
    pub discard_sectors: u64,
    /// Whether a discard is to leave no copy.
    pub discard_secure: bool,
    /// Where the data is.
    pub segments: Vec<HeldSegment>,
}

impl Wanted {
    /// Whether the backend writes to the segments' frames.
    pub fn fills_memory(&self) -> bool {
        self.operation == op::READ
    }

    /// Ends the holds.
    pub fn release(&mut self, grants: &mut dyn GuestGrants) {
        let write = self.fills_memory();
        for segment in self.segments.drain(..) {
            grants.release(segment.frame, write);
        }
    }
}

/// A request that is answered at once, because something is wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub id: u64,
    pub operation: u8,
    pub status: i16,
    /// What is wrong, for the log.
    pub why: &'static str,
}

/// Makes sense of a slot that was copied out of the guest's ring.  `segments` is empty and is used
/// for the result, so that no memory needs to be allocated.
pub(super) fn parse(
    slot: &[u8; SLOT_SIZE],
    shown: &Shown,
    mem: &dyn Frames,
    grants: &mut dyn GuestGrants,
    segments: Vec<HeldSegment>,
) -> Result<Wanted, Refused> {
    let plain = Request::read_from_bytes(slot).expect("a slot has a request's size");
    let mut wanted = Wanted {
        id: plain.id,
        operation: plain.operation,
        sector: plain.sector_number,
        discard_sectors: 0,
        discard_secure: false,
        segments,
    };
    let result = match plain.operation {
        op::READ | op::WRITE | op::WRITE_BARRIER | op::FLUSH_DISKCACHE => {
            parse_plain(&plain, &mut wanted, shown, mem, grants)
        }
        op::INDIRECT => {
            let request =
                RequestIndirect::read_from_bytes(slot).expect("a slot has a request's size");
            parse_indirect(&request, &mut wanted, shown, mem, grants)
        }
        op::DISCARD => {
            let request =
                RequestDiscard::read_from_bytes(slot).expect("a slot has a request's size");
            parse_discard(&request, &mut wanted, shown)
        }
        _ => Err((status::EOPNOTSUPP, "unknown operation")),
    };
    match result {
        Ok(()) => Ok(wanted),
        Err((status, why)) => {
            wanted.release(grants);
            Err(Refused {
                id: wanted.id,
                operation: wanted.operation,
                status,
                why,
            })
        }
    }
}

type Wrong = (i16, &'static str);

fn parse_plain(
    request: &Request,
    wanted: &mut Wanted,
    shown: &Shown,
    mem: &dyn Frames,
    grants: &mut dyn GuestGrants,
) -> Result<(), Wrong> {
    if request.operation == op::WRITE_BARRIER && !shown.barrier {
        return Err((status::EOPNOTSUPP, "a barrier that was not offered"));
    }
    let segments = request
        .seg
        .get(..usize::from(request.nr_segments))
        .ok_or((status::ERROR, "too many segments"))?;
    if segments.is_empty() {
        return match request.operation {
            op::READ | op::WRITE => Err((status::ERROR, "no segments")),
            // Nothing but a flush; Linux leaves any number in here.
            _ => {
                wanted.sector = 0;
                Ok(())
            }
        };
    }
    take_segments(segments, wanted, shown, mem, grants)
}

fn parse_indirect(
    request: &RequestIndirect,
    wanted: &mut Wanted,
    shown: &Shown,
    mem: &dyn Frames,
    grants: &mut dyn GuestGrants,
) -> Result<(), Wrong> {
    // The response names what was done, not how it was asked for.
    wanted.operation = request.indirect_op;
    if !matches!(request.indirect_op, op::READ | op::WRITE) {
        return Err((status::EOPNOTSUPP, "unknown indirect operation"));
    }
    let count = usize::from(request.nr_segments);
    if !(1..=SHOWN_SEGMENTS).contains(&count) {
        return Err((status::ERROR, "wrong number of indirect segments"));
    }
    const { assert!(SHOWN_SEGMENTS <= SEGMENTS_PER_PAGE) };
    // As many as are offered fit into one page.
    let page = grants
        .acquire(mem, request.indirect_grefs[0], false)
        .map_err(|_| (status::ERROR, "bad reference of an indirect page"))?;
    let mut segments = [Segment::default(); SHOWN_SEGMENTS];
    // Copied before it is checked, for the page stays the guest's to write. From then on nobody
    // needs the page, and the hold ends.
    mem.read(page, 0, segments[..count].as_mut_bytes());
    grants.release(page, false);
    take_segments(&segments[..count], wanted, shown, mem, grants)
}

fn parse_discard(
    request: &RequestDiscard,
    wanted: &mut Wanted,
    shown: &Shown,
) -> Result<(), Wrong> {
    if !shown.has_discard() {
        return Err((status::EOPNOTSUPP, "a discard that was not offered"));
    }
    if !shown.is_writable() {
        return Err((status::ERROR, "a discard on a read-only disk"));
    }
    within(request.sector_number, request.nr_sectors, shown)?;
    wanted.discard_sectors = request.nr_sectors;
    wanted.discard_secure = request.flag & DISCARD_SECURE != 0;
    Ok(())
}

/// Checks segments and takes holds of their frames.
fn take_segments(
    segments: &[Segment],
    wanted: &mut Wanted,
    shown: &Shown,
    mem: &dyn Frames,
    grants: &mut dyn GuestGrants,
) -> Result<(), Wrong> {
    let write_memory = wanted.fills_memory();
    if !write_memory && !shown.is_writable() {
        return Err((status::ERROR, "a write to a read-only disk"));
    }
    let unit = u64::from(shown.sector_size) / SECTOR_SIZE;
    if !wanted.sector.is_multiple_of(unit) {
        return Err((status::ERROR, "a part of a sector"));
    }
    // All sizes first, so that what is refused for them has taken no hold.
    let mut total = 0;
    for segment in segments {
        let (first, last) = (segment.first_sect, segment.last_sect);
        if first > last || last >= SECTORS_PER_PAGE {
            return Err((status::ERROR, "a segment outside its page"));
        }
        if !u64::from(first).is_multiple_of(unit) || !u64::from(last + 1).is_multiple_of(unit) {
            return Err((status::ERROR, "a part of a sector"));
        }
        total += u64::from(last - first) + 1;
    }
    within(wanted.sector, total, shown)?;
    for segment in segments {
        let frame = grants
            .acquire(mem, segment.gref, write_memory)
            .map_err(|_| (status::ERROR, "bad reference of a segment"))?;
        wanted.segments.push(HeldSegment {
            frame,
            first: segment.first_sect,
            last: segment.last_sect,
        });
    }
    Ok(())
}

fn within(sector: u64, count: u64, shown: &Shown) -> Result<(), Wrong> {
    match sector.checked_add(count) {
        Some(end) if end <= shown.sectors => Ok(()),
        _ => Err((status::ERROR, "beyond the end of the disk")),
    }
}

const _: () = assert!(MAX_SEGMENTS <= SHOWN_SEGMENTS);
