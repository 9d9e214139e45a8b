//! The opcode map behind `0f`.

use super::super::insn::{BitOp, Insn, Refused, Source, StoreOp, Width};
use super::DecodeError;
use super::cursor::{Cursor, Repeat};
use super::one_byte::store;

/// Decodes what follows `0f` and an opcode.
pub(super) fn decode(cursor: &mut Cursor<'_>, opcode: u8) -> Result<Insn, DecodeError> {
    match opcode {
        0xab | 0xb3 | 0xbb => bit_register(cursor, opcode),
        0xb0 | 0xb1 | 0xc0 | 0xc1 => exchange(cursor, opcode),
        0xba => bit_immediate(cursor),
        _ => {
            // None of the others can be locked.
            cursor.no_lock()?;
            unlocked(cursor, opcode)
        }
    }
}

fn unlocked(cursor: &mut Cursor<'_>, opcode: u8) -> Result<Insn, DecodeError> {
    // A repeat prefix selects a newer instruction in several places of this map.
    if cursor.repeat != Repeat::None && opcode != 0x09 {
        return Err(DecodeError::Unknown);
    }
    Ok(match opcode {
        0x00 => group_6(cursor)?,
        0x01 => group_7(cursor)?,
        0x06 => Insn::Clts,
        0x07 => {
            cursor.only_64()?;
            Insn::Refused(Refused::Sysret)
        }
        0x08 => Insn::Refused(Refused::Invd),
        0x09 => Insn::Wbinvd,
        0x20..=0x23 => control_or_debug(cursor, opcode)?,
        0x30 => Insn::Wrmsr,
        0x31 => Insn::Rdtsc,
        0x32 => Insn::Rdmsr,
        0x33 => Insn::Refused(Refused::Rdpmc),
        0x35 => Insn::Refused(Refused::Sysexit),
        0xa2 => Insn::Cpuid,
        0xc3 if !cursor.any_mandatory_prefix() => {
            let width = cursor.width(1);
            let modrm = cursor.modrm()?;
            let source = Source::Reg(cursor.gpr(modrm.reg, width));
            store(StoreOp::Mov(source), width, cursor.memory(modrm)?)
        }
        _ => return Err(DecodeError::Unknown),
    })
}

/// Descriptor-table registers that hold a selector.
fn group_6(cursor: &mut Cursor<'_>) -> Result<Insn, DecodeError> {
    let modrm = cursor.modrm()?;
    let refused = match modrm.extension() {
        2 => Refused::Lldt,
        3 => Refused::Ltr,
        _ => return Err(DecodeError::Unknown),
    };
    if !modrm.is_register() {
        // For the length: nobody carries the instruction out.
        cursor.memory(modrm)?;
    }
    Ok(Insn::Refused(refused))
}

/// Descriptor tables in memory, and instructions without operand that share their opcode.
fn group_7(cursor: &mut Cursor<'_>) -> Result<Insn, DecodeError> {
    let modrm = cursor.modrm()?;
    if modrm.extension() == 6 {
        if !modrm.is_register() {
            cursor.memory(modrm)?;
        }
        return Ok(Insn::Refused(Refused::Lmsw));
    }
    if !modrm.is_register() {
        let refused = match modrm.extension() {
            2 => Refused::Lgdt,
            3 => Refused::Lidt,
            7 => Refused::Invlpg,
            _ => return Err(DecodeError::Unknown),
        };
        cursor.memory(modrm)?;
        return Ok(Insn::Refused(refused));
    }
    if cursor.any_mandatory_prefix() {
        return Err(DecodeError::Unknown);
    }
    Ok(match modrm.raw {
        0xc1 => Insn::Refused(Refused::Vmcall),
        0xc8 => Insn::Refused(Refused::Monitor),
        0xc9 => Insn::Refused(Refused::Mwait),
        0xd1 => Insn::Xsetbv,
        0xd9 => Insn::Refused(Refused::Vmmcall),
        0xf8 => {
            cursor.only_64()?;
            Insn::Refused(Refused::Swapgs)
        }
        0xf9 => Insn::Rdtscp,
        _ => return Err(DecodeError::Unknown),
    })
}

/// Moves from and to control and debug registers; the mode bits of ModRM are ignored.
fn control_or_debug(cursor: &mut Cursor<'_>, opcode: u8) -> Result<Insn, DecodeError> {
    let modrm = cursor.modrm()?;
    let (special, gpr) = (modrm.reg, modrm.rm);
    match opcode {
        0x20 | 0x22 if !matches!(special, 0 | 2 | 3 | 4 | 8) => Err(DecodeError::Unknown),
        0x21 | 0x23 if special > 7 => Err(DecodeError::Unknown),
        0x20 => Ok(Insn::ReadCr { cr: special, gpr }),
        0x21 => Ok(Insn::ReadDr { dr: special, gpr }),
        0x22 => Ok(Insn::WriteCr { cr: special, gpr }),
        _ => Ok(Insn::WriteDr { dr: special, gpr }),
    }
}

/// Maps the opcode extension of the immediate form; `bt` does not store.
const fn bit_op(extension: u8) -> Option<BitOp> {
    Some(match extension {
        5 => BitOp::Set,
        6 => BitOp::Reset,
        7 => BitOp::Complement,
        _ => return None,
    })
}

fn bit_register(cursor: &mut Cursor<'_>, opcode: u8) -> Result<Insn, DecodeError> {
    cursor.only_64()?;
    let op = bit_op(opcode >> 3 & 7).ok_or(DecodeError::Unknown)?;
    let width = cursor.width(1);
    let modrm = cursor.modrm()?;
    let source = Source::Reg(cursor.gpr(modrm.reg, width));
    Ok(store(
        StoreOp::Bit(op, source),
        width,
        cursor.memory(modrm)?,
    ))
}

fn bit_immediate(cursor: &mut Cursor<'_>) -> Result<Insn, DecodeError> {
    let width = cursor.width(1);
    let modrm = cursor.modrm()?;
    let op = bit_op(modrm.extension()).ok_or(DecodeError::Unknown)?;
    let mem = cursor.memory(modrm)?;
    let source = cursor.immediate(Width::W8)?;
    Ok(store(StoreOp::Bit(op, source), width, mem))
}

/// `cmpxchg` and `xadd`.
fn exchange(cursor: &mut Cursor<'_>, opcode: u8) -> Result<Insn, DecodeError> {
    cursor.only_64()?;
    let width = cursor.width(opcode);
    let modrm = cursor.modrm()?;
    let reg = cursor.gpr(modrm.reg, width);
    let op = if opcode < 0xc0 {
        StoreOp::Cmpxchg(reg)
    } else {
        StoreOp::Xadd(reg)
    };
    Ok(store(op, width, cursor.memory(modrm)?))
}
