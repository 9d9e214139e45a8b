//! `multicall`: a batch of hypercalls, each with a result of its own.

use core::mem::offset_of;

use xen_abi::hypercall as nr;
use xen_abi::{Errno, GuestVa};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{Answer, Args, element};
use crate::cpu::deliver::{self, Doomed};
use crate::cpu::{Machine, Regs};
use crate::guest::Guest;
use crate::host::Host;

/// `struct multicall_entry`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Entry {
    op: u64,
    result: u64,
    args: [u64; 6],
}

/// Entries copied at a time.
const BATCH: usize = 8;

impl<M: Machine, H: Host> Guest<M, H> {
    /// Carries out a batch and returns the answer, or leaves a continuation; `None` when the batch
    /// ended in an `iret`, which has loaded the registers itself and ends the batch (XSA-213).
    pub(super) fn multicall(
        &mut self,
        v: usize,
        regs: &mut Regs,
        [list, count, rest @ ..]: Args,
    ) -> Result<Option<Answer>, Doomed> {
        // The interface has 32 bits for the count, and kernels may leave anything above.
        let count = count & 0xffff_ffff;
        let mut entries = [Entry::new_zeroed(); BATCH];
        let mut done = 0;
        while done < count {
            let batch = (count - done).min(BATCH as u64) as usize;
            let batch = &mut entries[..batch];
            // Entries before stay done, with their results: a batch has no way back.
            let Ok(start) = element::<Entry>(list, done) else {
                return Ok(Some(Err(Errno::EFAULT)));
            };
            if self
                .m
                .read_guest(GuestVa(start), batch.as_mut_bytes())
                .is_err()
            {
                return Ok(Some(Err(Errno::EFAULT)));
            }
            for (index, entry) in batch.iter().enumerate() {
                // Cannot wrap: the whole batch has just been read from there.
                let here = start + (index * size_of::<Entry>()) as u64;
                let done = done + index as u64;
                let continuation = [here, count - done, rest[0], rest[1], rest[2]];
                // Before the first entry all is settled, since the guest ran, and one entry is
                // always done. A release that an entry has left comes before the next, which may be
                // about the same tables.
                if done > 0 && (self.finish_releases().is_err() || self.should_stop()) {
                    self.continuation = Some(continuation);
                    return Ok(Some(Ok(0)));
                }
                let [a, b, c, d, e, _] = entry.args;
                // Each by itself: the batch alone would say nothing in a report of a crash.
                self.recent.note(entry.op, a, b);
                let result = match entry.op {
                    nr::IRET => {
                        let vcpu = &mut self.vcpus[v];
                        deliver::iret(&mut self.m, vcpu, self.assist, regs)?;
                        return Ok(None);
                    }
                    // Nested ones are refused as by `do_multicall`: the depth would be the guest's
                    // choice, and the shim's stack is not.
                    nr::MULTICALL => Err(Errno::EINVAL),
                    op => self.dispatch(v, op, [a, b, c, d, e]),
                };
                let at = |field| GuestVa(here + field as u64);
                // Asked for before the result: an interrupted entry has none yet.
                if let Some(left) = self.continuation.take() {
                    // What is left of the entry goes into the guest's own copy of it, and the batch
                    // begins again there. The guest can change it meanwhile, to no more than it
                    // could have written itself.
                    let args = at(offset_of!(Entry, args));
                    if self.m.write_guest(args, left.as_bytes()).is_err() {
                        return Ok(Some(Err(Errno::EFAULT)));
                    }
                    self.continuation = Some(continuation);
                    return Ok(Some(Ok(0)));
                }
                let result = result.unwrap_or_else(Errno::to_rax);
                let at = at(offset_of!(Entry, result));
                // What the field holds already need not be written: mostly 0 over 0.
                if result != entry.result && self.m.write_guest(at, result.as_bytes()).is_err() {
                    return Ok(Some(Err(Errno::EFAULT)));
                }
            }
            done += batch.len() as u64;
        }
        Ok(Some(Ok(0)))
    }
}
