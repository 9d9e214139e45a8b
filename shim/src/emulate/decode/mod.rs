//! A decoder for the few instructions that may trap in a PV guest.
//!
//! It claims an instruction only when it knows its exact length and operands; everything else is
//! [`DecodeError::Unknown`] and the fault goes back to the guest.  `cursor` reads prefixes, ModRM
//! and immediates, `one_byte` and `two_byte` are the opcode maps.

mod cursor;
mod one_byte;
mod two_byte;

#[cfg(test)]
mod tests;

use super::Insn;
use cursor::Cursor;

/// The longest instruction, in bytes.
pub const MAX_LEN: usize = 15;

/// Xen's forced-emulation prefix: `ud2` and the letters "xen".
const FORCED_EMULATION: [u8; 5] = [0x0f, 0x0b, b'x', b'e', b'n'];

/// What kind of code segment the instruction is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// 64-bit mode.
    Bits64,
    /// Compatibility mode with 32-bit default operand and address sizes; stores are not decoded
    /// there, as only kernels write to page tables.
    Bits32,
}

/// Why there is no instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end before the instruction does; with more of them it might be one.
    Incomplete,
    /// None that the emulator executes, or no valid instruction at all.
    Unknown,
}

/// An instruction and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The instruction.
    pub insn: Insn,
    /// Its length in bytes, prefixes included; at most 15.
    pub len: u8,
}

/// Decodes the instruction at the start of `bytes`; bytes after the fifteenth are ignored.
pub fn decode(bytes: &[u8], size: CodeSize) -> Result<Decoded, DecodeError> {
    if let Some(found) = forced_cpuid(bytes) {
        return found;
    }
    let mut cursor = Cursor::new(bytes, size);
    let insn = match cursor.prefixes()? {
        0x0f => {
            let opcode = cursor.byte()?;
            two_byte::decode(&mut cursor, opcode)?
        }
        opcode => one_byte::decode(&mut cursor, opcode)?,
    };
    Ok(Decoded {
        insn,
        len: cursor.consumed(),
    })
}

/// Recognises the forced-emulation prefix, which is valid only before an unprefixed `cpuid`.
fn forced_cpuid(bytes: &[u8]) -> Option<Result<Decoded, DecodeError>> {
    const WHOLE: [u8; 7] = [0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2];
    if bytes.starts_with(&WHOLE) {
        return Some(Ok(Decoded {
            insn: Insn::ForcedCpuid,
            len: WHOLE.len() as u8,
        }));
    }
    // A lone 0f could become anything, so the general decoder answers for it.
    let ud2 = bytes.starts_with(&FORCED_EMULATION[..2]);
    (ud2 && WHOLE.starts_with(bytes)).then_some(Err(DecodeError::Incomplete))
}
