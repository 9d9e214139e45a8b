//! What a guest does with grants to itself, with the answers that Xen gives.

use xen_abi::grant::{CopyOp, CopyPtr, MapGrantRef, SwapGrantRef, UnmapGrantRef, status};
use xen_abi::{DomId, Mfn};

use super::super::tests::{Ledger, put, set_up};
use super::OwnMapper;
use crate::mem::Frames;

impl OwnMapper for Ledger {
    fn map(&mut self, _: Mfn, host_addr: u64, _: u32) -> Result<(), i16> {
        if host_addr == 0xbad000 {
            return Err(status::GENERAL_ERROR);
        }
        Ok(())
    }
    fn unmap(&mut self, _: Mfn, _: u64, _: u32) -> Result<(), i16> {
        Ok(())
    }
}

const HOST: u32 = 2;
const READONLY: u32 = 4;

fn ask(dom: u16, reference: u32, flags: u32, host_addr: u64) -> MapGrantRef {
    MapGrantRef {
        host_addr,
        flags,
        reference,
        dom,
        ..MapGrantRef::default()
    }
}

#[test]
fn a_grant_to_oneself_is_mapped_and_unmapped() {
    let (mem, _, mut table) = set_up();
    let mut ledger = Ledger::default();
    put(&table, &mem, 8, 1, 1, 5);
    let args = table.map_grant_ref(&mem, &mut ledger, ask(1, 8, HOST, 0x1000));
    assert_eq!(
        (args.status, args.handle, args.dev_bus_addr),
        (status::OKAY, 0, 0x5000)
    );
    assert_eq!(
        mem.load16(table.frames()[0], 64),
        1 | 8 | 16,
        "shown in use"
    );
    let swap = SwapGrantRef {
        ref_a: 8,
        ref_b: 9,
        ..SwapGrantRef::default()
    };
    assert_eq!(table.swap_grant_ref(&mem, swap).status, status::EAGAIN);

    let undo = UnmapGrantRef {
        host_addr: 0x1000,
        handle: args.handle,
        ..UnmapGrantRef::default()
    };
    assert_eq!(
        table.unmap_grant_ref(&mem, &mut ledger, undo).status,
        status::OKAY
    );
    assert_eq!(mem.load16(table.frames()[0], 64), 1);
    assert_eq!(
        table.unmap_grant_ref(&mem, &mut ledger, undo).status,
        status::BAD_HANDLE
    );
    assert!(ledger.0.is_empty());
}

#[test]
fn what_can_not_be_mapped_gets_the_status_that_xen_gives() {
    let (mem, _, mut table) = set_up();
    let mut ledger = Ledger::default();
    put(&table, &mem, 8, 1 | 4, 1, 5);
    put(&table, &mem, 9, 1, 0, 5);
    put(&table, &mem, 10, 1, 1, 31);
    put(&table, &mem, 11, 1, 1, 5);
    for (dom, reference, flags, addr, code) in [
        (1, 8, 0, 0x1000, status::BAD_GNTREF),
        (9, 8, HOST, 0x1000, status::BAD_DOMAIN),
        (DomId::SELF.0, 8, HOST, 0x1000, status::BAD_DOMAIN),
        (0, 8, HOST, 0x1000, status::GENERAL_ERROR),
        (0, 600, HOST, 0x1000, status::BAD_GNTREF),
        (1, 600, HOST, 0x1000, status::BAD_GNTREF),
        (1, 8, HOST, 0x1000, status::GENERAL_ERROR),
        (1, 8, HOST | READONLY, 0x1000, status::OKAY),
        (1, 9, HOST, 0x1000, status::GENERAL_ERROR),
        (1, 10, HOST, 0x1000, status::BAD_PAGE),
        (1, 11, HOST, 0xbad000, status::GENERAL_ERROR),
    ] {
        let args = table.map_grant_ref(&mem, &mut ledger, ask(dom, reference, flags, addr));
        assert_eq!(args.status, code, "d{dom} ref {reference} flags {flags}");
    }
    assert_eq!(ledger.0.len(), 1, "only what was mapped is held");
}

#[test]
fn copies_stay_within_the_guest() {
    let (mem, _, table) = set_up();
    let mut ledger = Ledger::default();
    put(&table, &mem, 8, 1, 1, 5);
    mem.write(Mfn(4), 100, b"hello");
    let side = |frame_or_ref, domid, offset| CopyPtr {
        frame_or_ref,
        domid,
        offset,
        pad: 0,
    };
    let own = DomId::SELF.0;
    let mut copy = |source, dest, flags, len| {
        let args = CopyOp {
            source,
            dest,
            len,
            flags,
            ..CopyOp::default()
        };
        table.copy(&mem, &mut ledger, args).status
    };
    assert_eq!(copy(side(4, own, 100), side(8, 1, 7), 2, 5), status::OKAY);
    let mut got = [0; 5];
    mem.read(Mfn(5), 7, &mut got);
    assert_eq!(&got, b"hello");
    assert_eq!(
        copy(side(4, own, 4090), side(8, 1, 0), 2, 7),
        status::BAD_COPY_ARG
    );
    assert_eq!(
        copy(side(4, 1, 0), side(8, 1, 0), 2, 7),
        status::PERMISSION_DENIED
    );
    assert_eq!(
        copy(side(31, own, 0), side(8, 1, 0), 2, 7),
        status::BAD_PAGE
    );
    assert_eq!(
        copy(side(4, own, 0), side(31, own, 0), 0, 7),
        status::BAD_PAGE
    );
    assert_eq!(
        copy(side(4, own, 0), side(9, 1, 0), 2, 7),
        status::GENERAL_ERROR
    );
    assert_eq!(
        copy(side(4, own, 0), side(8, 9, 0), 2, 7),
        status::BAD_DOMAIN
    );
    assert!(ledger.0.is_empty());
}
