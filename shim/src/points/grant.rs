//! The guest's own grant table, version 1, and the hypercalls about it.
//!
//! The table lies in frames of the shim that the guest may map; the guest writes its entries there
//! and tells nobody.  The names in it mean something only to the shim: a device looks a reference
//! up when the guest hands it over in a ring and grants the *frame* to the real backend under a
//! reference of the real table.  So nothing of this ever changes in a migration.
//!
//! The operations answer as a current Xen, with version 1 as the newest one allowed, answers an
//! ordinary domain (`xen/common/grant_table.c`).  There are no other domains in this world besides
//! the guest and the backends' virtual one, which grants nothing; so a guest can map and copy only
//! what it granted to itself ([`own`]).

mod holds;
mod own;

use alloc::vec::Vec;

use xen_abi::grant::{
    ENTRIES_PER_FRAME, EntryFlags, GetStatusFrames, GetVersion, QuerySize, SetVersion, SetupTable,
    SwapGrantRef, status,
};
use xen_abi::{DomId, Errno, Mfn};

use super::{BadGrant, GuestGrants};
use crate::mem::{FramePool, Frames};

pub use holds::FrameHolds;
pub use own::OwnMapper;

/// Frames that a guest's table may have: what hosts allow by default.
pub const DEFAULT_MAX_FRAMES: u32 = 64;

/// The guest's table and what is mapped through it.
#[derive(Debug)]
pub struct GuestGrantTable {
    guest: DomId,
    backend: DomId,
    max_frames: u32,
    frames: Vec<Mfn>,
    own: own::OwnMappings,
}

/// One entry, copied out of the table.
#[derive(Clone, Copy)]
struct Entry {
    flags: EntryFlags,
    domid: DomId,
    frame: Mfn,
}

impl GuestGrantTable {
    /// Makes the table of `guest`, whose backends appear as `backend`.  It has no frame yet.
    pub fn new(guest: DomId, backend: DomId, max_frames: u32) -> Self {
        Self {
            guest,
            backend,
            max_frames,
            frames: Vec::new(),
            own: own::OwnMappings::default(),
        }
    }

    /// Gives the table its first frame, which a domain has from its creation on; `false` when
    /// there is none to be had.
    pub fn create(&mut self, pool: &mut dyn FramePool) -> bool {
        self.grow(pool, 1)
    }

    /// The table's frames, in order.
    pub fn frames(&self) -> &[Mfn] {
        &self.frames
    }

    /// Joins the table with the frame ledger, for use by the devices.
    pub fn via<'a>(&'a self, holds: &'a mut dyn FrameHolds) -> GuestGrantsVia<'a> {
        GuestGrantsVia { table: self, holds }
    }

    /// `GNTTABOP_query_size`.
    pub fn query_size(&self, mut args: QuerySize) -> QuerySize {
        args.status = self.check_domain(args.dom);
        if args.status == status::OKAY {
            args.nr_frames = self.frames.len() as u32;
            args.max_nr_frames = self.max_frames;
        }
        args
    }

    /// `GNTTABOP_setup_table`.  Returns the frame numbers for the guest's list as well; should they
    /// not reach the guest, the caller sets the status to `BAD_VIRT_ADDR`.  `pool` gives frames
    /// that the ledger knows as shared with the guest.
    pub fn setup_table(
        &mut self,
        mut args: SetupTable,
        pool: &mut dyn FramePool,
    ) -> (SetupTable, &[Mfn]) {
        args.status = self.check_domain(args.dom);
        if args.status == status::OKAY
            && (args.nr_frames > self.max_frames || !self.grow(pool, args.nr_frames))
        {
            args.status = status::GENERAL_ERROR;
        }
        let listed = match args.status {
            status::OKAY => args.nr_frames as usize,
            _ => 0,
        };
        (args, &self.frames[..listed])
    }

    /// `GNTTABOP_set_version`: answered together with the version in effect, in success and
    /// failure alike.
    pub fn set_version(&self, args: SetVersion) -> (SetVersion, Result<(), Errno>) {
        let result = match args.version {
            1 => Ok(()),
            2 => Err(Errno::ENOSYS),
            _ => Err(Errno::EINVAL),
        };
        (SetVersion { version: 1 }, result)
    }

    /// `GNTTABOP_get_version`.
    pub fn get_version(&self, mut args: GetVersion) -> Result<GetVersion, Errno> {
        match self.check_domain(args.dom) {
            status::OKAY => {
                args.version = 1;
                Ok(args)
            }
            status::PERMISSION_DENIED => Err(Errno::EPERM),
            _ => Err(Errno::ESRCH),
        }
    }

    /// `GNTTABOP_get_status_frames`: a table of version 1 has none.
    pub fn get_status_frames(&self, mut args: GetStatusFrames) -> GetStatusFrames {
        args.status = match self.check_domain(args.dom) {
            status::OKAY if args.nr_frames > 0 => status::GENERAL_ERROR,
            other => other,
        };
        args
    }

    /// `GNTTABOP_swap_grant_ref`.
    pub fn swap_grant_ref(&self, mem: &dyn Frames, mut args: SwapGrantRef) -> SwapGrantRef {
        args.status = match (self.place(args.ref_a), self.place(args.ref_b)) {
            (Some((frame_a, at_a)), Some((frame_b, at_b))) => {
                if args.ref_a == args.ref_b {
                    status::OKAY
                } else if self.own.is_pinned(args.ref_a) || self.own.is_pinned(args.ref_b) {
                    status::EAGAIN
                } else {
                    let (a, b) = (mem.load64(frame_a, at_a), mem.load64(frame_b, at_b));
                    mem.store64(frame_a, at_a, b);
                    mem.store64(frame_b, at_b, a);
                    status::OKAY
                }
            }
            _ => status::BAD_GNTREF,
        };
        args
    }

    /// Returns `OKAY` when `dom` names the guest itself, and otherwise why it may not be asked
    /// about.
    fn check_domain(&self, dom: u16) -> i16 {
        match DomId(dom) {
            DomId::SELF => status::OKAY,
            dom if dom == self.guest => status::OKAY,
            dom if dom == self.backend => status::PERMISSION_DENIED,
            _ => status::BAD_DOMAIN,
        }
    }

    /// Makes the table at least `frames` long; on failure it stays as it was.
    fn grow(&mut self, pool: &mut dyn FramePool, frames: u32) -> bool {
        let had = self.frames.len();
        while self.frames.len() < frames as usize {
            match pool.take() {
                Some(frame) => self.frames.push(frame),
                None => {
                    self.frames
                        .drain(had..)
                        .for_each(|frame| pool.give_back(frame));
                    return false;
                }
            }
        }
        true
    }

    fn place(&self, reference: u32) -> Option<(Mfn, usize)> {
        let frame = self.frames.get((reference / ENTRIES_PER_FRAME) as usize)?;
        Some((*frame, (reference % ENTRIES_PER_FRAME) as usize * 8))
    }

    /// Copies an entry in one access, so that its parts belong together.
    fn entry(&self, mem: &dyn Frames, reference: u32) -> Option<Entry> {
        let (frame, at) = self.place(reference)?;
        let raw = mem.load64(frame, at);
        Some(Entry {
            flags: EntryFlags::from_bits_retain(raw as u16),
            domid: DomId((raw >> 16) as u16),
            frame: Mfn(raw >> 32),
        })
    }
}

/// A [`GuestGrantTable`] together with the frame ledger.
pub struct GuestGrantsVia<'a> {
    table: &'a GuestGrantTable,
    holds: &'a mut dyn FrameHolds,
}

impl GuestGrants for GuestGrantsVia<'_> {
    fn acquire(
        &mut self,
        frames: &dyn Frames,
        reference: u32,
        write: bool,
    ) -> Result<Mfn, BadGrant> {
        let entry = self
            .table
            .entry(frames, reference)
            .ok_or(BadGrant::OutOfRange)?;
        let kind = entry.flags & (EntryFlags::TYPE_MASK | EntryFlags::SUB_PAGE);
        if kind != EntryFlags::PERMIT_ACCESS || entry.domid != self.table.backend {
            return Err(BadGrant::NotGranted);
        }
        if write && entry.flags.contains(EntryFlags::READONLY) {
            return Err(BadGrant::ReadOnly);
        }
        if !self.holds.hold(entry.frame, write) {
            return Err(BadGrant::BadFrame);
        }
        Ok(entry.frame)
    }

    fn release(&mut self, frame: Mfn, write: bool) {
        self.holds.release(frame, write);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use xen_abi::grant::{
        GetStatusFrames, GetVersion, QuerySize, SetVersion, SetupTable, SwapGrantRef, status,
    };
    use xen_abi::{DomId, Errno, Mfn};

    use super::{FrameHolds, GuestGrantTable};
    use crate::mem::{FakeFrames, Frames};
    use crate::points::{BadGrant, GuestGrants};

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
}
