//! A register file for the emulator's tests.

use super::RegisterFile;

/// Plain registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TestRegs {
    pub gprs: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
}

impl RegisterFile for TestRegs {
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
