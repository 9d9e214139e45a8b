//! Random numbers, and words out of them that are interesting to somebody.

use xen_abi::Mfn;
use xen_abi::mmu::{Level, Pte};

use super::{MARK, Random};
use crate::memory::{self, GDT, RO, RW, SCRATCH, VICTIMS};

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        // xorshift64*
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 33) % end
    }

    pub(super) fn of<T: Copy>(&mut self, list: &[T]) -> T {
        let index = self.below(list.len() as u64) as usize;
        list[index]
    }

    /// An address in the hypervisor's range.
    pub(super) fn hypervisor(&mut self) -> u64 {
        let start = self.of(&[
            0xffff_8100_0000_0000u64,
            0xffff_8200_0000_0000,
            0xffff_82d0_4000_0000,
            0xffff_8300_0000_0000,
            0xffff_87ff_ffe0_0000,
        ]);
        (start + (self.below(512) << 12)) | MARK
    }

    pub(super) fn non_canonical(&mut self) -> u64 {
        let low = self.next() & 0xffff_f000;
        self.of(&[0x8000_0000_0000u64, 0xffff_7fff_0000_0000, 1 << 62]) + low
    }

    /// An address that a call may write to without doing this kernel harm.
    pub(super) fn pointer(&mut self) -> u64 {
        match self.below(16) {
            0..=9 => SCRATCH.va(0) + self.below(2000) * 8,
            10 => SCRATCH.va(3) + 4096 - self.below(64),
            11 => self.hypervisor(),
            12 => self.non_canonical(),
            13 => memory::text() + self.below(4096),
            14 => self.of(&[0, 8, 0x1000, !0, !7, 0xffff_8000_0000_0000]),
            _ => memory::va_of(memory::root()) + self.below(512) * 8,
        }
    }

    /// `to`, or the same far behind this kernel, where nothing is mapped, if it is in the text: a jump
    /// into the middle of an instruction may find a loop, or change registers as if the shim had.
    pub(super) fn outside(to: u64) -> u64 {
        if memory::is_text(to) {
            to + 0x4000_0000
        } else {
            to
        }
    }

    /// An address for a breakpoint: not in the text, where a handler could never get past it.
    pub(super) fn watched(&mut self) -> u64 {
        match self.below(6) {
            0 => self.hypervisor(),
            1 => self.non_canonical(),
            2 => memory::stack_middle() - self.below(32) * 8,
            3 => VICTIMS.va(self.below(31) as usize),
            _ => SCRATCH.va(0) + self.below(64) * 8,
        }
    }

    /// Any frame number; of the kernel's own frames only victims and tables.
    pub(super) fn frame(&mut self) -> Mfn {
        match self.below(16) {
            0..=7 => VICTIMS.mfn(self.below(31) as usize),
            8 => Mfn(self.foreign + self.below(64)),
            9 => memory::root(),
            10 => memory::table(Level::L1, SCRATCH.va(0)).unwrap_or(Mfn(0)),
            11 => memory::table(Level::L2, SCRATCH.va(0)).unwrap_or(Mfn(0)),
            12 => GDT.mfn(0),
            13 => Mfn(self.of(&[0, 1, 0xfe000, 0xfe100, 0xfeffc, 0xfefff, 0xfee00])),
            14 => Mfn(self.next() >> self.below(64)),
            _ => memory::table_entry(memory::root(), 256 + self.below(16) as usize).frame(),
        }
    }

    pub(super) fn flags(&mut self) -> u64 {
        match self.below(8) {
            0..=2 => RW,
            3 | 4 => RO,
            5 => self.next() & 0xfff,
            6 => RW | self.next() & 0x7ff0_0000_0000_0000,
            _ => RW & !Pte::USER | self.next() & (Pte::NX | Pte::GLOBAL | Pte::AVAIL),
        }
    }

    pub(super) fn pte(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => self.next() & !Pte::PRESENT,
            _ => {
                let flags = self.flags();
                self.frame().addr() | flags
            }
        }
    }

    /// Anything.
    pub(super) fn word(&mut self) -> u64 {
        match self.below(12) {
            0..=3 => self.below(64),
            4 => 1 << self.below(64),
            5 => (1u64 << self.below(64)).wrapping_sub(1),
            6 => self.pointer(),
            7 => self.frame().0,
            8 => self.frame().addr(),
            9 => self.of(&[0x7ff0u64, 0x7ff1, 0x7ff2, 0x7ff4, 0x7fff, 0, 1]),
            10 => self.hypervisor(),
            _ => self.next(),
        }
    }
}
