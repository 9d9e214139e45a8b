//! Control registers as a PV guest has them, and the aliases among its debug registers.

use super::super::regs::{RegisterFile, retire};
use super::{Loaded, Outcome, PrivilegedState};

/// `CR0.TS`, the only bit of CR0 that the guest may change.
pub const CR0_TS: u64 = 1 << 3;
/// `CR4.TSD`: processes may not read the time-stamp counter.
pub const CR4_TSD: u64 = 1 << 2;
/// `CR4.DE`: DR4 and DR5 are no aliases of DR6 and DR7.
pub const CR4_DE: u64 = 1 << 3;
/// `CR4.FSGSBASE`
pub const CR4_FSGSBASE: u64 = 1 << 16;
/// `CR4.OSXSAVE`
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// What a guest always reads as set in CR4: PAE, MCE, OSFXSR and OSXMMEXCPT.
pub const CR4_FIXED: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10;

/// `mov` from a control register; there is no CR8.
pub(super) fn read_cr(
    regs: &mut impl RegisterFile,
    state: &impl PrivilegedState,
    cr: u8,
    gpr: u8,
    len: u8,
) -> Outcome {
    let value = match cr {
        0 => state.cr0(),
        2 => state.cr2(),
        3 => state.cr3(),
        4 => state.cr4(),
        _ => return Outcome::NotHandled,
    };
    regs.set_gpr(gpr, value);
    Outcome::Done(retire(regs, len))
}

/// `mov` to a control register.
pub(super) fn write_cr(state: &mut impl PrivilegedState, cr: u8, value: u64) -> Loaded {
    let done = match cr {
        0 if (value ^ state.cr0()) & !CR0_TS == 0 => {
            state.set_task_switched(value & CR0_TS != 0);
            true
        }
        2 => {
            state.set_cr2(value);
            true
        }
        3 => return state.set_cr3(value),
        4 => {
            let settable = state.cpuid().cr4_settable();
            state.set_cr4(value & settable | CR4_FIXED);
            true
        }
        _ => false,
    };
    done.into()
}

/// Resolves the aliases of the debug registers.
pub(super) fn debug_number(state: &impl PrivilegedState, n: u8) -> Option<u8> {
    match n {
        4 | 5 if state.cr4() & CR4_DE == 0 => Some(n + 2),
        4 | 5 => None,
        _ => Some(n),
    }
}
