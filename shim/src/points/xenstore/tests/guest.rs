//! A guest's end of the ring.

use xen_abi::xs_wire::{Header, MsgType, ring};
use xen_abi::{DomId, Mfn};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::mem::Frames as _;
use crate::points::xenstore::{Limits, VirtualStore};
use crate::testing::FakeFrames;

pub(super) const PAGE: Mfn = Mfn(0);
pub(super) const GUEST: DomId = DomId(1);

/// A guest with a ring and no driver: it puts bytes in and takes bytes out.
pub(super) struct Guest {
    pub(super) frames: FakeFrames,
    pub(super) store: VirtualStore,
}

/// A message as the guest sees it: type, request id, transaction, payload.
pub(super) type Message = (u32, u32, u32, Vec<u8>);

impl Guest {
    pub(super) fn new() -> Self {
        let frames = FakeFrames::new(1);
        let mut store = VirtualStore::new(GUEST, Limits::default());
        store.put(
            "/local/domain/1",
            b"",
            &crate::points::xenstore::perms::Perms::new(DomId(0), Some(GUEST)),
        );
        store.put(
            "/local/domain/1/data",
            b"",
            &crate::points::xenstore::perms::Perms::new(GUEST, None),
        );
        store.connect(&frames, PAGE);
        Self { frames, store }
    }

    /// Puts as much as fits into the ring.
    pub(super) fn put(&self, bytes: &[u8]) -> usize {
        let prod = self.frames.load32(PAGE, ring::REQ_PROD);
        let free = 1024 - (prod - self.frames.load32(PAGE, ring::REQ_CONS)) as usize;
        let count = bytes.len().min(free);
        for (index, byte) in bytes[..count].iter().enumerate() {
            self.frames
                .store8(PAGE, (prod as usize + index) % 1024, *byte);
        }
        self.frames
            .store32(PAGE, ring::REQ_PROD, prod + count as u32);
        count
    }

    /// Takes everything that waits, up to `most` bytes.
    pub(super) fn take(&self, most: usize) -> Vec<u8> {
        let cons = self.frames.load32(PAGE, ring::RSP_CONS);
        let there = (self.frames.load32(PAGE, ring::RSP_PROD) - cons) as usize;
        let count = there.min(most);
        self.frames
            .store32(PAGE, ring::RSP_CONS, cons + count as u32);
        (0..count)
            .map(|index| {
                self.frames
                    .load8(PAGE, 1024 + (cons as usize + index) % 1024)
            })
            .collect()
    }

    /// Sends bytes and reads until nothing more comes.
    pub(super) fn exchange(&mut self, mut bytes: &[u8]) -> Vec<Message> {
        let mut got = Vec::new();
        loop {
            let put = self.put(bytes);
            bytes = &bytes[put..];
            let serviced = self.store.service(&self.frames);
            let taken = self.take(1024);
            assert!(serviced.notify || (put == 0 && taken.is_empty()));
            got.extend_from_slice(&taken);
            if !serviced.notify && bytes.is_empty() {
                return parse(&got);
            }
        }
    }

    pub(super) fn ask(&mut self, kind: MsgType, tx: u32, payload: &[u8]) -> Vec<Message> {
        self.exchange(&message(kind, 42, tx, payload))
    }

    /// Asks and returns the answer's payload, or the error's name.
    pub(super) fn answer(&mut self, kind: MsgType, tx: u32, payload: &[u8]) -> String {
        let all = self.ask(kind, tx, payload);
        let (got, req_id, tx_id, bytes) = all.last().expect("an answer");
        assert!(*got == kind.0 || *got == MsgType::ERROR.0);
        assert_eq!((*req_id, *tx_id), (42, tx));
        String::from_utf8_lossy(bytes).into_owned()
    }
}

pub(super) fn message(kind: MsgType, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        kind: kind.0,
        req_id,
        tx_id,
        len: payload.len() as u32,
    };
    [header.as_bytes(), payload].concat()
}

pub(super) fn parse(mut bytes: &[u8]) -> Vec<Message> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (header, rest) = Header::read_from_prefix(bytes).expect("a whole header");
        let (payload, rest) = rest.split_at(header.len as usize);
        all.push((header.kind, header.req_id, header.tx_id, payload.to_vec()));
        bytes = rest;
    }
    all
}
