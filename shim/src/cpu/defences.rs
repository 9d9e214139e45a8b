//! Which of the processor's faults the shim has to work around, so that a program of the guest can
//! not read what its kernel or another program keeps: all of the guest's memory is in the shim's
//! direct map.
//!
//! A virtual machine is no wall here, since ring 3 and ring 0 are both inside.  Names as in Intel's
//! "Affected Processors" and in the enumeration of `IA32_ARCH_CAPABILITIES` (SDM Vol. 4).

use crate::emulate::cpuid::Vendor;

/// `ARCH_CAPABILITIES`: not susceptible to Rogue Data Cache Load (Meltdown).
const RDCL_NO: u64 = 1 << 0;
/// `ARCH_CAPABILITIES`: not susceptible to Microarchitectural Data Sampling.
const MDS_NO: u64 = 1 << 5;
/// `ARCH_CAPABILITIES`: VERW clears the fill buffers.
const FB_CLEAR: u64 = 1 << 17;
/// `ARCH_CAPABILITIES`: VERW clears the register files.
const RFDS_CLEAR: u64 = 1 << 28;
/// CPUID leaf 7, EDX: VERW clears the buffers that MDS reads.
const MD_CLEAR: u32 = 1 << 10;
/// CPUID leaf 7, EDX: there is `ARCH_CAPABILITIES`.
pub const HAS_ARCH_CAPABILITIES: u32 = 1 << 29;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defences {
    /// Ring 3 runs on page tables that lack the shim's memory.
    pub split_tables: bool,
    /// The CPU's buffers are cleared on the way to ring 3.
    pub clear_buffers: bool,
    /// No instruction is executed ahead of a SWAPGS that might not be executed.
    pub fence_swapgs: bool,
}

impl Defences {
    /// Decides by vendor, EDX of CPUID leaf 7, `ARCH_CAPABILITIES` (0 where there is none), and
    /// what the operator says about split tables, if anything.
    pub fn needed(vendor: Vendor, leaf7: u32, capabilities: u64, split: Option<bool>) -> Self {
        let has = |bits: u64| capabilities & bits != 0;
        // AMD's processors have none of these; of an unknown one the worst is assumed.
        let may_be_affected = vendor != Vendor::Amd;
        let clears_for_mds = leaf7 & MD_CLEAR != 0 && !has(MDS_NO);
        Self {
            split_tables: split.unwrap_or(may_be_affected && !has(RDCL_NO)),
            clear_buffers: may_be_affected && (clears_for_mds || has(FB_CLEAR | RFDS_CLEAR)),
            fence_swapgs: may_be_affected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Defences, MD_CLEAR, MDS_NO, RDCL_NO, RFDS_CLEAR};
    use crate::emulate::cpuid::Vendor;

    #[test]
    fn an_intel_processor_is_affected_unless_it_says_otherwise() {
        let needed = |leaf7, caps| Defences::needed(Vendor::Intel, leaf7, caps, None);
        let all = Defences {
            split_tables: true,
            clear_buffers: true,
            fence_swapgs: true,
        };
        assert_eq!(needed(MD_CLEAR, 0), all);
        // Without the microcode VERW clears nothing.
        assert!(!needed(0, 0).clear_buffers);
        assert!(!needed(MD_CLEAR, RDCL_NO).split_tables);
        assert!(needed(MD_CLEAR, RDCL_NO).clear_buffers);
        assert!(!needed(MD_CLEAR, RDCL_NO | MDS_NO).clear_buffers);
        assert!(needed(MD_CLEAR, RDCL_NO | MDS_NO | RFDS_CLEAR).clear_buffers);
    }

    #[test]
    fn amd_is_not_and_an_unknown_one_is() {
        let amd = Defences::needed(Vendor::Amd, MD_CLEAR, 0, None);
        let none = Defences {
            split_tables: false,
            clear_buffers: false,
            fence_swapgs: false,
        };
        assert_eq!(amd, none);
        assert!(Defences::needed(Vendor::Other, 0, 0, None).split_tables);
    }

    #[test]
    fn the_operator_has_the_last_word_on_tables() {
        for vendor in [Vendor::Intel, Vendor::Amd, Vendor::Other] {
            for split in [false, true] {
                let defences = Defences::needed(vendor, 0, RDCL_NO, Some(split));
                assert_eq!(defences.split_tables, split);
            }
        }
    }
}
