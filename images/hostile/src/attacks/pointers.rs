//! Every hypercall and sub-operation with every kind of bad pointer, told as sums.

use xen_abi::hypercall as nr;

use crate::console::say;
use crate::memory;
use crate::trap::{self, Regs, observed};
use crate::verdict::{Answer, Verdicts};

/// Hypercalls that are tried: all that there are, and some that are not.
const NUMBERS: u64 = 56;
/// Sub-operations of each.
const COMMANDS: u64 = 40;

/// Addresses at which nothing may be written.
fn wild() -> [u64; 14] {
    [
        0,
        1,
        0x1000,
        0x7fff_ffff_fff8,
        0x8000_0000_0000,
        0xffff_7fff_ffff_fff8,
        0xffff_8000_0000_0000,
        0xffff_82d0_4000_0000,
        0xffff_8300_0000_0000,
        0xffff_87ff_ffff_fff8,
        memory::text(),
        memory::va_of(memory::root()),
        !7,
        !0,
    ]
}

/// Calls that end or stop the domain when they do what they are asked to, or that are meant for
/// attacks of their own.
pub fn is_deadly(number: u64, command: u64) -> bool {
    match number {
        nr::IRET => true,
        nr::SCHED_OP | nr::SCHED_OP_COMPAT => matches!(command, 1..=6),
        // VCPUOP_down, VCPUOP_send_nmi
        nr::VCPU_OP => matches!(command, 2 | 11),
        // An event without a callback ends a guest.
        nr::SET_CALLBACKS => command == 0,
        // EVTCHNOP_reset
        nr::EVENT_CHANNEL_OP => command == 10,
        _ => false,
    }
}

pub(super) fn all(verdicts: &mut Verdicts) {
    let before = memory::text_sum();
    for number in 0..NUMBERS {
        let (mut errors, mut values, mut traps) = (0u64, 0u64, 0u64);
        let mut first = [0u64; 4];
        for command in 0..COMMANDS {
            for (index, pointer) in wild().into_iter().enumerate() {
                if is_deadly(number, command) {
                    continue;
                }
                // The pointer is the first, second or third argument, and a count may follow.
                for args in [
                    [command, pointer, 1, 0, 0],
                    [command, 0, pointer, 1, 0],
                    [pointer, 1, 0, 0x7ff0, 0],
                ] {
                    if args[0] == pointer && (command != 0 || is_deadly(number, pointer)) {
                        continue;
                    }
                    let mut regs = Regs::call(number, args);
                    let end = observed(&mut regs);
                    match Answer::of_call(end, &regs) {
                        Answer::Errno(errno) => {
                            errors += 1;
                            if index == 8 && command < 4 && args[1] == pointer {
                                first[command as usize] = errno.0 as u64;
                            }
                        }
                        Answer::Value(_) => values += 1,
                        _ => traps += 1,
                    }
                    if number < 6 || number == nr::CALLBACK_OP || number == nr::SET_DEBUGREG {
                        trap::repair();
                    }
                }
            }
        }
        trap::repair();
        memory::set_gdt();
        say!(
            "attack pointers.{}: {errors} errors {values} values {traps} traps, first {first:?} ok",
            number
        );
    }
    verdicts.quietly(
        format_args!("pointers: the text has changed"),
        before == memory::text_sum(),
    );
    trap::arm();
}
