//! Model-specific registers as a PV guest finds them.
//!
//! What depends on the machine is read once, at first boot, into [`MsrPolicy`]; what belongs to the
//! vCPU is in [`Vcpu`], or in the machine while the vCPU runs.  Everything unknown is a general
//! protection fault, except that a guest that has not registered a handler for it yet reads 0.

use super::cpuid::{FrozenCpuid, Vendor};
use crate::cpu::{Machine, Vcpu};
use crate::registers::{efer, msr as nr};
use xen_abi::Mfn;
use xen_abi::trap::vector;

/// Xen's PAT: WB WT UC- UC WC WP UC UC.
pub const PAT: u64 = 0x0000_0501_0007_0406;
/// `EFER` as a guest reads it.
pub const EFER: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;
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
                // Masked: the bits of a later processor could promise what the next host does not
                // keep.
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
pub fn cpuid_faults(vcpu: &Vcpu) -> bool {
    vcpu.misc_features & CPUID_FAULTING != 0
}

/// Reads an MSR of a vCPU that runs on `m`; `None` is a general protection fault.
pub fn read(msr: u32, vcpu: &Vcpu, m: &impl Machine, policy: &MsrPolicy) -> Option<u64> {
    // Kernels read a few unguarded before they can take a fault.  The hypervisor's own range is
    // excepted, as its presence is something that they probe for.
    let can_fault = vcpu.traps[usize::from(vector::GENERAL_PROTECTION)].address != 0;
    let fake = !can_fault && msr >> 16 != 0x4000;
    known(msr, vcpu, m, policy).or(fake.then_some(0))
}

fn known(msr: u32, vcpu: &Vcpu, m: &impl Machine, policy: &MsrPolicy) -> Option<u64> {
    let intel = policy.vendor == Vendor::Intel;
    let amd = policy.vendor == Vendor::Amd;
    Some(match msr {
        nr::FS_BASE => m.fs_base(),
        nr::GS_BASE => m.gs_base(),
        nr::KERNEL_GS_BASE => vcpu.other_gs_base,
        nr::TSC => m.tsc(),
        nr::TSC_AUX if policy.tsc_aux => vcpu.tsc_aux.into(),
        nr::EFER => EFER,
        nr::PAT => PAT,
        nr::APIC_BASE => APIC_BASE | if vcpu.id == 0 { APIC_BOOT_CPU } else { 0 },
        nr::MISC_ENABLE => policy.misc_enable?,
        nr::PLATFORM_ID if intel => policy.platform_id,
        nr::UCODE_REV if intel || amd => policy.microcode,
        nr::PLATFORM_INFO if intel => u64::from(policy.can_fault_cpuid) * CAN_FAULT_CPUID,
        nr::MISC_FEATURES_ENABLES => vcpu.misc_features,
        nr::ARCH_CAPABILITIES => policy.arch_capabilities?,
        nr::SPEC_CTRL if policy.spec_ctrl.is_some() => vcpu.spec_ctrl,
        nr::PERF_CAPABILITIES | nr::HYPERCALL => 0,
        nr::PERF_STATUS | nr::PERF_CTL | nr::THERM_STATUS if intel => 0,
        nr::MCG_CAP => MCG_CAP,
        nr::P5_MC_ADDR | nr::P5_MC_TYPE | nr::MCG_STATUS => 0,
        nr::MC0_CTL..=nr::MC31_MISC => 0,
        nr::NB_CFG => 0,
        nr::HWCR | nr::FID_VID_CTL | nr::FID_VID_STATUS if amd => 0,
        nr::PSTATE_LIMIT..=nr::PSTATE7 if amd => 0,
        nr::DE_CFG if amd => LFENCE_SERIALISE,
        _ => vcpu.breakpoint_masks[breakpoint(msr, policy)?].into(),
    })
}

/// Returns which breakpoint an MSR holds the mask of.
fn breakpoint(msr: u32, policy: &MsrPolicy) -> Option<usize> {
    if !policy.breakpoint_masks {
        return None;
    }
    match msr {
        nr::DR0_MASK => Some(0),
        nr::DR1_MASK..=nr::DR3_MASK => Some((msr - nr::DR1_MASK + 1) as usize),
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

/// Writes an MSR of a vCPU that runs on `m`.
pub fn write(
    msr: u32,
    value: u64,
    vcpu: &mut Vcpu,
    m: &mut impl Machine,
    policy: &MsrPolicy,
) -> Written {
    let intel = policy.vendor == Vendor::Intel;
    let amd = policy.vendor == Vendor::Amd;
    let accepted = match msr {
        nr::FS_BASE if canonical(value) => {
            m.set_fs_base(value);
            true
        }
        nr::GS_BASE if canonical(value) => {
            m.exchange_gs_base(value);
            true
        }
        nr::KERNEL_GS_BASE if canonical(value) => {
            vcpu.other_gs_base = value;
            true
        }
        nr::TSC_AUX if policy.tsc_aux => match u32::try_from(value) {
            Ok(short) => {
                vcpu.tsc_aux = short;
                m.write_msr(msr, value);
                true
            }
            Err(_) => false,
        },
        // Nothing in it is the guest's to change. Writing back what was read is no change.
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
                vcpu.misc_features = value;
            }
            valid
        }
        // Reserved bits are refused and not left to the machine, whose fault would be lost
        // (`Machine::write_msr`).
        nr::SPEC_CTRL => {
            let valid = policy.spec_ctrl.is_some_and(|valid| value & !valid == 0);
            if valid {
                vcpu.spec_ctrl = value;
                m.write_msr(msr, value);
            }
            valid
        }
        nr::PRED_CMD => {
            let valid = policy.pred_cmd != 0 && value & !policy.pred_cmd == 0;
            if valid && value != 0 {
                m.write_msr(msr, value);
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
                vcpu.breakpoint_masks[n] = mask;
                m.write_msr(msr, value);
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
