//! Model-specific registers as a PV guest finds them.
//!
//! What depends on the machine is read once, at first boot, into [`MsrPolicy`]; what belongs to the
//! vCPU is behind [`MsrState`].  Everything unknown is a general protection fault, except that a
//! guest that has not registered a handler for it yet reads 0.

mod number;

use super::cpuid::{FrozenCpuid, Vendor};
use number as nr;
use xen_abi::Mfn;

/// Xen's PAT: WB WT UC- UC WC WP UC UC.
pub const PAT: u64 = 0x0000_0501_0007_0406;
/// SCE, LME, LMA and NX.
pub const EFER: u64 = 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11;
/// `MISC_FEATURES_ENABLES`: processes may not execute CPUID.
pub const CPUID_FAULTING: u64 = 1;
/// `PLATFORM_INFO`: that can be asked for.
const CAN_FAULT_CPUID: u64 = 1 << 31;
/// `APIC_BASE`: the usual address, enabled.
const APIC_BASE: u64 = 0xfee0_0800;
/// `APIC_BASE`: this is the boot CPU.
const APIC_BOOT_CPU: u64 = 1 << 8;
/// `MCG_CAP`: two banks, which never report anything.
const MCG_CAP: u64 = 2;
/// `DE_CFG`: LFENCE is serialising.
const LFENCE_SERIALISE: u64 = 1 << 1;

/// The vCPU's own MSRs.
pub trait MsrState {
    /// Returns the number of the vCPU.
    fn vcpu(&self) -> u32;
    /// Whether the guest has registered a handler for general protection faults.
    fn gp_handler_registered(&self) -> bool;
    /// Returns the base of `fs`.
    fn fs_base(&self) -> u64;
    /// Sets the base of `fs`; it is canonical, as are all bases set through this trait.
    fn set_fs_base(&mut self, base: u64);
    /// Returns the base of `gs` in the interrupted mode.
    fn gs_base(&self) -> u64;
    /// Sets the base of `gs` in the interrupted mode.
    fn set_gs_base(&mut self, base: u64);
    /// Returns the base of `gs` in the other mode (`KERNEL_GS_BASE` of an ordinary CPU).
    fn inactive_gs_base(&self) -> u64;
    /// Sets the base of `gs` in the other mode.
    fn set_inactive_gs_base(&mut self, base: u64);
    /// Returns the time-stamp counter.
    fn tsc(&self) -> u64;
    /// Returns `TSC_AUX`.
    fn tsc_aux(&self) -> u32;
    /// Sets `TSC_AUX`.
    fn set_tsc_aux(&mut self, value: u32);
    /// Returns `MISC_FEATURES_ENABLES`: 0, or [`CPUID_FAULTING`].
    fn misc_features(&self) -> u64;
    /// Sets `MISC_FEATURES_ENABLES`.
    fn set_misc_features(&mut self, value: u64);
    /// Returns the guest's `SPEC_CTRL`.
    fn spec_ctrl(&self) -> u64;
    /// Sets the guest's `SPEC_CTRL` to a value that the policy accepts.
    fn set_spec_ctrl(&mut self, value: u64);
    /// Executes a prediction barrier (`PRED_CMD`) that the policy accepts.
    fn predictor_barrier(&mut self, command: u64);
    /// Returns the address mask of breakpoint `n` (0 to 3).
    fn breakpoint_mask(&self, n: u8) -> u32;
    /// Sets the address mask of breakpoint `n` (0 to 3).
    fn set_breakpoint_mask(&mut self, n: u8, mask: u32);
}

/// What the MSRs say about the machine, frozen at first boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrPolicy {
    vendor: Vendor,
    misc_enable: Option<u64>,
    platform_id: u64,
    microcode: u64,
    arch_capabilities: Option<u64>,
    can_fault_cpuid: bool,
    spec_ctrl: Option<u64>,
    pred_cmd: u64,
    tsc_aux: bool,
    breakpoint_masks: bool,
}

impl MsrPolicy {
    /// Derives the policy from the guest's CPUID and from the MSRs of the machine below (`raw`
    /// reads one there and gives `None` where it faults).  `can_fault_cpuid` says whether a process
    /// of the guest can be kept from executing CPUID.
    pub fn freeze(
        raw: impl Fn(u32) -> Option<u64>,
        cpuid: &FrozenCpuid,
        can_fault_cpuid: bool,
    ) -> Self {
        let vendor = cpuid.vendor();
        let intel = |value: Option<u64>| value.filter(|_| vendor == Vendor::Intel);
        let leaf7 = cpuid.leaf(7, 0)[3];
        let extended8 = cpuid.leaf(0x8000_0008, 0)[1];
        let has = |register: u32, bit: u32| register & 1 << bit != 0;
        let valid_spec_ctrl =
            3 | u64::from(has(leaf7, 31)) << 2 | u64::from(has(cpuid.leaf(7, 2)[3], 0)) << 7;
        let sbpb = has(cpuid.leaf(0x8000_0021, 0)[0], 27);
        Self {
            vendor,
            misc_enable: intel(raw(nr::MISC_ENABLE)).map(guest_misc_enable),
            platform_id: intel(raw(nr::PLATFORM_ID)).unwrap_or(0),
            microcode: raw(nr::UCODE_REV).unwrap_or(0),
            arch_capabilities: has(leaf7, 29)
                .then(|| raw(nr::ARCH_CAPABILITIES).unwrap_or(0) & super::cpuid::ARCH_CAPABILITIES),
            can_fault_cpuid,
            spec_ctrl: has(leaf7, 26).then_some(valid_spec_ctrl),
            pred_cmd: u64::from(has(leaf7, 26) || has(extended8, 12)) | u64::from(sbpb) << 7,
            tsc_aux: has(cpuid.leaf(0x8000_0001, 0)[3], 27) || has(cpuid.leaf(7, 0)[2], 22),
            breakpoint_masks: has(cpuid.leaf(0x8000_0001, 0)[2], 26),
        }
    }
}

/// Hides performance monitoring, MONITOR and xTPR.
const fn guest_misc_enable(value: u64) -> u64 {
    value & !(1 << 7 | 1 << 18) | 1 << 11 | 1 << 12 | 1 << 23
}

/// Whether CPUID is to fault for processes.
pub fn cpuid_faults(state: &impl MsrState) -> bool {
    state.misc_features() & CPUID_FAULTING != 0
}

/// Reads an MSR; `None` is a general protection fault.
pub fn read(msr: u32, state: &impl MsrState, policy: &MsrPolicy) -> Option<u64> {
    // Kernels read a few unguarded before they can take a fault.  The hypervisor's own range is
    // excepted, as its presence is something that they probe for.
    let fake = !state.gp_handler_registered() && msr >> 16 != 0x4000;
    known(msr, state, policy).or(fake.then_some(0))
}

fn known(msr: u32, state: &impl MsrState, policy: &MsrPolicy) -> Option<u64> {
    let intel = policy.vendor == Vendor::Intel;
    let amd = policy.vendor == Vendor::Amd;
    Some(match msr {
        nr::FS_BASE => state.fs_base(),
        nr::GS_BASE => state.gs_base(),
        nr::KERNEL_GS_BASE => state.inactive_gs_base(),
        nr::TSC => state.tsc(),
        nr::TSC_AUX if policy.tsc_aux => state.tsc_aux().into(),
        nr::EFER => EFER,
        nr::PAT => PAT,
        nr::APIC_BASE => APIC_BASE | if state.vcpu() == 0 { APIC_BOOT_CPU } else { 0 },
        nr::MISC_ENABLE => policy.misc_enable?,
        nr::PLATFORM_ID if intel => policy.platform_id,
        nr::UCODE_REV if intel || amd => policy.microcode,
        nr::PLATFORM_INFO if intel => u64::from(policy.can_fault_cpuid) * CAN_FAULT_CPUID,
        nr::MISC_FEATURES_ENABLES => state.misc_features(),
        nr::ARCH_CAPABILITIES => policy.arch_capabilities?,
        nr::SPEC_CTRL if policy.spec_ctrl.is_some() => state.spec_ctrl(),
        nr::PERF_CAPABILITIES | nr::HYPERCALL => 0,
        nr::PERF_STATUS | nr::PERF_CTL | nr::THERM_STATUS if intel => 0,
        nr::MCG_CAP => MCG_CAP,
        nr::P5_MC_ADDR | nr::P5_MC_TYPE | nr::MCG_STATUS => 0,
        nr::MC0_CTL..=nr::MC31_MISC => 0,
        nr::NB_CFG => 0,
        nr::HWCR | nr::FID_VID_CTL | nr::FID_VID_STATUS if amd => 0,
        nr::PSTATE_LIMIT..=nr::PSTATE7 if amd => 0,
        nr::DE_CFG if amd => LFENCE_SERIALISE,
        _ => state.breakpoint_mask(breakpoint(msr, policy)?).into(),
    })
}

/// Returns which breakpoint an MSR holds the mask of.
fn breakpoint(msr: u32, policy: &MsrPolicy) -> Option<u8> {
    if !policy.breakpoint_masks {
        return None;
    }
    match msr {
        nr::DR0_MASK => Some(0),
        nr::DR1_MASK..=nr::DR3_MASK => Some((msr - nr::DR1_MASK + 1) as u8),
        _ => None,
    }
}

/// What came of writing an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It has been written, or the write is one that does nothing.
    Done,
    /// The guest asks for a hypercall page in this frame; if it is no frame of its own, that is a
    /// general protection fault.
    FillHypercallPage(Mfn),
    /// A general protection fault.
    Fault,
}

/// Writes an MSR.
pub fn write(msr: u32, value: u64, state: &mut impl MsrState, policy: &MsrPolicy) -> Written {
    let intel = policy.vendor == Vendor::Intel;
    let amd = policy.vendor == Vendor::Amd;
    let accepted = match msr {
        nr::FS_BASE if canonical(value) => {
            state.set_fs_base(value);
            true
        }
        nr::GS_BASE if canonical(value) => {
            state.set_gs_base(value);
            true
        }
        nr::KERNEL_GS_BASE if canonical(value) => {
            state.set_inactive_gs_base(value);
            true
        }
        nr::TSC_AUX if policy.tsc_aux => u32::try_from(value)
            .map(|value| state.set_tsc_aux(value))
            .is_ok(),
        nr::EFER => value == EFER,
        nr::MISC_ENABLE => policy.misc_enable.is_some(),
        // Intel asks for a zero before the revision is read.
        nr::UCODE_REV => intel && value == 0,
        nr::MISC_FEATURES_ENABLES => {
            let allowed = if policy.can_fault_cpuid {
                CPUID_FAULTING
            } else {
                0
            };
            let valid = value & !allowed == 0;
            if valid {
                state.set_misc_features(value);
            }
            valid
        }
        nr::SPEC_CTRL => {
            let valid = policy.spec_ctrl.is_some_and(|valid| value & !valid == 0);
            if valid {
                state.set_spec_ctrl(value);
            }
            valid
        }
        nr::PRED_CMD => {
            let valid = policy.pred_cmd != 0 && value & !policy.pred_cmd == 0;
            if valid && value != 0 {
                state.predictor_barrier(value);
            }
            valid
        }
        nr::PERF_CTL | nr::THERM_CONTROL | nr::ENERGY_PERF_BIAS => intel,
        nr::MPERF | nr::APERF => intel || amd,
        nr::P5_MC_ADDR | nr::P5_MC_TYPE | nr::MCG_STATUS | nr::NB_CFG => true,
        nr::MC0_CTL..=nr::MC31_MISC => true,
        nr::HWCR | nr::FID_VID_CTL | nr::FID_VID_STATUS | nr::DE_CFG => amd,
        nr::PSTATE_LIMIT..=nr::PSTATE7 => amd,
        // The low bits select a page of several; there is one.
        nr::HYPERCALL if value & 0xfff == 0 => {
            return Written::FillHypercallPage(Mfn::of(value));
        }
        _ => match (breakpoint(msr, policy), u32::try_from(value)) {
            (Some(n), Ok(mask)) => {
                state.set_breakpoint_mask(n, mask);
                true
            }
            _ => false,
        },
    };
    if accepted {
        Written::Done
    } else {
        Written::Fault
    }
}

/// Whether an address is canonical with 48 bits.
const fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

#[cfg(test)]
mod tests;
