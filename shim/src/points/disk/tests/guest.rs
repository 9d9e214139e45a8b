//! A model of the guest's driver, which knows what its disk must contain.

use std::collections::BTreeMap;

use xen_abi::Mfn;
use xen_abi::blkif::{
    Request, RequestDiscard, RequestIndirect, Response, SLOT_SIZE, Segment, op, status,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::mem::Frames;
use crate::points::device::model::{GUEST_FRAMES, grant, put_entry, reference};
use crate::points::disk::model::World;
use crate::points::disk::model::backend::SECTORS;
use crate::points::ring::FrontRing;

const INDIRECT_FRAMES: std::ops::Range<u64> = 16..40;
const DATA_FRAMES: std::ops::Range<u64> = 40..GUEST_FRAMES;
const PORT: u32 = 9;

/// A request that waits for its answer.
struct Asked {
    operation: u8,
    sector: usize,
    sectors: usize,
    frames: Vec<(Mfn, u8, u8)>,
    indirect: Option<Mfn>,
    data: Vec<u8>,
}

pub(crate) struct Guest {
    pub ring: FrontRing<SLOT_SIZE>,
    asked: BTreeMap<u64, Asked>,
    next_id: u64,
    free: Vec<Mfn>,
    free_indirect: Vec<Mfn>,
    /// What the disk must contain; `None` after a write that failed.
    image: Vec<Option<[u8; 512]>>,
    busy: Vec<bool>,
    pub answers: Vec<i16>,
}

impl Guest {
    /// Connects a driver with a ring of `1 << order` frames.
    pub fn connect(world: &mut World, order: u32) -> Self {
        assert_eq!(world.back("state"), Some("2"));
        let frames: Vec<Mfn> = (0..1 << order).map(Mfn).collect();
        for frame in &frames {
            grant(world, *frame, false);
        }
        let ring = FrontRing::new(&world.mem, frames.clone());
        let mut front = |key: &str, value: String| world.front(key, &value);
        if order == 0 {
            front("ring-ref", reference(Mfn(0)).to_string());
        } else {
            front("ring-page-order", order.to_string());
            for frame in frames {
                front(
                    &format!("ring-ref{}", frame.0),
                    reference(frame).to_string(),
                );
            }
        }
        front("event-channel", PORT.to_string());
        front("protocol", "x86_64-abi".to_owned());
        world.guest_state(3);
        let image = (0..SECTORS).map(|sector| {
            let bytes = &world.backend.disk[sector * 512..][..512];
            Some(bytes.try_into().unwrap())
        });
        Self {
            ring,
            asked: BTreeMap::new(),
            next_id: 0x1000,
            free: DATA_FRAMES.map(Mfn).collect(),
            free_indirect: INDIRECT_FRAMES.map(Mfn).collect(),
            image: image.collect(),
            busy: vec![false; SECTORS],
            answers: Vec::new(),
        }
    }

    pub fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// Asks for `count` segments at `sector`; `false` when there is no room, or when it would
    /// overlap with another request, so that nobody could say what must come of it.
    pub fn ask(&mut self, world: &World, operation: u8, sector: usize, count: usize) -> bool {
        let is_indirect = count > 11;
        if self.ring.free() == 0
            || self.free.len() < count
            || is_indirect && self.free_indirect.is_empty()
            || is_indirect && !matches!(operation, op::READ | op::WRITE)
        {
            return false;
        }
        // Segments of different lengths and places.
        let shape: Vec<(u8, u8)> = (0..count)
            .map(|i| match (sector + i) % 4 {
                0 => (0, 0),
                1 => (3, 7),
                2 => (7, 7),
                _ => (0, 7),
            })
            .collect();
        let sectors = match operation {
            op::DISCARD => 5,
            _ => shape
                .iter()
                .map(|(first, last)| usize::from(last - first) + 1)
                .sum(),
        };
        let Some(range) = self.busy.get_mut(sector..sector + sectors) else {
            return false;
        };
        if range.iter().any(|busy| *busy) {
            return false;
        }
        range.fill(true);

        let id = self.next_id;
        self.next_id += 1;
        let mut asked = Asked {
            operation,
            sector,
            sectors,
            frames: Vec::new(),
            indirect: None,
            data: Vec::new(),
        };
        let mut segments = Vec::new();
        for (first, last) in shape {
            let frame = self.free.pop().unwrap();
            grant(world, frame, operation != op::READ);
            let mut bytes = [0; 4096];
            for (i, sector) in bytes.chunks_mut(512).enumerate() {
                sector.fill((id as usize * 31 + frame.0 as usize * 7 + i) as u8);
            }
            world.mem.write(frame, 0, &bytes);
            let offset = usize::from(first) * 512;
            asked
                .data
                .extend_from_slice(&bytes[offset..(usize::from(last) + 1) * 512]);
            asked.frames.push((frame, first, last));
            segments.push(Segment {
                gref: reference(frame),
                first_sect: first,
                last_sect: last,
                pad: 0,
            });
        }
        let slot = self.slot(world, id, &mut asked, &segments);
        self.ring.put(&world.mem, &slot);
        self.asked.insert(id, asked);
        true
    }

    fn slot(&mut self, world: &World, id: u64, asked: &mut Asked, segments: &[Segment]) -> Vec<u8> {
        if asked.operation == op::DISCARD {
            let mut request = RequestDiscard::new_zeroed();
            request.operation = op::DISCARD;
            request.id = id;
            request.sector_number = asked.sector as u64;
            request.nr_sectors = asked.sectors as u64;
            return request.as_bytes().to_vec();
        }
        if segments.len() > 11 {
            let page = self.free_indirect.pop().unwrap();
            grant(world, page, true);
            world.mem.write(page, 0, segments.as_bytes());
            asked.indirect = Some(page);
            let mut request = RequestIndirect::new_zeroed();
            request.operation = op::INDIRECT;
            request.indirect_op = asked.operation;
            request.nr_segments = segments.len() as u16;
            request.id = id;
            request.sector_number = asked.sector as u64;
            request.indirect_grefs[0] = reference(page);
            return request.as_bytes().to_vec();
        }
        let mut request = Request::new_zeroed();
        request.operation = asked.operation;
        request.nr_segments = segments.len() as u8;
        request.id = id;
        request.sector_number = asked.sector as u64;
        request.seg[..segments.len()].copy_from_slice(segments);
        request.as_bytes().to_vec()
    }

    /// Publishes what was asked; the port is used only if the backend wants it.
    pub fn push(&mut self, world: &mut World) -> bool {
        self.ring.push(&world.mem)
    }

    /// Takes answers, and checks them and the data.
    pub fn reap(&mut self, world: &World) {
        while self.ring.final_check(&world.mem).expect("an honest ring") {
            let slot = self.ring.copy_response(&world.mem, 0);
            self.ring.consume(1);
            let response = Response::read_from_bytes(&slot[..16]).unwrap();
            let asked = self
                .asked
                .remove(&response.id)
                .expect("an answer to a request that waits for one");
            assert_eq!(response.operation, asked.operation);
            self.answers.push(response.status);
            self.settle(world, asked, response.status);
        }
    }

    fn settle(&mut self, world: &World, asked: Asked, status: i16) {
        let range = asked.sector..asked.sector + asked.sectors;
        self.busy[range.clone()].fill(false);
        let mut sector = asked.sector;
        for (frame, first, last) in &asked.frames {
            for in_frame in *first..=*last {
                let mut bytes = [0; 512];
                world
                    .mem
                    .read(*frame, usize::from(in_frame) * 512, &mut bytes);
                if asked.operation != op::READ {
                    self.image[sector] = (status == status::OKAY).then_some(bytes);
                } else if let (Some(expected), true) = (self.image[sector], status == status::OKAY)
                {
                    assert_eq!(bytes, expected, "sector {sector}");
                }
                sector += 1;
            }
        }
        if asked.operation == op::DISCARD {
            // Whether it was done is nobody's business.
            self.image[range].fill(None);
        }
        for (frame, ..) in asked.frames {
            revoke(world, frame);
            self.free.push(frame);
        }
        if let Some(page) = asked.indirect {
            revoke(world, page);
            self.free_indirect.push(page);
        }
    }

    /// What is on the disk is what the guest was told.
    pub fn check_disk(&self, world: &World) {
        for (sector, expected) in self.image.iter().enumerate() {
            if let Some(expected) = expected {
                let bytes = &world.backend.disk[sector * 512..][..512];
                assert_eq!(bytes, expected, "sector {sector} on the disk");
            }
        }
    }
}

fn revoke(world: &World, frame: Mfn) {
    put_entry(world, reference(frame), 0);
}
