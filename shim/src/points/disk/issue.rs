//! Requests to the host: how an entry of the shadow becomes one or several of them.

use alloc::vec::Vec;

use xen_abi::Mfn;
use xen_abi::blkif::{
    DISCARD_SECURE, MAX_SEGMENTS, Request, RequestDiscard, RequestIndirect, SECTOR_SIZE, SLOT_SIZE,
    Segment, op, status,
};
use zerocopy::{FromZeros, IntoBytes};

use super::budget;
use super::features::{Discard, Offer, SHOWN_SEGMENTS};
use super::request::HeldSegment;
use super::shadow::{Entry, Part, Plan, Step};
use super::{Disk, Shell};
use crate::host::{Access, HostRef};
use crate::points::Cx;
use crate::points::device::{ConnectionStage, Held};

/// Lists of references that are kept for later, of up to 1 KiB each.
const MAX_SPARE_LISTS: usize = 64;

/// What became of an attempt to go on with the first entry of the backlog.
#[derive(PartialEq, Eq)]
enum Attempt {
    /// It is out of the backlog; go on with the next.
    Issued,
    /// It waits for an answer of the host.
    Waits,
    /// There is no room at the host, or no reference.
    Blocked,
}

/// What an entry needs next.
enum Next {
    Issue(Step),
    Nothing,
    Wait,
}

/// One request to the host, before anything is granted for it.
struct Piece {
    /// The first sector.
    sector: u64,
    /// Segments of the data.
    segments: usize,
    /// Sectors that are discarded.
    discard: u64,
    /// What it counts as in flight, bytes.
    cost: u64,
}

/// The segments of one request to the host, granted to the backend.
struct Granted {
    segments: [Segment; SHOWN_SEGMENTS],
    count: usize,
    /// One for each segment, and one for the page if there is one.
    grants: Vec<HostRef>,
    /// Where the segments are when they are too many for the slot, and under which reference.
    page: Option<(Mfn, HostRef)>,
}

impl Disk {
    /// Asks the host for as much of the backlog as it can take; `true` when nothing is left.
    pub(super) fn issue_backlog(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>) -> bool {
        // A suspend waits for what is in flight, not for what could be.
        if *shell.host.stage() != ConnectionStage::Connected || shell.is_quiescing() {
            return self.shadow.backlog.is_empty();
        }
        while let Some(&number) = self.shadow.backlog.front() {
            match self.advance(shell, cx, number) {
                Attempt::Issued => {}
                Attempt::Waits => return false,
                Attempt::Blocked => {
                    // Without an answer to come, nothing would take this up again.
                    shell.wants_retry |= self.shadow.parts.len() == 0;
                    return false;
                }
            }
        }
        true
    }

    /// Goes on with the first entry of the backlog as far as possible.
    fn advance(&mut self, shell: &mut Shell<Self>, cx: &mut Cx<'_>, number: u32) -> Attempt {
        loop {
            let in_flight = self.shadow.parts.len();
            let (Some(entry), Some(offer)) =
                (self.shadow.entries.get_mut(number), &shell.host.offer)
            else {
                return Attempt::Waits;
            };
            let plan = *entry
                .plan
                .get_or_insert_with(|| Plan::of(&entry.wanted, offer));
            match entry.next(plan, in_flight) {
                Next::Wait => return Attempt::Waits,
                Next::Issue(step) => {
                    if !self.issue_part(shell, cx, number, step) {
                        return Attempt::Blocked;
                    }
                }
                Next::Nothing => {
                    entry.queued = false;
                    let is_answered = entry.parts == 0;
                    self.shadow.backlog.pop_front();
                    if is_answered {
                        self.answer_entry(shell, cx, number);
                    }
                    return Attempt::Issued;
                }
            }
        }
    }

    /// Asks the host for the next part of a step; `false` when there is no room for it.
    fn issue_part(
        &mut self,
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
        number: u32,
        step: Step,
    ) -> bool {
        let Some(rings) = &shell.host.rings else {
            return false;
        };
        // Parts that the backend has answered but not let go of count, too.
        let depth = rings.ring.entries() as usize;
        if rings.ring.free() == 0 || self.shadow.parts.len() >= depth {
            return false;
        }
        let (Some(entry), Some(offer)) = (self.shadow.entries.get(number), &shell.host.offer)
        else {
            return false;
        };
        // Room and budget before the grants, which are what would have to be taken back.
        let piece = entry.piece(step, offer);
        let (parts, bytes) = (self.shadow.parts.len(), self.shadow.cost());
        if !self.budget.allows(piece.cost, parts, bytes) {
            return false;
        }
        let Some(granted) = self.grant_segments(shell, cx, number, step, piece.segments) else {
            return false;
        };
        let (Some(entry), Some(rings)) =
            (self.shadow.entries.get_mut(number), &mut shell.host.rings)
        else {
            return false;
        };
        // As much as could be granted, which may be less than the piece asked for.
        entry.issued += match step {
            Step::Data(_) => granted.count,
            Step::Discard => piece.discard as usize,
            Step::Bare(_) => 1,
        };
        entry.parts += 1;
        let is_secure = entry.wanted.discard_secure;
        let id = self.shadow.add_part(Part {
            entry: number,
            serial: 0,
            operation: step.operation(),
            grants: granted.grants,
            page: granted.page.map(|(page, _)| page),
            cost: piece.cost,
            answer: None,
        });

        let handle = shell.id.index as u16;
        let mut slot = [0; SLOT_SIZE];
        match (step, granted.page) {
            (Step::Discard, _) => {
                let mut request = RequestDiscard::new_zeroed();
                request.operation = op::DISCARD;
                request.flag = if is_secure { DISCARD_SECURE } else { 0 };
                request.handle = handle;
                request.id = id;
                request.sector_number = piece.sector;
                request.nr_sectors = piece.discard;
                slot.copy_from_slice(request.as_bytes());
            }
            (_, Some((_, reference))) => {
                let mut request = RequestIndirect::new_zeroed();
                request.operation = op::INDIRECT;
                request.indirect_op = step.operation();
                request.nr_segments = granted.count as u16;
                request.handle = handle;
                request.id = id;
                request.sector_number = piece.sector;
                request.indirect_grefs[0] = reference.0;
                slot.copy_from_slice(request.as_bytes());
            }
            (_, None) => {
                let mut request = Request::new_zeroed();
                request.operation = step.operation();
                request.nr_segments = granted.count as u8;
                request.handle = handle;
                request.id = id;
                request.sector_number = piece.sector;
                request.seg[..granted.count].copy_from_slice(&granted.segments[..granted.count]);
                slot.copy_from_slice(request.as_bytes());
            }
        }
        rings.ring.put(cx.frames, &slot);
        true
    }

    /// Grants the backend an entry's next `wanted` segments, or as many as there are references
    /// for; `None` when that is too few to go on.
    fn grant_segments(
        &mut self,
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
        number: u32,
        step: Step,
        wanted: usize,
    ) -> Option<Granted> {
        let entry = self.shadow.entries.get(number)?;
        let left = entry.segments_left();
        let access = match entry.wanted.fills_memory() {
            true => Access::ReadWrite,
            false => Access::ReadOnly,
        };
        let backend = shell.host.link.backend_id();
        let mut granted = Granted {
            segments: [Segment::default(); SHOWN_SEGMENTS],
            count: 0,
            grants: self.spare_grants.pop().unwrap_or_default(),
            page: None,
        };
        for (segment, held) in granted.segments.iter_mut().zip(&left[..wanted]) {
            let Some(grant) = cx.host_grants.grant(backend, held.frame, access) else {
                break;
            };
            granted.grants.push(grant);
            *segment = Segment {
                gref: grant.0,
                first_sect: held.first,
                last_sect: held.last,
                pad: 0,
            };
        }
        granted.count = granted.grants.len();
        if granted.count < wanted && !step.may_split() {
            granted.count = 0;
        }
        if granted.count > MAX_SEGMENTS && !self.grant_page(shell, cx, &mut granted) {
            granted.count = MAX_SEGMENTS;
        }
        // What could be granted, but is not used.
        let first = granted.count.min(granted.grants.len());
        let last = granted.grants.len() - usize::from(granted.page.is_some());
        for grant in granted.grants.drain(first..last) {
            shell.host.ending.add(cx, grant, Held::Nothing);
        }
        if wanted > 0 && granted.count == 0 {
            self.keep_grants(granted.grants);
            return None;
        }
        Some(granted)
    }

    /// Keeps an emptied list for the next request.
    pub(super) fn keep_grants(&mut self, mut list: Vec<HostRef>) {
        if self.spare_grants.len() < MAX_SPARE_LISTS {
            list.clear();
            self.spare_grants.push(list);
        }
    }

    /// Puts the segments into a page of their own; `false` when there is no page or no reference.
    fn grant_page(
        &mut self,
        shell: &mut Shell<Self>,
        cx: &mut Cx<'_>,
        granted: &mut Granted,
    ) -> bool {
        let Some(page) = self.spare_pages.pop().or_else(|| cx.pool.take()) else {
            return false;
        };
        let backend = shell.host.link.backend_id();
        let Some(grant) = cx.host_grants.grant(backend, page, Access::ReadOnly) else {
            self.spare_pages.push(page);
            return false;
        };
        let segments = &granted.segments[..granted.count];
        // Written after the grant, and in time: the backend learns of the reference by the request.
        cx.frames.write(page, 0, segments.as_bytes());
        granted.grants.push(grant);
        granted.page = Some((page, grant));
        true
    }
}

impl Step {
    /// The operation that the host is asked for.
    fn operation(self) -> u8 {
        match self {
            Self::Data(operation) | Self::Bare(operation) => operation,
            Self::Discard => op::DISCARD,
        }
    }

    /// Whether its data may be moved in parts.  Other operations are one request, which is what
    /// gives them their meaning.
    fn may_split(self) -> bool {
        matches!(self, Self::Data(op::READ | op::WRITE))
    }
}

impl Entry {
    /// Decides what to do next, `in_flight` requests being at the host, and moves on to the step
    /// that this is part of.
    fn next(&mut self, plan: Plan, in_flight: usize) -> Next {
        let (steps, mut exclusive) = match plan {
            Plan::Steps { steps, exclusive } => (steps, exclusive),
            Plan::Answer(answer) => {
                self.note_status(answer);
                return Next::Nothing;
            }
        };
        // Asked of another host already, as were the ones before it: the protocol's order between
        // requests that were made one after the other is kept by waiting.
        exclusive |= self.replayed
            && matches!(
                self.wanted.operation,
                op::WRITE_BARRIER | op::FLUSH_DISKCACHE
            );
        if exclusive && in_flight > self.parts {
            return Next::Wait;
        }
        // After a failure the rest is of no use.
        while self.status == status::OKAY
            && let Some(step) = steps.get(self.step).copied().flatten()
        {
            let whole = match step {
                Step::Data(_) => self.wanted.segments.len(),
                Step::Discard => self.wanted.discard_sectors as usize,
                Step::Bare(_) => 1,
            };
            if self.issued < whole {
                return Next::Issue(step);
            }
            let is_last = !steps.get(self.step + 1).is_some_and(Option::is_some);
            if self.parts > 0 && !is_last {
                return Next::Wait;
            }
            if is_last {
                break;
            }
            self.step += 1;
            self.issued = 0;
        }
        if exclusive && self.parts > 0 {
            return Next::Wait;
        }
        Next::Nothing
    }

    /// The segments that the host was not asked for in this step.
    fn segments_left(&self) -> &[HeldSegment] {
        let segments = &self.wanted.segments;
        &segments[self.issued.min(segments.len())..]
    }

    /// What the next request of a step is, to a host that offers this.
    fn piece(&self, step: Step, offer: &Offer) -> Piece {
        let sectors_of = |segments: &[HeldSegment]| segments.iter().map(|s| s.sectors()).sum();
        let left = self.segments_left();
        let (segments, discard) = match step {
            Step::Data(_) if step.may_split() => (left.len().min(offer.max_segments), 0),
            Step::Data(_) => (left.len().min(MAX_SEGMENTS), 0),
            Step::Bare(_) => (0, 0),
            Step::Discard => {
                let done = self.issued as u64;
                let (first, left) = (
                    self.wanted.sector + done,
                    self.wanted.discard_sectors - done,
                );
                let part = |kind: &Discard| kind.part(first, left);
                (0, offer.discard.as_ref().map_or(left, part))
            }
        };
        let done: u64 = match step {
            Step::Discard => self.issued as u64,
            _ => sectors_of(&self.wanted.segments[..self.wanted.segments.len() - left.len()]),
        };
        let data: u64 = sectors_of(&left[..segments]);
        Piece {
            sector: self.wanted.sector + done,
            segments,
            discard,
            cost: budget::cost(step, data * SECTOR_SIZE, self.wanted.discard_secure),
        }
    }
}
