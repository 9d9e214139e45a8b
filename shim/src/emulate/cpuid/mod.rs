//! What CPUID tells the guest: decided once, at first boot, and the same for ever after.
//!
//! [`FrozenCpuid::freeze`] asks the machine below for its leaves, takes away what a PV guest can
//! not use (`features`) or must not see, adds the hypervisor's own leaves and keeps the result in a
//! table without pointers.  [`FrozenCpuid::query`] answers from that table alone; only what depends
//! on registers of the guest itself (OSXSAVE, the save area's size for the current XCR0) is filled
//! in at the time of asking.

mod features;
mod hypervisor;
mod policy;
mod xstate;

pub(super) use features::ARCH_CAPABILITIES;
pub use hypervisor::HypervisorLeaves;
pub use policy::Vendor;

use crate::registers::cr4;

/// `eax`, `ebx`, `ecx` and `edx` of a leaf.
pub type Leaf = [u32; 4];

/// Bounds the table; no machine fills it, see [`policy`].
const CAPACITY: usize = 96;

/// Bit 26 of leaf 1 `ecx`.
const XSAVE: u32 = 1 << 26;
/// Bit 27 of leaf 1 `ecx`.
const OSXSAVE: u32 = 1 << 27;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The instruction itself, by the kernel or a process: what an ordinary CPU would say.
    Native,
    /// The kernel through the forced-emulation prefix, where the hypervisor's own OSXSAVE shows:
    /// Linux takes it as permission to enable XSAVE.
    ForcedKernel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    leaf: u32,
    subleaf: u32,
    /// Any subleaf is answered alike.
    alike: bool,
    regs: Leaf,
}

/// The CPUID leaves of a guest, frozen at its first boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenCpuid {
    entries: [Entry; CAPACITY],
    used: usize,
    vendor: Vendor,
    xcr0: u64,
}

impl FrozenCpuid {
    /// Derives the guest's view from the machine below (`raw` executes CPUID there).
    pub fn freeze(raw: impl Fn(u32, u32) -> Leaf, hypervisor: &HypervisorLeaves) -> Self {
        let empty = Entry {
            leaf: 0,
            subleaf: 0,
            alike: false,
            regs: [0; 4],
        };
        let mut table = Self {
            entries: [empty; CAPACITY],
            used: 0,
            vendor: Vendor::Other,
            xcr0: 0,
        };
        policy::fill(&mut table, &raw);
        hypervisor::fill(&mut table, hypervisor);
        let used = table.used;
        table.entries[..used].sort_unstable_by_key(|entry| (entry.leaf, entry.subleaf));
        table
    }

    /// Adds a leaf; empty ones need no place, as absence reads as zeroes.
    fn add(&mut self, leaf: u32, subleaf: u32, alike: bool, regs: Leaf) {
        if regs != [0; 4] && self.used < CAPACITY {
            self.entries[self.used] = Entry {
                leaf,
                subleaf,
                alike,
                regs,
            };
            self.used += 1;
        }
    }

    /// Returns a leaf as it was frozen.
    pub fn leaf(&self, leaf: u32, subleaf: u32) -> Leaf {
        let entries = &self.entries[..self.used];
        let first = entries.partition_point(|entry| entry.leaf < leaf);
        entries[first..]
            .iter()
            .take_while(|entry| entry.leaf == leaf)
            .find(|entry| entry.alike || entry.subleaf == subleaf)
            .map_or([0; 4], |entry| entry.regs)
    }

    /// Answers CPUID; `osxsave` and `xcr0` are the guest's CR4.OSXSAVE and XCR0.
    pub fn query(&self, leaf: u32, subleaf: u32, view: View, osxsave: bool, xcr0: u64) -> Leaf {
        let mut regs = self.leaf(leaf, subleaf);
        match (leaf, subleaf) {
            (1, _) if osxsave || view == View::ForcedKernel && regs[2] & XSAVE != 0 => {
                regs[2] |= OSXSAVE;
            }
            // From the frozen parts and not from the CPU: an area that was allocated on one host
            // must do on every other.
            (0xd, 0) if self.xcr0 != 0 => regs[1] = xstate::standard_size(self, xcr0),
            (0xd, 1) if regs[0] & xstate::XSAVEC != 0 => {
                regs[1] = xstate::compacted_size(self, xcr0);
            }
            _ => {}
        }
        regs
    }

    /// Returns whose instruction set variant this is.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Whether the guest may load `value` into XCR0.
    pub fn xcr0_allowed(&self, value: u64) -> bool {
        value & !self.xcr0 == 0 && xstate::consistent(value)
    }

    /// Returns the bits of CR4 that the guest may change.
    pub fn cr4_settable(&self) -> u64 {
        let bit = |present: bool, bit: u64| if present { bit } else { 0 };
        let [_, _, leaf1_ecx, leaf1_edx] = self.leaf(1, 0);
        bit(leaf1_edx & 1 << 4 != 0, cr4::TSD)
            | bit(leaf1_edx & 1 << 2 != 0, cr4::DE)
            | bit(self.leaf(7, 0)[1] & 1 != 0, cr4::FSGSBASE)
            | bit(leaf1_ecx & XSAVE != 0, cr4::OSXSAVE)
    }
}

#[cfg(test)]
mod tests;
