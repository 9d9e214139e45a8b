//! `grant_table_op`: copies the guest's argument structures, has the table act, copies them back.

use xen_abi::grant::{
    CopyOp, GetStatusFrames, GetVersion, MapGrantRef, QuerySize, SetVersion, SetupTable,
    SwapGrantRef, UnmapGrantRef, map_flags, op, status,
};
use xen_abi::mmu::{MmuUpdate, Pte, UvmFlags};
use xen_abi::{Errno, GuestVa, Mfn};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::stores_and_grants::{SharedPool, StoresAndGrants};
use crate::cpu::Machine;
use crate::host::Host;
use crate::hypercall::{element, read, write};
use crate::mm::{Flush, Ledger, Mm, ShimSlots};
use crate::points::Environment;
use crate::points::grant::{FrameHolds, Holds, OwnMapper};

/// Structures in one list: the count is a signed number in Xen.
const LONGEST: u64 = i32::MAX as u64;
/// Units of [work] that one of them is charged, with the flush or the copied page.
const OPERATION: u32 = 32;

/// What is left of a list.
type Rest = Option<(GuestVa, u64)>;

impl StoresAndGrants {
    /// Carries out `grant_table_op(command, args, count)` of vCPU `v`.
    pub fn grant_table_op<M: Machine, H: Host>(
        &mut self,
        env: &mut Environment<'_, M, H>,
        v: usize,
        command: u64,
        args: GuestVa,
        count: u64,
    ) -> Result<Rest, Errno> {
        // The count is an `unsigned int` that Xen compares as a signed one (`do_grant_table_op`).
        let count = count & 0xffff_ffff;
        if count > LONGEST {
            return Err(Errno::EINVAL);
        }
        let table = &mut self.grants;
        let root = env.vcpus[v].spaces.as_ref();
        let host = &*env.host;
        let wanted = || host.has_events();
        let mut mapper = Mapper {
            m: env.m,
            ledger: env.ledger,
            slots: env.slots,
            root: root.map(|spaces| spaces.kernel()).ok_or(Errno::EINVAL)?,
        };
        let m = env.m;
        match command {
            op::MAP_GRANT_REF => {
                return each(
                    m,
                    &mut mapper,
                    wanted,
                    args,
                    count,
                    |mapper, args: MapGrantRef| table.map_grant_ref(m, mapper, args),
                );
            }
            op::UNMAP_GRANT_REF => {
                return each(
                    m,
                    &mut mapper,
                    wanted,
                    args,
                    count,
                    |mapper, args: UnmapGrantRef| table.unmap_grant_ref(m, mapper, args),
                );
            }
            op::COPY => {
                return each(
                    m,
                    &mut mapper,
                    wanted,
                    args,
                    count,
                    |mapper, args: CopyOp| table.copy(m, mapper, args),
                );
            }
            op::SWAP_GRANT_REF => {
                return each(
                    m,
                    &mut mapper,
                    wanted,
                    args,
                    count,
                    |_, args: SwapGrantRef| table.swap_grant_ref(m, args),
                );
            }
            // These say in full what they are about and take no list.
            op::SETUP_TABLE | op::QUERY_SIZE | op::GET_STATUS_FRAMES if count != 1 => {
                return Err(Errno::EINVAL);
            }
            op::QUERY_SIZE => one(m, args, |args: QuerySize| Ok(table.query_size(args)))?,
            op::GET_STATUS_FRAMES => one(m, args, |args: GetStatusFrames| {
                Ok(table.get_status_frames(args))
            })?,
            op::GET_VERSION => one(m, args, |args: GetVersion| table.get_version(args))?,
            op::SET_VERSION => {
                let wanted: SetVersion = read(m, args.0)?;
                let (answer, result) = table.set_version(wanted);
                write(m, args.0, &answer)?;
                result?;
            }
            op::SETUP_TABLE => {
                let wanted: SetupTable = read(m, args.0)?;
                let mut pool = SharedPool {
                    pool: &mut *self.pool,
                    ledger: env.ledger,
                };
                let (mut answer, frames) = table.setup_table(wanted, &mut pool);
                for (index, frame) in frames.iter().enumerate() {
                    let written = element::<u64>(answer.frame_list, index as u64)
                        .and_then(|at| write(m, at, &frame.0));
                    if written.is_err() {
                        answer.status = status::BAD_VIRT_ADDR;
                        break;
                    }
                }
                write(m, args.0, &answer)?;
            }
            op::CACHE_FLUSH => return Err(Errno::EOPNOTSUPP),
            _ => return Err(Errno::ENOSYS),
        }
        Ok(None)
    }
}

/// Replaces one structure by its answer.
fn one<T>(
    m: &impl Machine,
    args: GuestVa,
    act: impl FnOnce(T) -> Result<T, Errno>,
) -> Result<(), Errno>
where
    T: FromBytes + IntoBytes + Immutable + KnownLayout,
{
    write(m, args.0, &act(read(m, args.0)?)?)
}

/// Replaces each structure of a list by its answer, until others are `wanted` to have their turn.
fn each<T, M>(
    m: &M,
    mapper: &mut Mapper<'_, M>,
    wanted: impl Fn() -> bool,
    args: GuestVa,
    count: u64,
    mut act: impl FnMut(&mut Mapper<'_, M>, T) -> T,
) -> Result<Rest, Errno>
where
    T: FromBytes + IntoBytes + Immutable + KnownLayout,
    M: Machine,
{
    for index in 0..count {
        let at = element::<T>(args.0, index)?;
        // At least one each time, or a host that always has events would let none be done.
        if index > 0 {
            mapper.ledger.work().note_look();
            if wanted() {
                return Ok(Some((GuestVa(at), count - index)));
            }
        }
        mapper.ledger.work().spend(OPERATION);
        // An answer that can not be written fails the call. As under Xen, what was done stays done.
        write(m, at, &act(mapper, read(m, at)?))?;
    }
    Ok(None)
}

/// Maps frames of the guest in its own page tables, as the guest itself could.
struct Mapper<'a, M: Machine> {
    m: &'a M,
    ledger: &'a mut Ledger,
    slots: &'a ShimSlots,
    root: Mfn,
}

impl<M: Machine> Mapper<'_, M> {
    fn mm(&mut self) -> Mm<'_, M> {
        Mm {
            frames: self.m,
            ledger: self.ledger,
            slots: self.slots,
            tlb: self.m,
        }
    }

    fn holds(&mut self) -> Holds<'_> {
        Holds {
            ledger: self.ledger,
            tlb: self.m,
        }
    }

    /// Sets the L1 entry at, or for, `host_addr`, and forgets its old translation.
    fn set(&mut self, host_addr: u64, flags: u32, pte: Pte) -> Result<(), i16> {
        let m = self.m;
        let result = if flags & map_flags::CONTAINS_PTE != 0 {
            let request = MmuUpdate {
                ptr: host_addr,
                val: pte.0,
            };
            self.mm().mmu_update(request, m)
        } else {
            let root = self.root;
            let flags = UvmFlags::INVLPG;
            self.mm()
                .update_va_mapping(root, GuestVa(host_addr), pte, flags)
        };
        match result.map_err(|_| status::GENERAL_ERROR)? {
            Flush::Page(va) => m.flush_page(va.0),
            // Which addresses an entry translates is not known.
            Flush::None | Flush::Full => {
                m.flush_everything();
                self.ledger.note_full_flush();
            }
        }
        Ok(())
    }

    /// What the entry at, or for, `host_addr` holds.
    fn entry(&mut self, host_addr: u64, flags: u32) -> Option<Pte> {
        if flags & map_flags::CONTAINS_PTE == 0 {
            let root = self.root;
            return Some(self.mm().walk(root, GuestVa(host_addr))?.entry);
        }
        // No entry begins there.  Xen refuses it too (`create_grant_pte_mapping`), and what is
        // rounded would be an entry that the guest did not name.
        if !host_addr.is_multiple_of(8) {
            return None;
        }
        let table = Mfn::of(host_addr);
        let is_table = self.ledger.used_as(table) == crate::mm::FrameUse::L1;
        is_table.then(|| Pte(self.m.load64(table, host_addr as usize & 0xff8)))
    }
}

impl<M: Machine> FrameHolds for Mapper<'_, M> {
    fn hold(&mut self, frame: Mfn, write: bool) -> bool {
        self.holds().hold(frame, write)
    }

    fn release(&mut self, frame: Mfn, write: bool) {
        self.holds().release(frame, write);
    }
}

impl<M: Machine> OwnMapper for Mapper<'_, M> {
    fn map(&mut self, frame: Mfn, host_addr: u64, flags: u32) -> Result<(), i16> {
        // An entry outside an L1 table is none, whatever else may be stored there.
        self.entry(host_addr, flags).ok_or(status::GENERAL_ERROR)?;
        let mut bits = Pte::PRESENT | Pte::USER | Pte::ACCESSED | Pte::DIRTY;
        if flags & map_flags::READONLY == 0 {
            bits |= Pte::RW;
        }
        self.set(host_addr, flags, Pte(frame.addr() | bits))
    }

    fn unmap(&mut self, frame: Mfn, host_addr: u64, flags: u32) -> Result<(), i16> {
        // The guest may have changed the entry by itself, and what it has put there is not ours to
        // clear.
        let entry = self.entry(host_addr, flags);
        if !entry.is_some_and(|entry| entry.is_present() && entry.frame() == frame) {
            return Err(status::GENERAL_ERROR);
        }
        self.set(host_addr, flags, Pte(0))
    }
}
