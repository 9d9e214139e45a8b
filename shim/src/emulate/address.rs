//! Effective addresses of decoded operands.

use super::insn::{Base, BitOp, Insn, Mem, Segment, Source, Store, StoreOp};
use super::regs::{RDI, RSI, read};
use super::{Decoded, Width};
use crate::cpu::Regs;

/// The segment bases that an address may be relative to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentBases {
    /// Base of `fs`.
    pub fs: u64,
    /// Base of `gs` as the interrupted mode sees it.
    pub gs: u64,
}

impl SegmentBases {
    /// Returns what a segment override adds to an address.
    pub const fn of(self, segment: Option<Segment>) -> u64 {
        match segment {
            None => 0,
            Some(Segment::Fs) => self.fs,
            Some(Segment::Gs) => self.gs,
        }
    }
}

/// Computes the linear address of an operand of an instruction of `len` bytes at `rip`.
pub fn effective(mem: &Mem, len: u8, regs: &Regs, bases: SegmentBases) -> u64 {
    let base = match mem.base {
        Base::None => 0,
        Base::Gpr(n) => regs.gpr(n),
        Base::NextRip => regs.rip.wrapping_add(len.into()),
    };
    let index = mem.index.map_or(0, |(n, scale)| regs.gpr(n) << scale);
    // Addresses wrap around, as on the CPU. A 67 prefix cuts the offset and not the base of the
    // segment, which is added afterwards.
    let offset = base.wrapping_add(index).wrapping_add(mem.disp);
    bases.of(mem.segment).wrapping_add(if mem.addr32 {
        offset & 0xffff_ffff
    } else {
        offset
    })
}

/// Returns the linear address that a store writes to, or `None` if it is no store.
///
/// A bit instruction with its index in a register may write far from its operand.
pub fn store_target(decoded: &Decoded, regs: &Regs, bases: SegmentBases) -> Option<u64> {
    let Insn::Store(store) = decoded.insn else {
        return None;
    };
    let mut mem = store.mem;
    if let StoreOp::Bit(BitOp::Set | BitOp::Reset | BitOp::Complement, Source::Reg(reg)) = store.op
    {
        mem.disp = mem
            .disp
            .wrapping_add(bit_displacement(&store, read(regs, reg, store.width)));
    }
    Some(effective(&mem, decoded.len, regs, bases))
}

/// Returns how far from the operand, in bytes, the word with bit `index` lies.
fn bit_displacement(store: &Store, index: u64) -> u64 {
    let signed = match store.width {
        Width::W8 => index as i8 as i64,
        Width::W16 => index as i16 as i64,
        Width::W32 => index as i32 as i64,
        Width::W64 => index as i64,
    };
    // An arithmetic shift: index -1 is the last bit of the word before the operand.
    let words = signed >> store.width.bits().trailing_zeros();
    (words as u64).wrapping_mul(store.width.bytes().into())
}

/// Returns the linear address that `movs` and `outs` read from, or `None` for all others.
pub fn string_source(decoded: &Decoded, regs: &Regs, bases: SegmentBases) -> Option<u64> {
    let strings = match decoded.insn {
        Insn::Outs(strings) => strings,
        Insn::Store(Store {
            op: StoreOp::Movs(strings),
            ..
        }) => strings,
        _ => return None,
    };
    Some(
        bases
            .of(strings.segment)
            .wrapping_add(string_offset(regs, RSI, strings.addr32)),
    )
}

/// Returns the linear address that `ins` writes to.
pub fn ins_target(regs: &Regs, addr32: bool) -> u64 {
    string_offset(regs, RDI, addr32)
}

fn string_offset(regs: &Regs, n: u8, addr32: bool) -> u64 {
    if addr32 {
        regs.gpr(n) & 0xffff_ffff
    } else {
        regs.gpr(n)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CodeSize, decode};
    use super::{SegmentBases, store_target, string_source};
    use crate::cpu::Regs;

    fn target(bytes: &[u8], regs: &Regs) -> u64 {
        let bases = SegmentBases {
            fs: 0x1_0000_0000,
            gs: 0x2_0000_0000,
        };
        let decoded = decode(bytes, CodeSize::Bits64).expect("a store");
        store_target(&decoded, regs, bases).expect("a store")
    }

    #[test]
    fn operands_resolve_to_linear_addresses() {
        let regs = Regs {
            rip: 0x40_0000,
            ..Regs::default()
        };
        let regs = regs.with_gprs(core::array::from_fn(|n| 0x1000 * (n as u64 + 1)));
        // mov %rax, 0x10(%rip): relative to the end of the instruction.
        assert_eq!(target(&[0x48, 0x89, 0x05, 0x10, 0, 0, 0], &regs), 0x40_0017);
        // movl $1, 0x10(%rip): the immediate counts as well.
        assert_eq!(
            target(&[0xc7, 0x05, 0x10, 0, 0, 0, 1, 0, 0, 0], &regs),
            0x40_001a
        );
        // mov %rax, -8(%r12,%r13,4)
        assert_eq!(
            target(&[0x4b, 0x89, 0x44, 0xac, 0xf8], &regs),
            0xd000 + 4 * 0xe000 - 8
        );
        // mov %rax, %gs:0x20
        assert_eq!(
            target(&[0x65, 0x48, 0x89, 0x04, 0x25, 0x20, 0, 0, 0], &regs),
            0x2_0000_0020
        );
        // mov %rax, %fs:-1(%ebx)
        assert_eq!(
            target(&[0x64, 0x67, 0x48, 0x89, 0x43, 0xff], &regs),
            0x1_0000_3fff
        );
    }

    #[test]
    fn a_register_bit_index_selects_a_distant_word() {
        let mut regs = Regs::default();
        regs.set_gpr(7, 0x1000);
        for (index, address) in [(3, 0x1000), (64, 0x1008), (u64::MAX, 0xff8)] {
            regs.set_gpr(0, index);
            assert_eq!(target(&[0xf0, 0x48, 0x0f, 0xab, 0x07], &regs), address);
        }
        regs.set_gpr(0, 0xffff_ffe0); // -32 in 32 bits
        assert_eq!(target(&[0x0f, 0xb3, 0x07], &regs), 0xffc);
    }

    #[test]
    fn movs_reads_from_rsi() {
        let mut regs = Regs::default();
        regs.set_gpr(6, 0xffff_ffff_0000_0040);
        let decoded = decode(&[0x48, 0xa5], CodeSize::Bits64).expect("movsq");
        let at = string_source(&decoded, &regs, SegmentBases::default());
        assert_eq!(at, Some(0xffff_ffff_0000_0040));
        let decoded = decode(&[0x67, 0x48, 0xa5], CodeSize::Bits64).expect("movsq");
        assert_eq!(
            string_source(&decoded, &regs, SegmentBases::default()),
            Some(0x40)
        );
    }
}
