//! What `iced-x86` makes of an instruction, in the emulator's terms.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::super::super::address::SegmentBases;
use super::super::super::insn::{
    Alu, BitOp, Gpr, Insn, IoPort, Refused, Source, StoreOp, Strings, Unary, Width,
};
use super::super::CodeSize;
use crate::cpu::Regs;

pub(super) const RIP: u64 = 0xffff_ffff_8123_4560;
pub(super) const BASES: SegmentBases = SegmentBases {
    fs: 0x7f00_0000_1000,
    gs: 0xffff_8880_0000_0000,
};

pub(super) fn registers() -> Regs {
    let gprs = core::array::from_fn(|n| (n as u64 + 1).wrapping_mul(0x0123_4567_89ab_cdef));
    let regs = Regs {
        rip: RIP,
        rflags: 2,
        ..Regs::default()
    };
    regs.with_gprs(gprs)
}

pub(super) fn iced(bytes: &[u8], size: CodeSize) -> Instruction {
    let bits = if size == CodeSize::Bits64 { 64 } else { 32 };
    Decoder::with_ip(bits, bytes, RIP, DecoderOptions::NONE).decode()
}

/// The linear address of a memory operand according to the other decoder.
pub(super) fn address(of: &Instruction, operand: u32) -> u64 {
    let regs = registers();
    of.virtual_address(operand, 0, |register, _, _| {
        Some(match register {
            Register::FS => BASES.fs,
            Register::GS => BASES.gs,
            _ if register.is_segment_register() => 0,
            _ if register.size() == 4 => regs.gprs()[register.number()] & 0xffff_ffff,
            _ => regs.gprs()[register.number()],
        })
    })
    .expect("a memory operand")
}

pub(super) fn width(bytes: usize) -> Width {
    match bytes {
        1 => Width::W8,
        2 => Width::W16,
        4 => Width::W32,
        8 => Width::W64,
        _ => panic!("{bytes} bytes wide"),
    }
}

fn gpr(register: Register) -> Gpr {
    let high = matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    );
    Gpr {
        n: register.full_register().number() as u8,
        high,
    }
}

fn source(of: &Instruction, operand: u32) -> Source {
    match of.op_kind(operand) {
        OpKind::Register => Source::Reg(gpr(of.op_register(operand))),
        OpKind::Immediate8 => Source::Imm(of.immediate8() as i8 as u64),
        OpKind::Immediate16 => Source::Imm(of.immediate16() as i16 as u64),
        OpKind::Immediate32 => Source::Imm(of.immediate32() as i32 as u64),
        _ => Source::Imm(of.immediate(operand)),
    }
}

fn register(of: &Instruction, operand: u32) -> u8 {
    of.op_register(operand).number() as u8
}

fn strings(of: &Instruction) -> Strings {
    let addr32 = (0..2).any(|n| {
        matches!(
            of.op_kind(n),
            OpKind::MemoryESEDI | OpKind::MemorySegESI | OpKind::MemorySegEDI
        )
    });
    Strings {
        width: width(of.memory_size().size()),
        rep: of.has_rep_prefix() || of.has_repne_prefix(),
        addr32,
        segment: None,
    }
}

/// The store, apart from its address, that the other decoder sees.
pub(super) fn store_op(of: &Instruction) -> Option<StoreOp> {
    let reg = || gpr(of.op_register(1));
    let alu = |op| Some(StoreOp::Alu(op, source(of, 1)));
    match of.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => Some(StoreOp::Mov(source(of, 1))),
        // The memory operand comes second in one spelling.
        Mnemonic::Xchg => Some(StoreOp::Xchg(reg())),
        Mnemonic::Cmpxchg => Some(StoreOp::Cmpxchg(reg())),
        Mnemonic::Xadd => Some(StoreOp::Xadd(reg())),
        Mnemonic::Add => alu(Alu::Add),
        Mnemonic::Or => alu(Alu::Or),
        Mnemonic::Adc => alu(Alu::Adc),
        Mnemonic::Sbb => alu(Alu::Sbb),
        Mnemonic::And => alu(Alu::And),
        Mnemonic::Sub => alu(Alu::Sub),
        Mnemonic::Xor => alu(Alu::Xor),
        Mnemonic::Inc => Some(StoreOp::Unary(Unary::Inc)),
        Mnemonic::Dec => Some(StoreOp::Unary(Unary::Dec)),
        Mnemonic::Not => Some(StoreOp::Unary(Unary::Not)),
        Mnemonic::Neg => Some(StoreOp::Unary(Unary::Neg)),
        Mnemonic::Bts => Some(StoreOp::Bit(BitOp::Set, source(of, 1))),
        Mnemonic::Btr => Some(StoreOp::Bit(BitOp::Reset, source(of, 1))),
        Mnemonic::Btc => Some(StoreOp::Bit(BitOp::Complement, source(of, 1))),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            Some(StoreOp::Stos(strings(of)))
        }
        // One mnemonic is shared with SSE.
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq
            if of.op_kind(1) != OpKind::Register =>
        {
            Some(StoreOp::Movs(strings(of)))
        }
        _ => None,
    }
}

fn refused(mnemonic: Mnemonic) -> Option<Refused> {
    Some(match mnemonic {
        Mnemonic::Hlt => Refused::Hlt,
        Mnemonic::Invd => Refused::Invd,
        Mnemonic::Invlpg => Refused::Invlpg,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => Refused::Iret,
        Mnemonic::Lgdt => Refused::Lgdt,
        Mnemonic::Lidt => Refused::Lidt,
        Mnemonic::Lldt => Refused::Lldt,
        Mnemonic::Lmsw => Refused::Lmsw,
        Mnemonic::Ltr => Refused::Ltr,
        Mnemonic::Monitor => Refused::Monitor,
        Mnemonic::Mwait => Refused::Mwait,
        Mnemonic::Rdpmc => Refused::Rdpmc,
        Mnemonic::Swapgs => Refused::Swapgs,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => Refused::Sysexit,
        Mnemonic::Sysret | Mnemonic::Sysretq => Refused::Sysret,
        Mnemonic::Vmcall => Refused::Vmcall,
        Mnemonic::Vmmcall => Refused::Vmmcall,
        _ => return None,
    })
}

/// Everything but stores, as the other decoder sees it.
pub(super) fn other_insn(of: &Instruction) -> Option<Insn> {
    let port = |n| match of.op_kind(n) {
        OpKind::Immediate8 => IoPort::Imm(of.immediate8()),
        _ => IoPort::Dx,
    };
    let size = |n| width(of.op_register(n).size());
    let special = |n: u32| register(of, n);
    let from = (special(1), special(0));
    let control =
        |n| matches!(of.op_register(n), r if (Register::CR0..=Register::CR15).contains(&r));
    let debug = |n| matches!(of.op_register(n), r if (Register::DR0..=Register::DR15).contains(&r));
    Some(match of.mnemonic() {
        Mnemonic::In => Insn::In(size(0), port(1)),
        Mnemonic::Out => Insn::Out(size(1), port(0)),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Insn::Ins(strings(of)),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => Insn::Outs(strings(of)),
        Mnemonic::Cli => Insn::Cli,
        Mnemonic::Sti => Insn::Sti,
        Mnemonic::Clts => Insn::Clts,
        Mnemonic::Mov if control(1) => Insn::ReadCr {
            cr: from.0,
            gpr: from.1,
        },
        Mnemonic::Mov if control(0) => Insn::WriteCr {
            cr: from.1,
            gpr: from.0,
        },
        Mnemonic::Mov if debug(1) => Insn::ReadDr {
            dr: from.0,
            gpr: from.1,
        },
        Mnemonic::Mov if debug(0) => Insn::WriteDr {
            dr: from.1,
            gpr: from.0,
        },
        Mnemonic::Rdmsr => Insn::Rdmsr,
        Mnemonic::Wrmsr => Insn::Wrmsr,
        Mnemonic::Cpuid => Insn::Cpuid,
        Mnemonic::Rdtsc => Insn::Rdtsc,
        Mnemonic::Rdtscp => Insn::Rdtscp,
        Mnemonic::Xsetbv => Insn::Xsetbv,
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Insn::Wbinvd,
        Mnemonic::Int => Insn::Int(of.immediate8()),
        mnemonic => Insn::Refused(refused(mnemonic)?),
    })
}
