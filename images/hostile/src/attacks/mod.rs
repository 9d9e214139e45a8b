//! The fixed attacks.

mod balloon;
mod descriptors;
mod events;
mod instructions;
mod mapping;
mod pointers;
mod tables;
mod user;

use xen_abi::hypercall as nr;
use xen_abi::mmu::{MmuExtOp, MmuUpdate};

pub use instructions::{PRIVILEGED, watch};
pub use mapping::first_foreign;
pub use pointers::is_deadly;

use crate::memory::SCRATCH;
use crate::trap::{self, Regs, observed};
use crate::verdict::{Answer, Verdicts};

/// Runs all of them.
pub fn all(verdicts: &mut Verdicts) {
    let before = crate::memory::text_sum();
    // Before any attack steps through code, which DR6 remembers.
    instructions::first_values(verdicts);
    // Before others, since a vCPU's info can be moved once.
    events::registrations(verdicts);
    mapping::all(verdicts);
    tables::all(verdicts);
    descriptors::all(verdicts);
    instructions::all(verdicts);
    user::all(verdicts);
    balloon::all(verdicts);
    events::all(verdicts);
    pointers::all(verdicts);
    trap::repair();
    verdicts.quietly(
        format_args!("the text has changed"),
        before == crate::memory::text_sum(),
    );
}

/// Makes a hypercall and says what it answered; what a call must not touch must survive.
pub fn call(number: u64, args: [u64; 5]) -> Answer {
    let mut regs = Regs::call(number, args);
    let before = regs;
    let end = observed(&mut regs);
    let answer = Answer::of_call(end, &regs);
    if answer.is_refusal() || regs.kept(&before) {
        answer
    } else {
        Answer::Is("registers-changed")
    }
}

/// One request of `mmu_update`.
pub fn update(ptr: u64, val: u64) -> Answer {
    SCRATCH.set(0, ptr);
    SCRATCH.set(1, val);
    const { assert!(size_of::<MmuUpdate>() == 16) };
    call(nr::MMU_UPDATE, [SCRATCH.va(0), 1, 0, 0x7ff0, 0])
}

/// One operation of `mmuext_op`.
pub fn extended(command: u32, arg1: u64, arg2: u64) -> Answer {
    SCRATCH.set(0, command.into());
    SCRATCH.set(1, arg1);
    SCRATCH.set(2, arg2);
    const { assert!(size_of::<MmuExtOp>() == 24) };
    call(nr::MMUEXT_OP, [SCRATCH.va(0), 1, 0, 0x7ff0, 0])
}
