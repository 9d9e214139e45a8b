//! A register file made of plain data, for tests and fuzz targets.

use super::RegisterFile;

/// Plain registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeRegs {
    /// By number.
    pub gprs: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

impl RegisterFile for FakeRegs {
    fn gpr(&self, n: u8) -> u64 {
        self.gprs[usize::from(n)]
    }

    fn set_gpr(&mut self, n: u8, value: u64) {
        self.gprs[usize::from(n)] = value;
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn set_rip(&mut self, value: u64) {
        self.rip = value;
    }

    fn rflags(&self) -> u64 {
        self.rflags
    }

    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
}
