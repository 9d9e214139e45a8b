//! The guest's table as devices and the guest's own calls see it.

use std::collections::BTreeMap;

use xen_abi::grant::{
    GetStatusFrames, GetVersion, QuerySize, SetVersion, SetupTable, SwapGrantRef, status,
};
use xen_abi::{DomId, Errno, Mfn};

use super::{FrameHolds, GuestGrantTable};
use crate::mem::Frames;
use crate::points::{BadGrant, GuestGrants};
use crate::testing::FakeFrames;

const GUEST: DomId = DomId(1);
const BACKEND: DomId = DomId(0);

/// A ledger in which frames below 16 are the guest's.
#[derive(Default)]
pub(super) struct Ledger(pub(super) BTreeMap<(Mfn, bool), u32>);

impl FrameHolds for Ledger {
    fn hold(&mut self, frame: Mfn, write: bool) -> bool {
        if frame.0 < 16 {
            *self.0.entry((frame, write)).or_default() += 1;
        }
        frame.0 < 16
    }
    fn release(&mut self, frame: Mfn, write: bool) {
        let count = self.0.get_mut(&(frame, write)).expect("held before");
        *count -= 1;
        self.0.retain(|_, count| *count > 0);
    }
}

pub(super) fn set_up() -> (FakeFrames, Vec<Mfn>, GuestGrantTable) {
    let mem = FakeFrames::new(32);
    let mut pool: Vec<Mfn> = (28..32).map(Mfn).collect();
    let mut table = GuestGrantTable::new(GUEST, BACKEND, 3);
    assert!(table.create(&mut pool));
    (mem, pool, table)
}

pub(super) fn put(
    table: &GuestGrantTable,
    mem: &FakeFrames,
    reference: u32,
    flags: u64,
    dom: u64,
    frame: u64,
) {
    let (at_frame, at) = table.place(reference).unwrap();
    mem.store64(at_frame, at, flags | dom << 16 | frame << 32);
}

#[test]
fn a_device_gets_only_what_was_granted_to_it() {
    let (mem, _, table) = set_up();
    let mut ledger = Ledger::default();
    put(&table, &mem, 8, 1, 0, 5);
    put(&table, &mem, 9, 1 | 4, 0, 6);
    put(&table, &mem, 10, 1, 1, 5);
    put(&table, &mem, 11, 2, 0, 5);
    put(&table, &mem, 12, 1 | 1 << 8, 0, 5);
    put(&table, &mem, 13, 1, 0, 28);
    let mut grants = table.via(&mut ledger);
    let mut acquire = |reference, write| grants.acquire(&mem, reference, write);
    assert_eq!(acquire(8, true), Ok(Mfn(5)));
    assert_eq!(acquire(9, false), Ok(Mfn(6)));
    assert_eq!(acquire(9, true), Err(BadGrant::ReadOnly));
    for reference in [7, 10, 11, 12] {
        assert_eq!(acquire(reference, false), Err(BadGrant::NotGranted));
    }
    assert_eq!(acquire(13, false), Err(BadGrant::BadFrame));
    assert_eq!(acquire(512, false), Err(BadGrant::OutOfRange));
    assert_eq!(acquire(u32::MAX, false), Err(BadGrant::OutOfRange));
    grants.release(Mfn(5), true);
    grants.release(Mfn(6), false);
    assert!(ledger.0.is_empty());
}

#[test]
fn the_table_grows_to_its_limit_and_lists_its_frames() {
    let (_, mut pool, mut table) = set_up();
    let ask = |nr_frames| SetupTable {
        dom: DomId::SELF.0,
        nr_frames,
        ..SetupTable::default()
    };
    let size = table.query_size(QuerySize {
        dom: 1,
        ..QuerySize::default()
    });
    assert_eq!((size.nr_frames, size.max_nr_frames, size.status), (1, 3, 0));

    let (args, list) = table.setup_table(ask(3), &mut pool);
    assert_eq!((args.status, list.len()), (status::OKAY, 3));
    let (args, list) = table.setup_table(ask(2), &mut pool);
    assert_eq!((args.status, list.len()), (status::OKAY, 2));
    let (args, list) = table.setup_table(ask(4), &mut pool);
    assert_eq!((args.status, list.len()), (status::GENERAL_ERROR, 0));
    assert_eq!(pool.len(), 1);
}

#[test]
fn a_table_that_can_not_grow_stays_as_it_was() {
    let (_, _, mut table) = set_up();
    let mut pool = vec![Mfn(30)];
    let (args, _) = table.setup_table(
        SetupTable {
            dom: 1,
            nr_frames: 3,
            ..SetupTable::default()
        },
        &mut pool,
    );
    assert_eq!(args.status, status::GENERAL_ERROR);
    assert_eq!((table.frames().len(), pool), (1, vec![Mfn(30)]));
}

#[test]
fn other_domains_are_refused_as_xen_refuses_them() {
    let (_, mut pool, mut table) = set_up();
    for (dom, code, errno) in [
        (0, status::PERMISSION_DENIED, Errno::EPERM),
        (9, status::BAD_DOMAIN, Errno::ESRCH),
    ] {
        let args = QuerySize {
            dom,
            ..QuerySize::default()
        };
        assert_eq!(table.query_size(args).status, code);
        let args = GetVersion {
            dom,
            ..GetVersion::default()
        };
        assert_eq!(table.get_version(args).map(|_| ()), Err(errno));
        let args = SetupTable {
            dom,
            nr_frames: 1,
            ..SetupTable::default()
        };
        assert_eq!(table.setup_table(args, &mut pool).0.status, code);
    }
}

#[test]
fn version_2_was_never_heard_of() {
    let (_, _, table) = set_up();
    let set = |version| {
        let (args, result) = table.set_version(SetVersion { version });
        (args.version, result)
    };
    assert_eq!(set(1), (1, Ok(())));
    assert_eq!(set(2), (1, Err(Errno::ENOSYS)));
    assert_eq!(set(3), (1, Err(Errno::EINVAL)));
    let args = GetStatusFrames {
        nr_frames: 1,
        dom: 1,
        ..GetStatusFrames::default()
    };
    assert_eq!(table.get_status_frames(args).status, status::GENERAL_ERROR);
}

#[test]
fn entries_are_swapped() {
    let (mem, _, table) = set_up();
    put(&table, &mem, 8, 1, 0, 5);
    let swap = |ref_a, ref_b| {
        let args = SwapGrantRef {
            ref_a,
            ref_b,
            ..SwapGrantRef::default()
        };
        table.swap_grant_ref(&mem, args).status
    };
    assert_eq!(swap(8, 511), status::OKAY);
    assert_eq!(table.entry(&mem, 511).unwrap().frame, Mfn(5));
    assert_eq!(table.entry(&mem, 8).unwrap().flags.bits(), 0);
    assert_eq!(swap(8, 512), status::BAD_GNTREF);
}
