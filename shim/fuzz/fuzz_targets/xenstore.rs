//! Any bytes through both xenstore rings: as a guest towards its virtual store, and as a daemon
//! towards the shim's own connection.
//!
//! The input is a list of steps: a byte that chooses, a length byte, and that many bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unmoved_shim::host::store::StoreConnection;
use unmoved_shim::host::{StoreClient as _, StoreOp, Tag};
use unmoved_shim::mem::Frames;
use unmoved_shim::testing::FakeFrames;
use unmoved_shim::points::GuestStore as _;
use unmoved_shim::points::xenstore::perms::Perms;
use unmoved_shim::points::xenstore::{Limits, VirtualStore};
use xen_abi::xs_wire::ring;
use xen_abi::{DomId, Mfn};

const GUEST: Mfn = Mfn(0);
const HOST: Mfn = Mfn(1);
const ID: DomId = DomId(1);

fuzz_target!(|input: &[u8]| {
    let frames = FakeFrames::new(2);
    let limits = Limits {
        memory: 64 << 10,
        ..Limits::default()
    };
    let mut store = VirtualStore::new(ID, limits);
    store.put("/local/domain/1", b"", &Perms::new(DomId(0), Some(ID)));
    store.put("/local/domain/1/data", b"", &Perms::new(ID, None));
    store.connect(&frames, GUEST);
    let mut client = StoreConnection::new(HOST);

    let mut rest = input;
    while let [choice, len, tail @ ..] = rest {
        let (bytes, tail) = tail.split_at(tail.len().min(usize::from(*len)));
        rest = tail;
        match choice % 8 {
            0..3 => put(&frames, GUEST, ring::REQ, ring::REQ_PROD, bytes),
            3 => {
                put(&frames, HOST, ring::RSP, ring::RSP_PROD, bytes);
                client.submit(Tag(1), StoreOp::Watch("data".into()));
                client.submit(Tag(2), StoreOp::Read("data".into()));
                client.flush(&frames);
                let _ = (0..64).map_while(|_| client.poll(&frames)).count();
            }
            4 => {
                let unread = frames.load32(GUEST, ring::RSP_PROD);
                frames.store32(GUEST, ring::RSP_CONS, unread);
            }
            5 => store.write("/local/domain/1/data/a", bytes, ID),
            6 => store.remove("/local/domain/1/data/a"),
            _ => {
                // Any field of either page.
                if let [page, field, value @ ..] = bytes
                    && let Ok(value) = <[u8; 4]>::try_from(value)
                {
                    let offset = ring::REQ_CONS + 4 * usize::from(field % 8);
                    let page = Mfn(u64::from(page % 2));
                    frames.store32(page, offset, u32::from_le_bytes(value));
                }
            }
        }
        while store.service(&frames).again {}
        store.take_guest_changes();
        let (daemon, _) = store.core_mut();
        // Only an answer may go beyond the limit, and only one.
        assert!(daemon.memory() < limits.memory + (5 << 10));
    }
});

/// Puts bytes into a ring as its other side would.
fn put(frames: &FakeFrames, page: Mfn, buffer: usize, index: usize, bytes: &[u8]) {
    let at = frames.load32(page, index);
    for (offset, byte) in bytes.iter().enumerate() {
        frames.store8(
            page,
            buffer + (at as usize).wrapping_add(offset) % 1024,
            *byte,
        );
    }
    frames.store32(page, index, at.wrapping_add(bytes.len() as u32));
}
