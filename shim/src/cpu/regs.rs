//! The register frame of whatever was interrupted, laid out as the entry stubs push it.

/// General registers, then what the CPU itself pushes on an exception.
///
/// The entry stubs in the image build this frame on the vCPU's stack and load the registers back
/// from it, so the order of the fields is part of their contract (checked there with `offset_of!`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "each field is the register of that name")]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Exception vector, or [`Regs::SYSCALL`], [`Regs::SYSCALL32`], [`Regs::SYSENTER`].
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Regs {
    /// In `vector`: entered by SYSCALL from 64-bit code.
    pub const SYSCALL: u64 = 0x100;
    /// In `vector`: entered by SYSCALL from 32-bit code.
    pub const SYSCALL32: u64 = 0x101;
    /// In `vector`: entered by SYSENTER.
    pub const SYSENTER: u64 = 0x102;
    /// In `vector`: what the guest wanted to return to could not be loaded.
    pub const FAILED_IRET: u64 = 0x103;

    /// In `vector`: a second debug exception overwrote where the first had come from.
    pub const LOST_FRAME: u64 = 0x104;

    /// Returns general register `n` in the CPU's own numbering (0 is rax, 4 rsp, 15 r15).
    pub fn gpr(&self, n: u8) -> u64 {
        match n & 15 {
            0 => self.rax,
            1 => self.rcx,
            2 => self.rdx,
            3 => self.rbx,
            4 => self.rsp,
            5 => self.rbp,
            6 => self.rsi,
            7 => self.rdi,
            8 => self.r8,
            9 => self.r9,
            10 => self.r10,
            11 => self.r11,
            12 => self.r12,
            13 => self.r13,
            14 => self.r14,
            _ => self.r15,
        }
    }

    /// Sets general register `n` in the CPU's own numbering.
    pub fn set_gpr(&mut self, n: u8, value: u64) {
        *match n & 15 {
            0 => &mut self.rax,
            1 => &mut self.rcx,
            2 => &mut self.rdx,
            3 => &mut self.rbx,
            4 => &mut self.rsp,
            5 => &mut self.rbp,
            6 => &mut self.rsi,
            7 => &mut self.rdi,
            8 => &mut self.r8,
            9 => &mut self.r9,
            10 => &mut self.r10,
            11 => &mut self.r11,
            12 => &mut self.r12,
            13 => &mut self.r13,
            14 => &mut self.r14,
            _ => &mut self.r15,
        } = value;
    }
}

#[cfg(any(test, feature = "testing"))]
impl Regs {
    /// Returns the general registers by their numbers.
    pub fn gprs(&self) -> [u64; 16] {
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15].map(|n| self.gpr(n))
    }

    /// The same with these general registers.
    #[must_use]
    pub fn with_gprs(mut self, gprs: [u64; 16]) -> Self {
        (0..)
            .zip(gprs)
            .for_each(|(n, value)| self.set_gpr(n, value));
        self
    }
}
