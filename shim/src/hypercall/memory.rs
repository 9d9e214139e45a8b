//! `memory_op`: the balloon, and what the guest may know of its memory.

use xen_abi::memory::{E820Entry, MachphysMapping, MemoryMap, Reservation, op};
use xen_abi::mmu::{M2P_VIRT_END, M2P_VIRT_START};
use xen_abi::pvh::e820;
use xen_abi::{DomId, Errno, GuestVa, Mfn, PAGE_SIZE, Pfn};
use zerocopy::IntoBytes;

use super::{Answer, Args, element, read, write};
use crate::cpu::Machine;
use crate::guest::{Guest, mm};
use crate::host::Host;
use crate::mm::work::PAGE;
use crate::points::identity::Identity;

/// Extents that are given back between two looks: one flush covers all of them.
const BATCH: u64 = 64;
/// Units of work that a hypercall to the host is charged, with its exit.
const HOST_CALL: u32 = 32;

impl<M: Machine, H: Host> Guest<M, H> {
    /// `memory_op(command, argument)`.
    pub(super) fn memory_op(&mut self, [command, arg, ..]: Args) -> Answer {
        let start = command >> op::EXTENT_SHIFT;
        match command & ((1 << op::EXTENT_SHIFT) - 1) {
            // Frames beyond those that the guest was built with: there are none.
            op::INCREASE_RESERVATION => Ok(start),
            op::DECREASE_RESERVATION => self.decrease_reservation(arg, start),
            op::POPULATE_PHYSMAP => self.populate_physmap(arg, start),
            // The ledger's end and not the host's: it is the same after a move.
            op::MAXIMUM_RAM_PAGE => Ok(self.ledger.end().0 - 1),
            op::CURRENT_RESERVATION => self.own_memory(arg, self.pages),
            op::MAXIMUM_RESERVATION => self.own_memory(arg, self.max_pages),
            op::MAXIMUM_GPFN => self.own_memory(arg, self.max_pages - 1),
            op::MACHPHYS_MAPPING => {
                let mapping = MachphysMapping {
                    v_start: M2P_VIRT_START,
                    v_end: M2P_VIRT_END,
                    max_mfn: (M2P_VIRT_END - M2P_VIRT_START) / 8 - 1,
                };
                write(&self.m, arg, &mapping)?;
                Ok(0)
            }
            op::MEMORY_MAP => self.memory_map(arg),
            op::MACHINE_MEMORY_MAP => Err(Errno::EPERM),
            _ => Err(Errno::ENOSYS),
        }
    }

    /// The map that the toolstack gives a PV guest: one range of RAM, for the most pages that
    /// the guest may ever have.  It has to ask for those beyond the ones that it starts with.
    fn memory_map(&self, arg: u64) -> Answer {
        let mut map: MemoryMap = read(&self.m, arg)?;
        // In: how many there is room for. Out: how many were written.
        map.nr_entries = map.nr_entries.min(1);
        if map.nr_entries > 0 {
            let all = E820Entry {
                addr: 0,
                size: self.max_pages * PAGE_SIZE as u64,
                kind: e820::RAM,
            };
            write(&self.m, map.buffer, &all)?;
        }
        write(&self.m, arg, &map)?;
        Ok(0)
    }

    fn own_memory(&self, arg: u64, pages: u64) -> Answer {
        let domain: u16 = read(&self.m, arg)?;
        // By its own number as well, which `mmu_update` would not take.
        if domain == DomId::SELF.0 || domain == self.domid().0 {
            Ok(pages)
        } else {
            Err(Identity::refusal(domain))
        }
    }

    /// Reads what a balloon is to do; `None` for what Xen does not even begin with: bad pointers,
    /// other domains, counts that a continuation could not express, and extents that are larger
    /// than a page, none of which there are here.
    fn reservation(&self, arg: u64, start: u64) -> Option<Reservation> {
        let reservation: Reservation = read(&self.m, arg).ok()?;
        let is_own = reservation.domid == DomId::SELF.0 || reservation.domid == self.domid().0;
        // Xen's `do_memory_op` answers all of these with the count so far, so their order does not
        // show. An index above the bound would not fit beside the command in one register.
        let can_begin = is_own
            && reservation.nr_extents <= u64::from(u32::MAX) >> op::EXTENT_SHIFT
            && start < reservation.nr_extents
            && reservation.extent_order == 0;
        can_begin.then_some(reservation)
    }

    /// Whether the rest is to be done by a continuation, after `done` extents.
    fn continues(&mut self, command: u64, arg: u64, start: u64, done: u64) -> bool {
        // Never before the first extent: each call does at least one.
        let stops = done > start && self.should_stop();
        if stops {
            self.continuation = Some([command | done << op::EXTENT_SHIFT, arg, 0, 0, 0]);
        }
        stops
    }

    /// Gives frames back to the host; returns how many extents are done.
    fn decrease_reservation(&mut self, arg: u64, start: u64) -> Answer {
        let Some(reservation) = self.reservation(arg, start) else {
            return Ok(start);
        };
        let mut done = start;
        loop {
            // Cannot wrap: `reservation` bounds the count to 26 bits.
            let end = reservation.nr_extents.min(done + BATCH);
            done = self.release_frames(&reservation, done, end);
            if done == reservation.nr_extents
                || self.continues(op::DECREASE_RESERVATION, arg, start, done)
                || done < end
            {
                return Ok(done);
            }
        }
    }

    /// Gives the frames of extents `start` to `end` back to the host; returns the first extent that it
    /// did not do.
    fn release_frames(&mut self, reservation: &Reservation, start: u64, end: u64) -> u64 {
        let mut done = start;
        // Looks within the batch as well, so that the host need not wait for the end of it.
        while done < end && (done == start || !self.should_stop()) {
            let Ok(frame) = element::<u64>(reservation.extent_start, done)
                .and_then(|at| read::<u64>(&self.m, at))
            else {
                break;
            };
            match mm!(self).release(Mfn(frame), &self.m) {
                // Flushed below, once for all of them and before the host gets any.
                Ok(_) => {}
                Err(_) => break,
            }
            done += 1;
        }
        // Before the first frame goes: the host may give it to another domain the moment it has it,
        // and read-only translations leave no stamp in the ledger. Also after a refusal, since
        // frames before it were given up.
        self.m.flush_everything();
        self.ledger.note_full_flush();
        let released = done - start;
        self.pages -= released;
        // The batch lies at the head of the ledger's own list. The guest's list is not read again,
        // for it may have changed.
        let mut next = self.ledger.last_given_up();
        for _ in 0..released {
            // `released` frames were put in front just now, so there is always one.
            let Some(frame) = next else { break };
            next = self.ledger.given_up_before(frame);
            // A frame that the host does not take back stays here, which costs it memory and the
            // guest nothing.
            self.ledger.work().spend(HOST_CALL);
            let _ = self.host.release_frame(frame);
        }
        done
    }

    /// Takes frames from the host again; returns how many extents were filled.
    fn populate_physmap(&mut self, arg: u64, start: u64) -> Answer {
        let Some(reservation) = self.reservation(arg, start) else {
            return Ok(start);
        };
        let mut done = start;
        while done < reservation.nr_extents {
            if self.continues(op::POPULATE_PHYSMAP, arg, start, done) {
                break;
            }
            let Ok(at) = element::<u64>(reservation.extent_start, done) else {
                break;
            };
            let (Ok(pfn), Some(frame)) = (read::<u64>(&self.m, at), self.ledger.last_given_up())
            else {
                break;
            };
            // Release, populate, write, and the clearing: as if all of them were needed.
            self.ledger.work().spend(3 * HOST_CALL + PAGE);
            if self.take_frame(frame).is_err() {
                break;
            }
            // While it is nobody's yet. The host has just written into it (`write_frame`).
            self.m.clear(frame);
            // The frame still is the head of the list, for nothing else has run; so this does not
            // fail.
            if mm!(self).populate(frame, Pfn(pfn), &self.m).is_err() {
                break;
            }
            self.pages += 1;
            // The frame is the guest's, though the guest was not told of it: its M2P says which it
            // is.  The extent does not count, as in Xen's `populate_physmap`.
            if self.m.write_guest(GuestVa(at), frame.0.as_bytes()).is_err() {
                break;
            }
            done += 1;
        }
        Ok(done)
    }

    /// Takes memory for a frame from the host, in such a way that a move under way sees it.
    ///
    /// While Xen 4.17 to 4.21.0 record what a domain writes, a frame that comes into its P2M is
    /// neither marked nor protected from unnoticed writes (`p2m_add_page`), until whoever reads the
    /// domain clears the record; so what the guest had written to it by then would stay behind.
    /// Xen always marks what it writes itself for a hypercall (`__hvm_copy`).  From the mark on
    /// nothing is missed: either the record has been cleared since the frame came, and later
    /// writes are noticed, or it holds the mark, and the frame is read after the next clearing.
    ///
    /// Where a move has already brought memory for the frame, Xen would add another page and keep both.
    fn take_frame(&mut self, frame: Mfn) -> Result<(), Errno> {
        if self.leftovers.leaves(frame, &self.ledger) {
            // Mostly there is none.
            let _ = self.host.release_frame(frame);
        }
        // An error is the host's *no memory*; the guest sees a short count and asks again later.
        self.host.populate_frame(frame)?;
        self.host.write_frame(frame).inspect_err(|_| {
            // The guest can ask for it again later, as if nothing had happened.
            let _ = self.host.release_frame(frame);
        })
    }
}
