//! What a kernel does without a hypercall: stores to its tables, returns, and the balloon's giving and taking.

use xen_abi::memory::op as mem;
use xen_abi::mmu::Level;
use xen_abi::{GuestVa, Mfn, Pfn, hypercall as nr};

use super::{BALLOON, Random};
use crate::call;
use crate::leak::first_word;
use crate::memory::{self, RO, RW, SCRATCH};
use crate::trap::{self, End, Regs, attempt, observed};
use crate::verdict::Verdicts;

impl Random {
    /// A store to a live table: of the lowest level to an entry that is free, of the others to any.
    pub(super) fn native_store(&mut self, verdicts: &mut Verdicts) {
        const STORES: [&[u8]; 14] = [
            &[0x48, 0x89, 0x07],
            &[0x89, 0x07],
            &[0x66, 0x89, 0x07],
            &[0x88, 0x07],
            &[0x48, 0x87, 0x07],
            &[0xf0, 0x48, 0x0f, 0xb1, 0x0f],
            &[0xf0, 0x48, 0x21, 0x07],
            &[0xf0, 0x48, 0x09, 0x07],
            &[0xf0, 0x48, 0x31, 0x07],
            &[0xf0, 0x48, 0x0f, 0xc1, 0x07],
            &[0xf0, 0x48, 0x0f, 0xb3, 0x07],
            &[0xf0, 0x48, 0x0f, 0xab, 0x07],
            &[0x48, 0xab],
            &[0xf0, 0x48, 0xff, 0x07],
        ];
        let window = memory::window(4 + self.below(4) as usize);
        let level = self.of(&[
            Level::L1,
            Level::L1,
            Level::L1,
            Level::L2,
            Level::L3,
            Level::L4,
        ]);
        let table = memory::table(level, window).unwrap_or(Mfn(0));
        let index = if level == Level::L1 {
            Level::L1.index(GuestVa(window)) as u64
        } else {
            self.below(512)
        };
        let insn = self.of(&STORES);
        let mut regs = Regs::marked();
        regs.rdi = memory::va_of(table) + index * 8;
        let is_bit = matches!(insn, [0xf0, 0x48, 0x0f, 0xb3 | 0xab, ..]);
        regs.rax = if is_bit { self.below(64) } else { self.pte() };
        regs.rcx = self.pte();
        let name = insn
            .iter()
            .fold(0, |name, &byte| name << 8 | u64::from(byte));
        self.remember("store", [name, regs.rdi, regs.rax, regs.rcx, 0, 0, 0, 0]);
        let end = attempt(insn, &mut regs);
        self.traps += u64::from(end != End::Done);
        verdicts.quietly(
            format_args!("random: a store to a table of {level:?} went through"),
            level == Level::L1 || end != End::Done,
        );
    }

    /// `iret` with a frame that is partly wild.
    pub(super) fn return_somewhere(&mut self) {
        trap::repair_callbacks();
        let rip = match self.below(4) {
            0 => Self::outside(self.pointer()),
            _ => trap::done_address(),
        };
        // Without a user page table a return to user mode is this kernel's own end.
        let cs = self.of(&[
            0xe030u64, 0xe008, 0xe010, 0, 8, 0x10, 0xe028, 0xe038, 0xfff8,
        ]) & !3;
        let ss = self.of(&[0xe02bu64, 0, 0xe010, 0xe033, 8, 0xffff]);
        let rflags = self.next() & self.of(&[0, 0x200, 0x3fffff, !0]);
        let flags = self.of(&[0u64, 0x100, !0]);
        let (rax, r11, rcx) = (self.word(), self.word(), self.word());
        let frame = [
            rax,
            r11,
            rcx,
            flags,
            rip,
            cs,
            rflags,
            memory::stack_middle(),
            ss,
        ];
        for (n, value) in frame.into_iter().enumerate() {
            memory::set_stack(n, value);
        }
        let mut regs = Regs::marked();
        regs.rax = nr::IRET;
        self.remember("iret", [rax, rcx, flags, rip, cs, rflags, ss, 0]);
        self.traps += u64::from(observed(&mut regs) != End::Done);
    }

    /// Nonsense in the ring that is shared with the store.
    pub(super) fn scribble(&mut self) {
        for _ in 0..8 {
            let offset = self.of(&[0, 16, 2048, 2052, 2056, 2060, 2064, 2068]) + self.below(8) * 4;
            let value = match self.below(3) {
                0 => self.below(2048),
                1 => self.below(24),
                _ => self.next(),
            } as u32;
            // SAFETY: inside the ring's page, which is mapped for good; its other end reads it
            // as it comes.
            unsafe { ((self.store_ring + offset) as *mut u32).write_volatile(value) };
        }
        let port = self.store_port;
        call::hypercall(nr::EVENT_CHANNEL_OP, [4, &raw const port as u64, 0, 0, 0]);
    }

    /// Some frames out and in again: what comes must be clear.
    pub(super) fn balloon(&mut self, verdicts: &mut Verdicts) {
        let first = memory::nr_pages() - BALLOON;
        let count = 1 + self.below(16);
        let window = memory::window(3);
        for n in 0..count {
            let frame = memory::mfn(Pfn(first + n));
            memory::map(window, frame, RW);
            // SAFETY: a frame of this kernel's, mapped above.
            unsafe { (window as *mut u64).write_volatile(!0) };
            memory::map(window, Mfn(0), 0);
            SCRATCH.set(512 + n as usize, frame.0);
        }
        let args = |list: u64| {
            SCRATCH.set(0, list);
            SCRATCH.set(1, count);
            SCRATCH.set(2, 0);
            SCRATCH.set(3, 0x7ff0);
        };
        args(SCRATCH.va(1));
        self.remember("balloon", [count, 0, 0, 0, 0, 0, 0, 0]);
        let out = call::hypercall(
            nr::MEMORY_OP,
            [mem::DECREASE_RESERVATION, SCRATCH.va(0), 0, 0, 0],
        );
        (0..count).for_each(|n| SCRATCH.set(512 + n as usize, first + n));
        let back = call::hypercall(
            nr::MEMORY_OP,
            [mem::POPULATE_PHYSMAP, SCRATCH.va(0), 0, 0, 0],
        );
        verdicts.quietly(
            format_args!("random: {out} of {count} frames out, {back} back"),
            out == count && back == count,
        );
        for n in 0..back.min(count) {
            let frame = Mfn(SCRATCH.get(512 + n as usize));
            memory::set_mfn(Pfn(first + n), frame);
            let mapped = memory::map(window, frame, RO) == 0;
            verdicts.quietly(
                format_args!("random: frame {frame:?} came back unclear"),
                mapped && first_word(window, 0).is_none(),
            );
            memory::map(window, Mfn(0), 0);
        }
    }
}
