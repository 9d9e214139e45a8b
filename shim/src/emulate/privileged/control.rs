//! Control registers as a PV guest has them, and the aliases among its debug registers.

use super::super::regs::retire;
use super::Outcome;
use super::guest_cpu::{GuestCpu, Loaded};
use crate::cpu::first;
use crate::cpu::{Machine, Regs};
use crate::host::Host;
use crate::registers::{cr0, cr4};

/// `mov` from a control register; there is no CR8.
pub(super) fn read_cr(
    regs: &mut Regs,
    cpu: &GuestCpu<'_, impl Machine, impl Host>,
    cr: u8,
    gpr: u8,
    len: u8,
) -> Outcome {
    let value = match cr {
        0 => cpu.cr0(),
        2 => cpu.cr2(),
        3 => cpu.cr3(),
        4 => cpu.vcpu().cr4,
        _ => return Outcome::NotHandled,
    };
    regs.set_gpr(gpr, value);
    Outcome::Done(retire(regs, len))
}

/// `mov` to a control register.
pub(super) fn write_cr(
    cpu: &mut GuestCpu<'_, impl Machine, impl Host>,
    cr: u8,
    value: u64,
) -> Loaded {
    let done = match cr {
        // Only TS may change, as in Xen's `write_cr`.
        0 if (value ^ cpu.cr0()) & !cr0::TS == 0 => {
            cpu.set_task_switched(value & cr0::TS != 0);
            true
        }
        2 => {
            cpu.set_cr2(value);
            true
        }
        3 => return cpu.set_cr3(value),
        4 => {
            // Bits that are not the guest's to change are corrected without a word (Xen:
            // `pv_fixup_guest_cr4`).
            let settable = cpu.guest.cpuid.cr4_settable();
            cpu.set_cr4(value & settable | first::CR4);
            true
        }
        _ => false,
    };
    done.into()
}

/// Resolves the aliases of the debug registers.
pub(super) fn debug_number(cpu: &GuestCpu<'_, impl Machine, impl Host>, n: u8) -> Option<u8> {
    match n {
        4 | 5 if cpu.vcpu().cr4 & cr4::DE == 0 => Some(n + 2),
        4 | 5 => None,
        _ => Some(n),
    }
}
