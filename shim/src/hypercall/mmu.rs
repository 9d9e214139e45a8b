//! Page tables: `mmu_update`, `update_va_mapping`, `mmuext_op`.

use xen_abi::mmu::{Level, MmuExtOp, MmuUpdate, Pte, UvmFlags, UvmScope, ext};
use xen_abi::{DomId, Errno, GuestVa, Mfn};
use zerocopy::{FromBytes, IntoBytes};

use super::{Answer, Args, element, read, write};
use crate::cpu::{Assist, Machine};
use crate::guest::{Guest, mm};
use crate::host::Host;
use crate::mm::Flush;

/// In a count: continue where an earlier call was interrupted (`MMU_UPDATE_PREEMPTED`), so that what
/// was done then counts as well.
const PREEMPTED: u64 = 1 << 31;

/// The arguments of a list of page-table operations.
struct List {
    at: u64,
    count: u64,
    /// Where the number of operations that were performed goes, or 0.
    done: u64,
    /// How many were performed before the call was interrupted.
    before: u32,
    args: Args,
}

impl List {
    /// Returns what is left to do from operation `index` on, as arguments of the same call; `None`
    /// when its address wraps, and then the operation at `index` faults.
    fn rest<T>(&self, index: u64) -> Option<Args> {
        let [_, _, done, domain, last] = self.args;
        // The interface has 31 bits for the count, so the mark above it takes nothing away.
        let count = (self.count - index) | PREEMPTED;
        Some([
            element::<T>(self.at, index).ok()?,
            count,
            done,
            domain,
            last,
        ])
    }
}

impl<M: Machine, H: Host> Guest<M, H> {
    /// Whether a domain id in a page-table operation means the guest itself.
    fn is_own(domain: u64) -> bool {
        // Bits 31:16 name a foreign page-table domain plus 1; 0 is the caller's own.  Like Xen, no
        // domain may name itself by its number here.
        domain & 0xffff_ffff == u64::from(DomId::SELF.0)
    }

    fn kernel_table(&self, v: usize) -> Result<Mfn, Errno> {
        self.vcpus[v]
            .spaces
            .as_ref()
            .map(|spaces| spaces.kernel())
            .ok_or(Errno::EINVAL)
    }

    /// Reads the arguments that `mmu_update` and `mmuext_op` have in common.
    fn list(&self, args: Args) -> Result<List, Errno> {
        let [at, count, done, domain, _] = args;
        if !Self::is_own(domain) {
            return Err(Errno::ESRCH);
        }
        let mut before = 0;
        if count & PREEMPTED != 0 && done != 0 {
            // Guest memory, and it may say anything: it is only added to and written back. Xen's
            // `do_mmu_update` ignores the fault as well.
            before = read(&self.m, done).unwrap_or(0);
        }
        Ok(List {
            at,
            // Xen's argument is 32 bits wide, and kernels may leave anything above.
            count: count & !PREEMPTED & 0xffff_ffff,
            done,
            before,
            args,
        })
    }

    /// Performs the operations of a list until one fails or others should have their turn.
    fn perform<T>(
        &mut self,
        list: &List,
        mut one: impl FnMut(&mut Self, T) -> Result<Flush, Errno>,
    ) -> Answer
    where
        T: FromBytes + IntoBytes + Copy,
    {
        let mut flush = Flush::None;
        let mut outcome = Ok(0);
        let mut performed = list.before;
        for index in 0..list.count {
            // At least one operation each time, or a host that is never quiet would keep the guest
            // here for ever.
            if index > 0
                && self.should_stop()
                && let Some(rest) = list.rest::<T>(index)
            {
                self.continuation = Some(rest);
                break;
            }
            // Read one by one, after the one before is done: an operation may change the mapping
            // that the list itself is read through.
            let result = element::<T>(list.at, index)
                .and_then(|at| read::<T>(&self.m, at))
                .and_then(|operation| {
                    // It may be about what the one before has dropped.
                    self.finish_releases()?;
                    self.in_steps(|guest| one(guest, operation))
                });
            match result {
                // Owed until the end of the list. No guest code runs before, and what cannot wait
                // that long the ledger flushes by itself.
                Ok(needed) => flush = flush.and(needed),
                Err(Errno::ERESTART) => {
                    // The operation has just been read from this address, so there is one to name.
                    self.continuation = list.rest::<T>(index);
                    break;
                }
                Err(errno) => {
                    // What was done before stays done, and is counted; the flush for it is still
                    // owed.
                    outcome = Err(errno);
                    break;
                }
            }
            // The guest says where the count begins, so it may well wrap; Xen's does.
            performed = performed.wrapping_add(1);
        }
        // On every way out, with a continuation too: guest code may run before the call is made
        // again.
        self.flush(flush);
        if list.done != 0 {
            // Not being told is the caller's loss; what was done stays done.
            let _ = write(&self.m, list.done, &performed);
        }
        outcome
    }

    /// `mmu_update(requests, count, done, domain)`.
    pub(super) fn mmu_update(&mut self, args: Args) -> Answer {
        let list = self.list(args)?;
        self.perform(&list, |guest, request: MmuUpdate| {
            mm!(guest).mmu_update(request, &guest.m)
        })
    }

    /// `update_va_mapping(va, entry, flags)`.
    pub(super) fn update_va_mapping(&mut self, v: usize, [va, entry, flags, ..]: Args) -> Answer {
        // Always the kernel's table, as in Xen's `do_update_va_mapping`: the call comes from kernel
        // mode.
        let root = self.kernel_table(v)?;
        let flags = UvmFlags(flags);
        let flush = mm!(self).update_va_mapping(root, GuestVa(va), Pte(entry), flags)?;
        self.flush(flush);
        // One vCPU is all there is to flush, but a mask that cannot be read is refused as Xen does:
        // when the entry has changed already.
        if let UvmScope::Mask(mask) = flags.scope()
            && flush != Flush::None
        {
            read::<u64>(&self.m, mask.0).map_err(|_| Errno::EFAULT)?;
        }
        Ok(0)
    }

    /// `mmuext_op(operations, count, done, domain)`.
    pub(super) fn mmuext_op(&mut self, v: usize, args: Args) -> Answer {
        let list = self.list(args)?;
        self.perform(&list, |guest, op: MmuExtOp| guest.mmuext(v, op))
    }

    fn mmuext(&mut self, v: usize, op: MmuExtOp) -> Result<Flush, Errno> {
        let frame = Mfn(op.arg1);
        match op.cmd {
            ext::PIN_L1_TABLE => self.pin(Level::L1, frame),
            ext::PIN_L2_TABLE => self.pin(Level::L2, frame),
            ext::PIN_L3_TABLE => self.pin(Level::L3, frame),
            ext::PIN_L4_TABLE => self.pin(Level::L4, frame),
            ext::UNPIN_TABLE => mm!(self).unpin(frame),
            // It loads CR3 at once instead of leaving a flush to the end: the next operation of the
            // list is read through the new table.
            ext::NEW_BASEPTR => {
                self.new_baseptr(v, frame)?;
                Ok(Flush::None)
            }
            ext::NEW_USER_BASEPTR => {
                let spaces = self.vcpus[v].spaces.as_mut().ok_or(Errno::EINVAL)?;
                // The user table is loaded when user mode is entered, which flushes.
                let _ = mm!(self).new_user_baseptr(spaces, frame)?;
                self.show_m2p(v);
                Ok(Flush::None)
            }
            // The set is not needed, but a bad pointer to it is EINVAL, not EFAULT, as in Xen's
            // `do_mmuext_op`.
            ext::TLB_FLUSH_MULTI | ext::INVLPG_MULTI if read::<u64>(&self.m, op.arg2).is_err() => {
                Err(Errno::EINVAL)
            }
            // There is one vCPU: whichever set is named, flushing here is enough.
            ext::TLB_FLUSH_LOCAL | ext::TLB_FLUSH_MULTI | ext::TLB_FLUSH_ALL => Ok(Flush::Full),
            ext::INVLPG_LOCAL | ext::INVLPG_MULTI | ext::INVLPG_ALL => {
                // Any address: INVLPG does nothing with a non-canonical one, and dropping one of
                // the shim's own translations only costs a walk.
                Ok(Flush::Page(GuestVa(op.arg1)))
            }
            // Two errors for one reason, a domain without devices: so says Xen 4.17.
            ext::FLUSH_CACHE => Err(Errno::EACCES),
            ext::FLUSH_CACHE_GLOBAL => Err(Errno::EINVAL),
            ext::SET_LDT => {
                self.set_ldt(v, GuestVa(op.arg1), op.arg2)?;
                Ok(Flush::None)
            }
            ext::CLEAR_PAGE => mm!(self).clear_page(frame).map(|()| Flush::None),
            ext::COPY_PAGE => mm!(self)
                .copy_page(frame, Mfn(op.arg2))
                .map(|()| Flush::None),
            ext::MARK_SUPER | ext::UNMARK_SUPER => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::ENOSYS),
        }
    }

    fn pin(&mut self, level: Level, frame: Mfn) -> Result<Flush, Errno> {
        mm!(self).pin(level, frame)
    }

    /// Makes `frame` the kernel's page table, and loads it.
    ///
    /// # Errors
    /// Those of [`Mm::new_baseptr`](crate::mm::Mm::new_baseptr).
    pub(crate) fn new_baseptr(&mut self, v: usize, frame: Mfn) -> Result<(), Errno> {
        let spaces = self.vcpus[v].spaces.as_mut().ok_or(Errno::EINVAL)?;
        // The flush that this asks for is the load of CR3 below.
        let _ = mm!(self).new_baseptr(spaces, frame)?;
        // Before the load, so that the CPU has no older entry of slot 256 to remember.
        self.show_m2p(v);
        // User mode runs on its own table, and loads the kernel's when it is left.
        if self.vcpus[v].in_kernel {
            self.m.load_page_table(frame);
            self.ledger.note_full_flush();
        }
        Ok(())
    }

    /// Shows the machine-to-physical table where vCPU `v` may see it now.
    pub(super) fn show_m2p(&mut self, v: usize) {
        let hidden = self.assist.contains(Assist::M2P_STRICT);
        if let Some(spaces) = &self.vcpus[v].spaces {
            mm!(self).show_m2p(spaces, hidden);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{List, PREEMPTED};
    use xen_abi::mmu::MmuUpdate;

    #[test]
    fn a_list_is_not_interrupted_where_no_address_says_what_is_left() {
        let list = List {
            at: u64::MAX - 31,
            count: 3,
            done: 0,
            before: 0,
            args: [0; 5],
        };
        let rest = list.rest::<MmuUpdate>(1);
        assert_eq!(rest, Some([u64::MAX - 15, 2 | PREEMPTED, 0, 0, 0]));
        assert_eq!(list.rest::<MmuUpdate>(2), None);
    }
}
