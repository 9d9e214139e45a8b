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

mod copy;
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

pub use holds::{FrameHolds, Holds};
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

    /// Gives the table its first frame, which a domain has from its creation on; `false` when the
    /// pool is empty.
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
        // A request that can not be met in full takes nothing from the pool.
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
        // What is checked is a copy: the guest may change the entry meanwhile, and deceives only
        // itself.
        let kind = entry.flags & (EntryFlags::TYPE_MASK | EntryFlags::SUB_PAGE);
        if kind != EntryFlags::PERMIT_ACCESS || entry.domid != self.table.backend {
            return Err(BadGrant::NotGranted);
        }
        if write && entry.flags.contains(EntryFlags::READONLY) {
            return Err(BadGrant::ReadOnly);
        }
        // The hold is taken before anybody is given the frame: from here on it stays the guest's,
        // and one that is going to be written becomes no table.
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
mod tests;
