//! Prefixes, ModRM, SIB, displacements and immediates.

use super::super::insn::{Base, Gpr, Mem, Segment, Source, Strings, Width};
use super::{CodeSize, DecodeError, MAX_LEN};

/// Bits of a REX prefix.
const REX_W: u8 = 8;
const REX_R: u8 = 4;
const REX_X: u8 = 2;
const REX_B: u8 = 1;

/// The last of the repeat prefixes, which is also the mandatory prefix of some opcodes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    None,
    F2,
    F3,
}

/// The ModRM byte, with the register fields already extended by REX.
#[derive(Clone, Copy)]
pub(super) struct ModRm {
    /// The raw byte.
    pub raw: u8,
    /// The `reg` field.
    pub reg: u8,
    /// The `rm` field as a register.
    pub rm: u8,
}

impl ModRm {
    /// Whether `rm` names a register.
    pub const fn is_register(self) -> bool {
        self.raw >> 6 == 3
    }

    /// The `reg` field as an opcode extension.
    pub const fn extension(self) -> u8 {
        (self.raw >> 3) & 7
    }
}

/// A place in an instruction.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    size: CodeSize,
    rex: u8,
    operand16: bool,
    address_prefix: bool,
    segment: Option<Segment>,
    pub lock: bool,
    pub repeat: Repeat,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], size: CodeSize) -> Self {
        Self {
            bytes,
            at: 0,
            size,
            rex: 0,
            operand16: false,
            address_prefix: false,
            segment: None,
            lock: false,
            repeat: Repeat::None,
        }
    }

    /// Returns how many bytes have been read.
    pub fn consumed(&self) -> u8 {
        self.at as u8
    }

    /// Reads a byte; an instruction that would not end within 15 is none.
    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        if self.at >= MAX_LEN {
            return Err(DecodeError::Unknown);
        }
        let byte = *self.bytes.get(self.at).ok_or(DecodeError::Incomplete)?;
        self.at += 1;
        Ok(byte)
    }

    /// Reads all prefixes and returns the first opcode byte.
    pub fn prefixes(&mut self) -> Result<u8, DecodeError> {
        loop {
            let byte = self.byte()?;
            match byte {
                0x66 => self.operand16 = true,
                0x67 => self.address_prefix = true,
                0xf0 => self.lock = true,
                0xf2 => self.repeat = Repeat::F2,
                0xf3 => self.repeat = Repeat::F3,
                0x64 => self.segment = Some(Segment::Fs),
                0x65 => self.segment = Some(Segment::Gs),
                // Accepted and without effect on a flat address space.
                0x26 | 0x2e | 0x36 | 0x3e if self.size == CodeSize::Bits64 => {}
                0x40..=0x4f if self.size == CodeSize::Bits64 => {
                    self.rex = byte;
                    continue;
                }
                _ => return self.opcode(byte),
            }
            // A REX prefix counts only directly before the opcode.
            self.rex = 0;
        }
    }

    fn opcode(&self, byte: u8) -> Result<u8, DecodeError> {
        // Compatibility-mode segments need not be flat, and 16-bit addresses are nobody's.
        let odd = self.segment.is_some() || self.address_prefix;
        if self.size == CodeSize::Bits32 && odd {
            Err(DecodeError::Unknown)
        } else {
            Ok(byte)
        }
    }

    /// Whether a prefix that selects another instruction is present.
    pub fn any_mandatory_prefix(&self) -> bool {
        self.operand16 || self.repeat != Repeat::None
    }

    /// Whether a string instruction repeats: both prefixes do so where no flag ends the loop.
    pub fn repeats(&self) -> bool {
        self.repeat != Repeat::None
    }

    /// Whether addresses are 32 bits wide.
    pub fn addr32(&self) -> bool {
        self.address_prefix || self.size == CodeSize::Bits32
    }

    /// Refuses what is only decoded in 64-bit mode.
    pub fn only_64(&self) -> Result<(), DecodeError> {
        if self.size == CodeSize::Bits64 {
            Ok(())
        } else {
            Err(DecodeError::Unknown)
        }
    }

    /// Refuses a LOCK prefix.
    pub fn no_lock(&self) -> Result<(), DecodeError> {
        if self.lock {
            Err(DecodeError::Unknown)
        } else {
            Ok(())
        }
    }

    /// Returns the operand width: one byte if bit 0 of the opcode is clear, else by prefixes.
    pub fn width(&self, opcode: u8) -> Width {
        match opcode & 1 {
            0 => Width::W8,
            _ if self.rex & REX_W != 0 => Width::W64,
            _ if self.operand16 => Width::W16,
            _ => Width::W32,
        }
    }

    /// Returns the width of `in`, `out` and their string forms, which know no 64 bits.
    pub fn port_width(&self, opcode: u8) -> Width {
        match opcode & 1 {
            0 => Width::W8,
            // REX.W overrides the operand-size prefix even where it adds nothing.
            _ if self.operand16 && self.rex & REX_W == 0 => Width::W16,
            _ => Width::W32,
        }
    }

    /// Returns the parameters of a string instruction.
    pub fn strings(&self, width: Width) -> Strings {
        Strings {
            width,
            rep: self.repeats(),
            addr32: self.addr32(),
            segment: self.segment,
        }
    }

    /// Reads ModRM.
    pub fn modrm(&mut self) -> Result<ModRm, DecodeError> {
        let raw = self.byte()?;
        Ok(ModRm {
            raw,
            reg: (raw >> 3 & 7) | if self.rex & REX_R == 0 { 0 } else { 8 },
            rm: (raw & 7) | if self.rex & REX_B == 0 { 0 } else { 8 },
        })
    }

    /// Returns a register operand; without REX, 4 to 7 are the high bytes of the first four.
    pub fn gpr(&self, n: u8, width: Width) -> Gpr {
        if width == Width::W8 && self.rex == 0 && n & 4 != 0 {
            Gpr {
                n: n & 3,
                high: true,
            }
        } else {
            Gpr { n, high: false }
        }
    }

    /// Reads the rest of a memory operand; a register operand is refused.
    pub fn memory(&mut self, modrm: ModRm) -> Result<Mem, DecodeError> {
        self.only_64()?;
        if modrm.is_register() {
            return Err(DecodeError::Unknown);
        }
        // The encodings with a meaning of their own are told by the three raw bits, whatever REX
        // adds.
        let mode = modrm.raw >> 6;
        let (base, index) = match modrm.raw & 7 {
            4 => self.sib(mode)?,
            5 if mode == 0 => (Base::NextRip, None),
            _ => (Base::Gpr(modrm.rm), None),
        };
        let disp = match (mode, base) {
            (0, Base::None | Base::NextRip) => self.signed(4)?,
            (0, Base::Gpr(_)) => 0,
            (1, _) => self.signed(1)?,
            _ => self.signed(4)?,
        };
        Ok(Mem {
            base,
            index,
            disp,
            segment: self.segment,
            addr32: self.addr32(),
        })
    }

    fn sib(&mut self, mode: u8) -> Result<(Base, Option<(u8, u8)>), DecodeError> {
        let sib = self.byte()?;
        let index = (sib >> 3 & 7) | if self.rex & REX_X == 0 { 0 } else { 8 };
        let base = (sib & 7) | if self.rex & REX_B == 0 { 0 } else { 8 };
        let base = if mode == 0 && sib & 7 == 5 {
            Base::None
        } else {
            Base::Gpr(base)
        };
        // With REX.X it is r12, which is an index like any other.
        Ok((base, (index != 4).then_some((index, sib >> 6))))
    }

    /// Returns `[rdi]`, where string instructions store; no override applies to it.
    pub fn string_destination(&self) -> Mem {
        Mem {
            base: Base::Gpr(7),
            index: None,
            disp: 0,
            segment: None,
            addr32: self.addr32(),
        }
    }

    /// Reads the absolute address of the accumulator forms of `mov`.
    pub fn absolute(&mut self) -> Result<Mem, DecodeError> {
        let disp = if self.addr32() {
            self.signed(4)? & 0xffff_ffff
        } else {
            self.signed(8)?
        };
        let (segment, addr32) = (self.segment, self.addr32());
        Ok(Mem {
            base: Base::None,
            index: None,
            disp,
            segment,
            addr32,
        })
    }

    /// Reads an immediate of an operand's width, of which 64 bits encode only 32.
    pub fn immediate(&mut self, width: Width) -> Result<Source, DecodeError> {
        self.signed(width.bytes().min(4)).map(Source::Imm)
    }

    /// Reads a little-endian number of `bytes` bytes and sign-extends it.
    pub fn signed(&mut self, bytes: u8) -> Result<u64, DecodeError> {
        let mut value = 0;
        for n in 0..bytes {
            value |= u64::from(self.byte()?) << (8 * n);
        }
        let shift = 64 - 8 * u32::from(bytes);
        Ok(((value << shift) as i64 >> shift) as u64)
    }
}
