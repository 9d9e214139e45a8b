//! What the decoder understands: the instructions that may trap in a PV guest, and nothing else.

/// Operand width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// One byte.
    W8,
    /// Two bytes.
    W16,
    /// Four bytes.
    W32,
    /// Eight bytes.
    W64,
}

impl Width {
    /// Returns the width in bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::W8 => 1,
            Self::W16 => 2,
            Self::W32 => 4,
            Self::W64 => 8,
        }
    }

    /// Returns the width in bits.
    pub const fn bits(self) -> u32 {
        self.bytes() as u32 * 8
    }

    /// Returns a mask of the operand's bits.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Returns the most significant bit.
    pub const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }
}

/// A general register as an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpr {
    /// Its number, 0 to 15.
    pub n: u8,
    /// Bits 15:8 of it (`ah ch dh bh`) rather than its low part.
    pub high: bool,
}

/// Where an operand that is not in memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A register.
    Reg(Gpr),
    /// An immediate, sign-extended to 64 bits.
    Imm(u64),
}

/// A segment whose base counts in 64-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// `fs`
    Fs,
    /// `gs`
    Gs,
}

/// What an address starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Only the displacement and the index.
    None,
    /// The general register of this number.
    Gpr(u8),
    /// The address of the next instruction.
    NextRip,
}

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mem {
    /// First term.
    pub base: Base,
    /// A register number and the power of two it is scaled by (0 to 3).
    pub index: Option<(u8, u8)>,
    /// The displacement, sign-extended.
    pub disp: u64,
    /// Segment override.
    pub segment: Option<Segment>,
    /// The address is computed in 32 bits.
    pub addr32: bool,
}

/// The port of `in` and `out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoPort {
    /// An immediate.
    Imm(u8),
    /// The low half of `edx`.
    Dx,
}

/// How a string instruction moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strings {
    /// Width of an element.
    pub width: Width,
    /// Repeated `rcx` times.
    pub rep: bool,
    /// Addresses and the count are 32 bits wide.
    pub addr32: bool,
    /// Override for the source (`rsi`) side.
    pub segment: Option<Segment>,
}

/// Two-operand arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the mnemonic of the instruction")]
pub enum Alu {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
}

/// One-operand arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the mnemonic of the instruction")]
pub enum Unary {
    Inc,
    Dec,
    Not,
    Neg,
}

/// What a bit instruction does with the bit after copying it to the carry flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitOp {
    /// `bts`
    Set,
    /// `btr`
    Reset,
    /// `btc`
    Complement,
}

/// What a store does with its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOp {
    /// `mov` and `movnti`: overwrites it.
    Mov(Source),
    /// `xchg`: swaps it with a register.
    Xchg(Gpr),
    /// `cmpxchg`: replaces it by the register if it equals the accumulator.
    Cmpxchg(Gpr),
    /// `xadd`: adds the register, which receives the old value.
    Xadd(Gpr),
    /// Arithmetic with a second operand.
    Alu(Alu, Source),
    /// Arithmetic without one.
    Unary(Unary),
    /// Changes one bit; a register index may select a bit outside the operand.
    Bit(BitOp, Source),
    /// `stos`: one element of the accumulator to `[rdi]`.
    Stos(Strings),
    /// `movs`: one element from `[rsi]` to `[rdi]`.
    Movs(Strings),
}

/// An instruction that writes to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// What it does.
    pub op: StoreOp,
    /// Width of the destination.
    pub width: Width,
    /// The destination; `[rdi]` for string instructions.
    pub mem: Mem,
}

/// Privileged instructions that a PV guest may not have: the fault goes back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the mnemonic of the instruction")]
pub enum Refused {
    Hlt,
    Invd,
    Invlpg,
    Iret,
    Lgdt,
    Lidt,
    Lldt,
    Lmsw,
    Ltr,
    Monitor,
    Mwait,
    Rdpmc,
    Swapgs,
    Sysexit,
    Sysret,
    Vmcall,
    Vmmcall,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insn {
    /// `in`
    In(Width, IoPort),
    /// `out`
    Out(Width, IoPort),
    /// `ins`
    Ins(Strings),
    /// `outs`
    Outs(Strings),
    /// `cli`
    Cli,
    /// `sti`
    Sti,
    /// `clts`
    Clts,
    /// `mov` from a control register.
    ReadCr {
        /// The control register.
        cr: u8,
        /// The general register.
        gpr: u8,
    },
    /// `mov` to a control register.
    WriteCr {
        /// The control register.
        cr: u8,
        /// The general register.
        gpr: u8,
    },
    /// `mov` from a debug register.
    ReadDr {
        /// The debug register.
        dr: u8,
        /// The general register.
        gpr: u8,
    },
    /// `mov` to a debug register.
    WriteDr {
        /// The debug register.
        dr: u8,
        /// The general register.
        gpr: u8,
    },
    /// `rdmsr`
    Rdmsr,
    /// `wrmsr`
    Wrmsr,
    /// `cpuid`
    Cpuid,
    /// `cpuid` behind Xen's forced-emulation prefix.
    ForcedCpuid,
    /// `rdtsc`
    Rdtsc,
    /// `rdtscp`
    Rdtscp,
    /// `xsetbv`
    Xsetbv,
    /// `wbinvd` and `wbnoinvd`
    Wbinvd,
    /// `int n`
    Int(u8),
    /// Anything else that is privileged.
    Refused(Refused),
    /// A store to memory, which traps when it hits a page table.
    Store(Store),
}
