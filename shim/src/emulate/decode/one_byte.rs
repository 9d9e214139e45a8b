//! The one-byte opcode map.

use super::super::insn::{
    Alu, Gpr, Insn, IoPort, Mem, Refused, Source, Store, StoreOp, Unary, Width,
};
use super::DecodeError;
use super::cursor::Cursor;

/// Decodes what follows a one-byte opcode.
pub(super) fn decode(cursor: &mut Cursor<'_>, opcode: u8) -> Result<Insn, DecodeError> {
    match opcode {
        // With bit 1 the register is the destination, with bit 2 the accumulator: neither stores.
        0x00..=0x3f if opcode & 6 == 0 => alu_register(cursor, opcode),
        0x80 | 0x81 | 0x83 => alu_immediate(cursor, opcode),
        0x86 | 0x87 => xchg(cursor, opcode),
        0xf6 | 0xf7 | 0xfe | 0xff => unary(cursor, opcode),
        _ => {
            // None of the others can be locked.
            cursor.no_lock()?;
            unlocked(cursor, opcode)
        }
    }
}

fn unlocked(cursor: &mut Cursor<'_>, opcode: u8) -> Result<Insn, DecodeError> {
    Ok(match opcode {
        0x6c | 0x6d => Insn::Ins(cursor.strings(cursor.port_width(opcode))),
        0x6e | 0x6f => Insn::Outs(cursor.strings(cursor.port_width(opcode))),
        0x88 | 0x89 => {
            cursor.only_64()?;
            let width = cursor.width(opcode);
            let modrm = cursor.modrm()?;
            let source = Source::Reg(cursor.gpr(modrm.reg, width));
            store(StoreOp::Mov(source), width, cursor.memory(modrm)?)
        }
        0xa2 | 0xa3 => {
            cursor.only_64()?;
            let width = cursor.width(opcode);
            let source = Source::Reg(Gpr { n: 0, high: false });
            store(StoreOp::Mov(source), width, cursor.absolute()?)
        }
        0xa4 | 0xa5 | 0xaa | 0xab => {
            cursor.only_64()?;
            let width = cursor.width(opcode);
            let strings = cursor.strings(width);
            let op = if opcode < 0xa8 {
                StoreOp::Movs(strings)
            } else {
                StoreOp::Stos(strings)
            };
            store(op, width, cursor.string_destination())
        }
        0xc6 | 0xc7 => {
            let width = cursor.width(opcode);
            let modrm = cursor.modrm()?;
            if modrm.extension() != 0 {
                return Err(DecodeError::Unknown);
            }
            let mem = cursor.memory(modrm)?;
            store(StoreOp::Mov(cursor.immediate(width)?), width, mem)
        }
        0xcd => Insn::Int(cursor.byte()?),
        0xcf => Insn::Refused(Refused::Iret),
        0xe4 | 0xe5 => Insn::In(cursor.port_width(opcode), IoPort::Imm(cursor.byte()?)),
        0xe6 | 0xe7 => Insn::Out(cursor.port_width(opcode), IoPort::Imm(cursor.byte()?)),
        0xec | 0xed => Insn::In(cursor.port_width(opcode), IoPort::Dx),
        0xee | 0xef => Insn::Out(cursor.port_width(opcode), IoPort::Dx),
        0xf4 => Insn::Refused(Refused::Hlt),
        0xfa => Insn::Cli,
        0xfb => Insn::Sti,
        _ => return Err(DecodeError::Unknown),
    })
}

/// Makes a store out of its parts.
pub(super) const fn store(op: StoreOp, width: Width, mem: Mem) -> Insn {
    Insn::Store(Store { op, width, mem })
}

/// Maps an opcode extension; comparison does not store.
const fn alu(extension: u8) -> Option<Alu> {
    Some(match extension {
        0 => Alu::Add,
        1 => Alu::Or,
        2 => Alu::Adc,
        3 => Alu::Sbb,
        4 => Alu::And,
        5 => Alu::Sub,
        6 => Alu::Xor,
        _ => return None,
    })
}

fn alu_register(cursor: &mut Cursor<'_>, opcode: u8) -> Result<Insn, DecodeError> {
    cursor.only_64()?;
    let op = alu(opcode >> 3).ok_or(DecodeError::Unknown)?;
    let width = cursor.width(opcode);
    let modrm = cursor.modrm()?;
    let source = Source::Reg(cursor.gpr(modrm.reg, width));
    Ok(store(
        StoreOp::Alu(op, source),
        width,
        cursor.memory(modrm)?,
    ))
}

fn alu_immediate(cursor: &mut Cursor<'_>, opcode: u8) -> Result<Insn, DecodeError> {
    let width = cursor.width(opcode);
    let modrm = cursor.modrm()?;
    let op = alu(modrm.extension()).ok_or(DecodeError::Unknown)?;
    let mem = cursor.memory(modrm)?;
    let source = cursor.immediate(if opcode == 0x83 { Width::W8 } else { width })?;
    Ok(store(StoreOp::Alu(op, source), width, mem))
}

fn xchg(cursor: &mut Cursor<'_>, opcode: u8) -> Result<Insn, DecodeError> {
    cursor.only_64()?;
    let width = cursor.width(opcode);
    let modrm = cursor.modrm()?;
    let reg = cursor.gpr(modrm.reg, width);
    Ok(store(StoreOp::Xchg(reg), width, cursor.memory(modrm)?))
}

fn unary(cursor: &mut Cursor<'_>, opcode: u8) -> Result<Insn, DecodeError> {
    let width = cursor.width(opcode);
    let modrm = cursor.modrm()?;
    let op = match (opcode, modrm.extension()) {
        (0xf6 | 0xf7, 2) => Unary::Not,
        (0xf6 | 0xf7, 3) => Unary::Neg,
        (0xfe | 0xff, 0) => Unary::Inc,
        (0xfe | 0xff, 1) => Unary::Dec,
        _ => return Err(DecodeError::Unknown),
    };
    Ok(store(StoreOp::Unary(op), width, cursor.memory(modrm)?))
}
