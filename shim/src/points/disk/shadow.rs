//! The shadow of what is in flight: each request of the guest that was taken and not yet answered,
//! and each request to the host that it was turned into.
//!
//! A guest's slot is overwritten by answers, so the shadow is what a request is known by from the
//! moment it was taken.  It is plain data and migrates as memory; the references in it are the
//! real host's and are void afterwards.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use xen_abi::Mfn;
use xen_abi::blkif::{op, status};

use super::features::{FlushBy, Offer};
use super::request::{HeldSegment, Wanted};
use super::slab::Slab;
use crate::host::HostRef;

/// Requests of the guest that may be in flight at a time: those of the largest ring.
pub(super) const MAX_ENTRIES: usize = 512;

/// Segments that lists may have room for that are kept for the next request: as many as fit into
/// the requests that may be in flight at a time.
const SPARE_SEGMENTS: usize = 2048;

/// One thing to ask of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Move the data by this operation, in as many parts as it takes.
    Data(u8),
    /// An operation without data.
    Bare(u8),
    /// A discard.
    Discard,
}

/// What becomes of a request on a given host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// The steps in order, each after the one before was answered; exclusive ones with nothing
    /// else in flight.
    Steps {
        steps: [Option<Step>; 3],
        exclusive: bool,
    },
    /// Nothing needs to be asked of the host.
    Answer(i16),
}

impl Plan {
    /// Decides what a request becomes on a host that offers this.
    pub fn of(wanted: &Wanted, offer: &Offer) -> Self {
        let empty = wanted.segments.is_empty();
        let one = |step| Self::Steps {
            steps: [Some(step), None, None],
            exclusive: false,
        };
        let with_data = |operation| match empty {
            true => one(Step::Bare(operation)),
            false => one(Step::Data(operation)),
        };
        let write = (!empty).then_some(Step::Data(op::WRITE));
        match (wanted.operation, offer.flush_by) {
            (op::WRITE_BARRIER, _) if offer.barrier => with_data(op::WRITE_BARRIER),
            // What was written before must be on the medium before this is, and this before
            // anything later.
            (op::WRITE_BARRIER, FlushBy::Flush) => {
                let flush = Some(Step::Bare(op::FLUSH_DISKCACHE));
                Self::Steps {
                    steps: [flush, write, write.and(flush)],
                    exclusive: true,
                }
            }
            // Nothing to flush, and without data nothing to do but wait for the earlier ones.
            (op::WRITE_BARRIER, _) => Self::Steps {
                steps: [write, None, None],
                exclusive: true,
            },
            (op::FLUSH_DISKCACHE, FlushBy::Flush) => with_data(op::FLUSH_DISKCACHE),
            (op::FLUSH_DISKCACHE, FlushBy::Barrier) => with_data(op::WRITE_BARRIER),
            (op::FLUSH_DISKCACHE, _) if !empty => one(Step::Data(op::WRITE)),
            (op::FLUSH_DISKCACHE, _) => Self::Answer(status::OKAY),
            (op::DISCARD, _) => match &offer.discard {
                Some(discard) if discard.secure || !wanted.discard_secure => one(Step::Discard),
                // A discard is a hint, so doing nothing is doing it; leaving no copy is not.
                _ if wanted.discard_secure => Self::Answer(status::EOPNOTSUPP),
                _ => Self::Answer(status::OKAY),
            },
            (operation, _) => one(Step::Data(operation)),
        }
    }
}

/// A request of the guest.
#[derive(Debug)]
pub(super) struct Entry {
    pub wanted: Wanted,
    /// Orders the entries by when they were taken.
    pub serial: u64,
    /// Whether it is in the backlog: not everything was asked of the host yet.
    pub queued: bool,
    /// It was asked of a host before, which may or may not have done it.
    pub replayed: bool,
    /// What it becomes on this host, once that is decided.
    pub plan: Option<Plan>,
    /// The step that is being done.
    pub step: usize,
    /// How much of the step was asked of the host: segments, sectors of a discard, or 1 for a step
    /// without either.
    pub issued: usize,
    /// Requests at the host.
    pub parts: usize,
    /// What will be answered: the first thing that went wrong.
    pub status: i16,
}

/// A request at the host.
#[derive(Debug)]
pub(super) struct Part {
    /// The entry that it belongs to.
    pub entry: u32,
    /// Told apart from an earlier one of the same number.
    pub serial: u32,
    /// The operation that the response has to name.
    pub operation: u8,
    /// What the backend may use meanwhile.
    pub grants: Vec<HostRef>,
    /// The page with the segments of an indirect request.
    pub page: Option<Mfn>,
    /// What it counts as in flight, bytes.
    pub cost: u64,
    /// What the host answered; the part lives on while the backend still has a page in use.
    pub answer: Option<i16>,
}

/// Everything that is in flight.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    pub entries: Slab<Entry>,
    pub parts: Slab<Part>,
    /// Entries of which something is still to be asked of the host, in order.
    pub backlog: VecDeque<u32>,
    serial: u64,
    part_serial: u32,
    /// What the parts count as in flight, bytes.
    cost: u64,
    spare_segments: Vec<Vec<HeldSegment>>,
    /// Segments that the spare lists have room for.
    spare_room: usize,
}

impl Shadow {
    /// Puts a request at the end of the backlog.
    pub fn add(&mut self, wanted: Wanted) {
        self.serial += 1;
        let entry = self.entries.insert(Entry {
            wanted,
            serial: self.serial,
            queued: true,
            replayed: false,
            plan: None,
            step: 0,
            issued: 0,
            parts: 0,
            status: status::OKAY,
        });
        self.backlog.push_back(entry);
    }

    /// Makes a part, and returns the name that the host will know it by.
    pub fn add_part(&mut self, mut part: Part) -> u64 {
        // An answer that comes twice, or for what a number stood for before, names nobody.
        self.part_serial = self.part_serial.wrapping_add(1);
        part.serial = self.part_serial;
        self.cost += part.cost;
        let serial = u64::from(part.serial) << 32;
        serial | u64::from(self.parts.insert(part))
    }

    /// Takes a part out.
    pub fn remove_part(&mut self, number: u32) -> Option<Part> {
        let part = self.parts.remove(number)?;
        self.cost -= part.cost;
        Some(part)
    }

    /// What is in flight at the host, bytes.
    pub const fn cost(&self) -> u64 {
        self.cost
    }

    /// Returns the number of the part that the host names, if there is one that waits for an
    /// answer.
    pub fn part_named(&self, id: u64) -> Option<u32> {
        let (number, serial) = (id as u32, (id >> 32) as u32);
        let part = self.parts.get(number)?;
        (part.serial == serial && part.answer.is_none()).then_some(number)
    }

    /// The host half is gone with everything that it knew.  After a real move no part is left, since
    /// a suspend waits for all of them: what is left are entries of the backlog, perhaps begun.  Parts
    /// are handled all the same, for callers that did not drain: what was answered in full is left as
    /// it is; the rest goes back into the backlog, in order, unless nobody waits for it any more.
    /// Returns the pages of indirect requests, and the entries that only need to be answered.
    pub fn rewind(&mut self, is_awaited: bool) -> (Vec<Mfn>, Vec<u32>) {
        let mut pages = Vec::new();
        let numbers: Vec<u32> = self.parts.numbers().collect();
        let mut unanswered = Vec::new();
        for number in numbers {
            let Some(part) = self.remove_part(number) else {
                continue;
            };
            pages.extend(part.page);
            if let Some(entry) = self.entries.get_mut(part.entry) {
                entry.replayed = true;
                entry.parts = 0;
                match part.answer {
                    Some(answer) => entry.note_status(answer),
                    None => unanswered.push(part.entry),
                }
            }
        }
        let mut done = Vec::new();
        let mut again = Vec::new();
        let numbers: Vec<u32> = self.entries.numbers().collect();
        for number in numbers {
            let Some(entry) = self.entries.get_mut(number) else {
                continue;
            };
            if !is_awaited || !entry.queued && !unanswered.contains(&number) {
                done.push(number);
                continue;
            }
            let is_whole = !unanswered.contains(&number) && entry.status == status::OKAY;
            entry.replayed |= entry.issued > 0 || entry.step > 0;
            entry.queued = true;
            if !(is_whole && entry.goes_on_anywhere()) {
                entry.issued = 0;
            }
            entry.plan = None;
            entry.step = 0;
            // What has failed is part of what is asked again, so the next host decides anew.
            entry.status = status::OKAY;
            again.push((entry.serial, number));
        }
        // By the order in which the guest asked, which the numbers do not tell: they are used
        // again.
        again.sort_unstable();
        self.backlog = again.into_iter().map(|(_, number)| number).collect();
        (pages, done)
    }

    pub fn take_segments(&mut self) -> Vec<HeldSegment> {
        let spare = self.spare_segments.pop().unwrap_or_default();
        self.spare_room -= spare.capacity();
        spare
    }

    pub fn keep_segments(&mut self, mut segments: Vec<HeldSegment>) {
        if self.spare_room + segments.capacity() <= SPARE_SEGMENTS {
            self.spare_room += segments.capacity();
            segments.clear();
            self.spare_segments.push(segments);
        }
    }
}

impl Entry {
    /// Whether what was done of it need not be done again on another host: it is one step there,
    /// too, and that is counted alike.
    fn goes_on_anywhere(&self) -> bool {
        matches!(self.wanted.operation, op::READ | op::WRITE | op::DISCARD)
    }

    /// Notes a part's answer; the first that is not OKAY is what the guest will be told.
    pub fn note_status(&mut self, answer: i16) {
        if self.status == status::OKAY {
            self.status = answer;
        }
    }
}

#[cfg(test)]
mod tests {
    use xen_abi::blkif::{op, status};

    use super::{Plan, Step};
    use crate::points::disk::features::Offer;
    use crate::points::disk::request::{HeldSegment, Wanted};
    use crate::points::xenbus::Nodes;

    fn plan(operation: u8, with_data: bool, features: &[(&'static str, &str)]) -> Plan {
        let mut pairs = vec![("sectors", "2048")];
        pairs.extend_from_slice(features);
        let offer = Offer::parse(&Nodes::from_pairs(&pairs)).unwrap();
        let segment = HeldSegment {
            frame: xen_abi::Mfn(1),
            first: 0,
            last: 7,
        };
        let wanted = Wanted {
            id: 0,
            operation,
            sector: 0,
            discard_sectors: 8,
            discard_secure: false,
            segments: with_data.then_some(segment).into_iter().collect(),
        };
        Plan::of(&wanted, &offer)
    }

    const FLUSH: &[(&str, &str)] = &[("feature-flush-cache", "1")];
    const BARRIER: &[(&str, &str)] = &[("feature-barrier", "1")];
    const NO_CACHE: &[(&str, &str)] = &[("feature-flush-cache", "0")];

    #[test]
    fn a_barrier_survives_a_host_without_any() {
        assert_eq!(
            plan(op::WRITE_BARRIER, true, FLUSH),
            Plan::Steps {
                steps: [
                    Some(Step::Bare(op::FLUSH_DISKCACHE)),
                    Some(Step::Data(op::WRITE)),
                    Some(Step::Bare(op::FLUSH_DISKCACHE)),
                ],
                exclusive: true
            }
        );
        assert_eq!(
            plan(op::WRITE_BARRIER, true, NO_CACHE),
            Plan::Steps {
                steps: [Some(Step::Data(op::WRITE)), None, None],
                exclusive: true
            }
        );
    }

    #[test]
    fn a_flush_is_what_the_host_has_for_it() {
        let one = |step| Plan::Steps {
            steps: [Some(step), None, None],
            exclusive: false,
        };
        let flush = op::FLUSH_DISKCACHE;
        assert_eq!(plan(flush, false, FLUSH), one(Step::Bare(flush)));
        assert_eq!(
            plan(flush, false, BARRIER),
            one(Step::Bare(op::WRITE_BARRIER))
        );
        assert_eq!(plan(flush, false, NO_CACHE), Plan::Answer(status::OKAY));
        assert_eq!(plan(flush, true, NO_CACHE), one(Step::Data(op::WRITE)));
    }

    #[test]
    fn a_discard_is_only_a_hint() {
        assert_eq!(plan(op::DISCARD, false, FLUSH), Plan::Answer(status::OKAY));
    }
}
