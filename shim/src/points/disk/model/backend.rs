//! A model of a host's backend: does what it is asked in any order, late, wrongly or not at all,
//! but only with what was granted to it.

use xen_abi::Mfn;
use xen_abi::blkif::{
    Request, RequestDiscard, RequestIndirect, Response, SLOT_SIZE, Segment, op, status,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::mem::Frames;
use crate::points::device::model::Peer;
use crate::points::disk::Disk;
use crate::points::ring::BackRing;
use crate::testing::FakeFrames;
use crate::testing::surroundings::{is_granted, map, unmap};

/// Sectors of the model's disk.
pub(crate) const SECTORS: usize = 2048;

/// A request that the backend has taken, and mapped.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub id: u64,
    pub operation: u8,
    sector: u64,
    segments: Vec<(Mfn, Segment)>,
    discard: u64,
    mapped: Vec<u32>,
}

impl Taken {
    /// Bytes of data.
    fn bytes(&self) -> u64 {
        let sectors = |segment: &Segment| u64::from(segment.last_sect - segment.first_sect) + 1;
        self.segments.iter().map(|(_, s)| sectors(s) * 512).sum()
    }
}

#[derive(Default)]
pub(crate) struct Backend {
    pub features: Vec<(&'static str, String)>,
    pub max_order: u32,
    pub disk: Vec<u8>,
    ring: Option<BackRing<SLOT_SIZE>>,
    pub taken: Vec<Taken>,
    /// References of the ring.
    ring_refs: Vec<u32>,
    /// Mapped beyond the answer.
    lingering: Vec<u32>,
    /// What was done, in order, for tests of order.
    pub done: Vec<u8>,
    /// Largest number of segments that a request had.
    pub largest: usize,
    /// What was discarded: first sector, and how many.
    pub discarded: Vec<(u64, u64)>,
    /// Most requests that it had at a time, and most bytes of data.
    pub most: (usize, u64),
}

impl Peer for Backend {
    type Protocol = Disk;
    const INDEX: u32 = 51712;
    const FRONT: &'static [(&'static str, &'static str)] =
        &[("virtual-device", "51712"), ("device-type", "disk")];
    const POOL: u64 = 100;
    const LETS_GO_EARLY: bool = false;

    fn terms(&self) -> Vec<(&'static str, String)> {
        match self.max_order {
            0 => Vec::new(),
            order => vec![("max-ring-page-order", order.to_string())],
        }
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        self.features.clone()
    }

    fn is_attached(&self) -> bool {
        self.ring.is_some()
    }

    fn attach(&mut self, mem: &FakeFrames, front: &dyn Fn(&str) -> Option<String>) -> bool {
        let number = |key: &str| front(key).map(|value| value.parse::<u32>().unwrap());
        let order = number("ring-page-order").unwrap_or(0);
        assert!(order <= self.max_order);
        let refs: Vec<u32> = match order {
            0 => vec![number("ring-ref").unwrap()],
            _ => (0..1 << order)
                .map(|i| number(&format!("ring-ref{i}")).unwrap())
                .collect(),
        };
        if !refs.iter().all(|reference| is_granted(mem, *reference)) {
            return false;
        }
        let frames = refs.iter().map(|&r| map(mem, r, true)).collect();
        self.ring_refs = refs;
        self.ring = Some(BackRing::attach(mem, frames).unwrap());
        true
    }

    fn detach(&mut self, mem: &FakeFrames) {
        self.ring = None;
        self.taken.drain(..).for_each(|t| unmap(mem, &t.mapped));
        unmap(mem, &core::mem::take(&mut self.ring_refs));
        self.let_go(mem);
    }

    fn take(&mut self, mem: &FakeFrames) {
        Self::take(self, mem);
    }

    fn in_flight(&self) -> usize {
        self.taken.len()
    }

    fn answer_one(&mut self, mem: &FakeFrames) {
        self.finish(mem, 0);
    }

    fn let_go(&mut self, mem: &FakeFrames) {
        unmap(mem, &core::mem::take(&mut self.lingering));
    }

    fn succeed(&mut self, old: Self) {
        self.disk = old.disk;
    }
}

impl Backend {
    /// How many frames the ring has that it was given.
    pub fn ring_frames(&self) -> usize {
        self.ring_refs.len()
    }

    pub fn new(max_order: u32, features: &[(&'static str, &str)]) -> Self {
        let mut all = vec![
            ("sectors", SECTORS.to_string()),
            ("sector-size", "512".to_owned()),
            ("info", "0".to_owned()),
        ];
        for &(key, value) in features {
            all.retain(|(other, _)| *other != key);
            all.push((key, value.to_owned()));
        }
        Self {
            features: all,
            max_order,
            disk: vec![0x5a; SECTORS * 512],
            ..Self::default()
        }
    }

    /// Takes what is in the ring and maps it.
    pub fn take(&mut self, mem: &FakeFrames) {
        let Some(ring) = &mut self.ring else { return };
        while ring.final_check(mem).unwrap() {
            let slot = ring.copy_request(mem, 0);
            ring.consume(1);
            let taken = understand(mem, &slot);
            self.largest = self.largest.max(taken.segments.len());
            self.taken.push(taken);
        }
        let bytes = self.taken.iter().map(Taken::bytes).sum();
        self.most = (self.most.0.max(self.taken.len()), self.most.1.max(bytes));
    }

    /// Does request number `pick` without answering it.
    pub fn perform(&mut self, mem: &FakeFrames, pick: usize) {
        let taken = self.taken[pick].clone();
        self.done.push(taken.operation);
        let mut at = taken.sector as usize * 512;
        if taken.operation == op::DISCARD {
            self.discarded.push((taken.sector, taken.discard));
            // A disk that says to be larger than it is has nothing there.
            let end = (at + taken.discard as usize * 512).min(self.disk.len());
            if let Some(on_disk) = self.disk.get_mut(at..end) {
                on_disk.fill(0);
            }
        }
        for (frame, segment) in &taken.segments {
            let offset = usize::from(segment.first_sect) * 512;
            let len = (usize::from(segment.last_sect) + 1) * 512 - offset;
            let on_disk = &mut self.disk[at..at + len];
            if taken.operation == op::READ {
                mem.write(*frame, offset, on_disk);
            } else {
                mem.read(*frame, offset, on_disk);
            }
            at += len;
        }
    }

    /// Answers request number `pick`; `true` when the frontend wants to be notified.
    pub fn answer(&mut self, mem: &FakeFrames, pick: usize, status: i16, linger: bool) -> bool {
        let taken = self.taken.swap_remove(pick);
        if linger {
            self.lingering.extend(taken.mapped);
        } else {
            unmap(mem, &taken.mapped);
        }
        self.respond(mem, taken.id, taken.operation, status)
    }

    /// Does request number `pick` and answers it well.
    pub fn finish(&mut self, mem: &FakeFrames, pick: usize) -> bool {
        self.perform(mem, pick);
        self.answer(mem, pick, status::OKAY, false)
    }

    pub fn respond(&mut self, mem: &FakeFrames, id: u64, operation: u8, status: i16) -> bool {
        let Some(ring) = &mut self.ring else {
            return false;
        };
        let response = Response {
            id,
            operation,
            status,
            ..Response::new_zeroed()
        };
        if ring.unanswered() == 0 {
            return false;
        }
        ring.respond(mem, response.as_bytes());
        ring.push(mem)
    }

    /// Writes nonsense to the ring's indexes.
    pub fn corrupt_ring(&self, mem: &FakeFrames, value: u32) {
        if let Some(ring) = &self.ring {
            mem.store32(ring.frames()[0], 8, value);
        }
    }
}

fn understand(mem: &FakeFrames, slot: &[u8; SLOT_SIZE]) -> Taken {
    let plain = Request::read_from_bytes(slot).unwrap();
    let mut taken = Taken {
        id: plain.id,
        operation: plain.operation,
        sector: plain.sector_number,
        segments: Vec::new(),
        discard: 0,
        mapped: Vec::new(),
    };
    let mut segments = Vec::new();
    match plain.operation {
        op::INDIRECT => {
            let request = RequestIndirect::read_from_bytes(slot).unwrap();
            taken.operation = request.indirect_op;
            let count = usize::from(request.nr_segments);
            let page = map(mem, request.indirect_grefs[0], false);
            taken.mapped.push(request.indirect_grefs[0]);
            segments = vec![Segment::default(); count];
            mem.read(page, 0, segments.as_mut_bytes());
        }
        op::DISCARD => {
            taken.discard = RequestDiscard::read_from_bytes(slot).unwrap().nr_sectors;
        }
        _ => segments.extend_from_slice(&plain.seg[..usize::from(plain.nr_segments)]),
    }
    let write = taken.operation == op::READ;
    for segment in segments {
        let frame = map(mem, segment.gref, write);
        taken.mapped.push(segment.gref);
        taken.segments.push((frame, segment));
    }
    taken
}
