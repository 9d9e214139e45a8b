//! The way from a write fault of the guest's kernel to the page-table entry behind it.
//!
//! [`write_fault`] is all that a page-fault handler needs: it finds the table through the guest's
//! own mapping, decodes the store and carries it out with the memory manager's checks.

use xen_abi::mmu::Pte;
use xen_abi::{Errno, GuestVa, Mfn};

use super::address::{SegmentBases, string_source};
use super::ptstore::{Outcome, execute};
use super::{CodeSize, Insn, decode};
use crate::cpu::Regs;
use crate::mem::{Frames, GuestMemory};
use crate::mm::{FrameUse, Mm};

/// Handles a protection fault on a write by the guest's kernel, in 64-bit code, to `fault`.
///
/// `bytes` are the instruction's, `root` is the kernel's page table, `memory` is the guest's for
/// the source of `movs`.  Anything but a store to an L1 table that is mapped read-only there is
/// [`Outcome::NotHandled`].
pub fn write_fault<F: Frames + ?Sized>(
    bytes: &[u8],
    regs: &mut Regs,
    bases: SegmentBases,
    fault: u64,
    root: Mfn,
    mm: &mut Mm<'_, F>,
    memory: &(impl GuestMemory + ?Sized),
) -> Outcome<Errno> {
    // The walk comes first: most write faults are the guest's own copy-on-write, and end here.
    let Some(table) = table_behind(mm, root, fault) else {
        return Outcome::NotHandled;
    };
    let Ok(decoded) = decode(bytes, CodeSize::Bits64) else {
        return Outcome::NotHandled;
    };
    let Insn::Store(store) = decoded.insn else {
        return Outcome::NotHandled;
    };
    let mut source = [0; 8];
    // Read once, before the entry is looked at: what is checked and what is stored must be the same
    // value.
    if let Some(from) = string_source(&decoded, regs, bases) {
        let element = &mut source[..store.width.bytes().into()];
        if memory.read_guest(GuestVa(from), element).is_err() {
            return Outcome::NotHandled;
        }
    }
    let Some(mut entry) = mm.live_entry(table, (fault & 0xfff) as usize) else {
        return Outcome::NotHandled;
    };
    let source = u64::from_le_bytes(source);
    execute(&decoded, regs, bases, fault, source, &mut entry)
}

/// Returns the L1 table that an address is a read-only mapping of.
fn table_behind<F: Frames + ?Sized>(mm: &Mm<'_, F>, root: Mfn, fault: u64) -> Option<Mfn> {
    let mapping = mm.walk(root, GuestVa(fault))?;
    let frame = mapping.entry.frame();
    let read_only = mapping.entry.is_present() && !mapping.entry.has(Pte::RW);
    (read_only && mm.ledger.used_as(frame) == FrameUse::L1).then_some(frame)
}

#[cfg(test)]
mod tests {
    use xen_abi::mmu::{Level, Pte, XEN_SLOTS};
    use xen_abi::{Errno, GuestVa, Mfn};

    use super::super::address::SegmentBases;
    use super::super::ptstore::Outcome;
    use super::super::regs::After;
    use super::write_fault;
    use crate::cpu::Regs;
    use crate::mem::{BadAddress, Frames, GuestMemory};
    use crate::mm::{Ledger, Mm, ShimSlots, Tlb};
    use crate::testing::FakeFrames;

    const KERNEL: u64 = Pte::PRESENT | Pte::ACCESSED | Pte::DIRTY;
    /// L4, L3, L2 and L1 tables, a data page, and a frame of the shim's.
    const ROOT: Mfn = Mfn(4);
    const TABLE: Mfn = Mfn(7);
    const DATA: Mfn = Mfn(8);
    const SHIM: Mfn = Mfn(1);
    /// Where the guest maps the L1 table itself, and a data page, read-only.
    const TABLE_AT: u64 = 0x1000;
    const DATA_AT: u64 = 0x2000;

    struct NoFlush;

    impl Tlb for NoFlush {
        fn flush_everything(&self) {}
    }

    struct Source(u64);

    impl GuestMemory for Source {
        fn read_guest(&self, va: GuestVa, buf: &mut [u8]) -> Result<(), BadAddress> {
            if va != GuestVa(0x5000) {
                return Err(BadAddress);
            }
            buf.copy_from_slice(&self.0.to_le_bytes()[..buf.len()]);
            Ok(())
        }

        fn write_guest(&self, _: GuestVa, _: &[u8]) -> Result<(), BadAddress> {
            Err(BadAddress)
        }
    }

    fn pte(frame: Mfn, flags: u64) -> u64 {
        Pte::new(frame, flags).0
    }

    /// Runs an instruction that stores to `[rdi]`; returns the outcome, registers and the table.
    fn run(bytes: &[u8], target: u64, mut regs: Regs) -> (Outcome<Errno>, Regs, [u64; 4]) {
        let frames = FakeFrames::new(16);
        let mut ledger = Ledger::new(Mfn(16), &[(Mfn(0), 16)]).expect("small");
        for mfn in 4..16 {
            ledger.give_to_guest(Mfn(mfn)).expect("the shim's");
        }
        for table in 4..7 {
            frames.store64(
                Mfn(table),
                0,
                pte(Mfn(table + 1), KERNEL | Pte::RW | Pte::USER),
            );
        }
        frames.store64(TABLE, 8, pte(TABLE, KERNEL));
        frames.store64(TABLE, 16, pte(DATA, KERNEL));
        let slots = ShimSlots([0; XEN_SLOTS]);
        let mut mm = Mm {
            frames: &frames,
            ledger: &mut ledger,
            slots: &slots,
            tlb: &NoFlush,
        };
        assert!(mm.pin(Level::L4, ROOT).is_ok());
        regs.set_gpr(7, target);
        let source = Source(pte(Mfn(9), KERNEL));
        let bases = SegmentBases::default();
        let outcome = write_fault(bytes, &mut regs, bases, target, ROOT, &mut mm, &source);
        (
            outcome,
            regs,
            core::array::from_fn(|n| frames.load64(TABLE, 8 * n)),
        )
    }

    #[test]
    fn linux_takes_an_entry_by_xchg_and_puts_one_by_mov() {
        let regs = Regs::default();
        let before = pte(DATA, KERNEL | Pte::USER | Pte::GUEST_KERNEL);
        let (outcome, regs, table) = run(&[0x48, 0x87, 0x07], TABLE_AT + 16, regs);
        assert_eq!(outcome, Outcome::Done(After::Continue));
        assert_eq!((regs.gpr(0), regs.rip, table[2]), (before, 3, 0));

        let mut regs = Regs::default();
        regs.set_gpr(0, pte(Mfn(9), KERNEL));
        let (outcome, _, table) = run(&[0x48, 0x89, 0x07], TABLE_AT, regs);
        assert_eq!(outcome, Outcome::Done(After::Continue));
        assert_eq!(
            table[0],
            pte(Mfn(9), KERNEL | Pte::USER | Pte::GUEST_KERNEL)
        );
    }

    #[test]
    fn an_entry_can_be_copied_from_guest_memory() {
        let mut regs = Regs::default();
        regs.set_gpr(6, 0x5000);
        let (outcome, regs, table) = run(&[0x48, 0xa5], TABLE_AT + 24, regs);
        assert_eq!(outcome, Outcome::Done(After::Continue));
        assert_eq!(
            table[3],
            pte(Mfn(9), KERNEL | Pte::USER | Pte::GUEST_KERNEL)
        );
        assert_eq!((regs.gpr(6), regs.gpr(7)), (0x5008, TABLE_AT + 32));

        let (outcome, ..) = run(&[0x48, 0xa5], TABLE_AT + 24, Regs::default());
        assert_eq!(outcome, Outcome::NotHandled);
    }

    #[test]
    fn a_frame_of_the_shim_can_not_be_smuggled_in() {
        let mut regs = Regs::default();
        regs.set_gpr(0, pte(SHIM, KERNEL));
        let before = regs;
        let (outcome, mut after, table) = run(&[0x48, 0x87, 0x07], TABLE_AT, regs);
        assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        after.set_gpr(7, 0);
        assert_eq!((after, table[0]), (before, 0));
    }

    #[test]
    fn a_table_can_not_make_itself_writable_bit_by_bit() {
        // lock btsq $1, (%rdi): the RW bit of the table's own mapping.
        let bts = [0xf0, 0x48, 0x0f, 0xba, 0x2f, 0x01];
        let (outcome, _, table) = run(&bts, TABLE_AT + 8, Regs::default());
        assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        assert_eq!(table[1] & Pte::RW, 0);
    }

    #[test]
    fn read_only_data_is_the_guests_own_affair() {
        let (outcome, ..) = run(&[0x48, 0x89, 0x07], DATA_AT, Regs::default());
        assert_eq!(outcome, Outcome::NotHandled);
        let (outcome, ..) = run(&[0x48, 0x89, 0x07], 0x3000, Regs::default());
        assert_eq!(outcome, Outcome::NotHandled);
    }
}
