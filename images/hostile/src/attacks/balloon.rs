//! Frames given back while they are in use, given back twice, and what comes in their place.

use xen_abi::memory::op;
use xen_abi::{Mfn, Pfn, hypercall as nr};

use super::call;
use crate::leak::holds_only;
use crate::m2p;
use crate::memory::{self, GDT, RO, RW, SCRATCH, VICTIMS};
use crate::verdict::{Answer, Verdicts};

/// What is left in a frame that is given back.
const SECRET: u64 = 0x5ec2_e7f2_a3e0_0001;

/// Asks for `count` frames to be taken or given, whose numbers stand in scratch page 1.
pub fn reservation(command: u64, count: u64, order: u64, domid: u64) -> Answer {
    SCRATCH.set(0, SCRATCH.va(1));
    SCRATCH.set(1, count);
    SCRATCH.set(2, order);
    SCRATCH.set(3, domid);
    call(nr::MEMORY_OP, [command, SCRATCH.va(0), 0, 0, 0])
}

fn give_back(frame: Mfn) -> Answer {
    SCRATCH.set(512, frame.0);
    reservation(op::DECREASE_RESERVATION, 1, 0, 0x7ff0)
}

pub(super) fn all(verdicts: &mut Verdicts) {
    let nothing = Answer::Value(0);
    for (name, frame) in [
        ("own-l4", memory::root()),
        ("own-gdt", GDT.mfn(0)),
        ("mapped", VICTIMS.mfn(8)),
        ("shared-info", Mfn::of(memory::shared_info())),
        ("text", memory::mfn_of(memory::text())),
    ] {
        let answer = give_back(frame);
        // Xen takes a frame that is still mapped off the domain's books and frees it when the last
        // mapping goes; where that is said to have happened it must still be readable.
        verdicts.note(
            format_args!("balloon.{name}"),
            answer,
            answer == nothing || answer.is_refusal() || name == "mapped" || name == "text",
        );
    }
    frames(verdicts);
    arguments(verdicts);
}

/// Gives eight frames back and takes eight again, twice.
fn frames(verdicts: &mut Verdicts) {
    const COUNT: u64 = 8;
    let window = memory::window(3);
    let first = memory::nr_pages() - 64;
    for round in 0..2 {
        for n in 0..COUNT {
            let frame = memory::mfn(Pfn(first + n));
            memory::map(window, frame, RW);
            for at in (window..window + 4096).step_by(8) {
                // SAFETY: the frame is this domain's and was mapped above.
                unsafe { (at as *mut u64).write_volatile(SECRET) };
            }
            memory::map(window, Mfn(0), 0);
            SCRATCH.set(512 + n as usize, frame.0);
        }
        let answer = reservation(op::DECREASE_RESERVATION, COUNT, 0, 0x7ff0);
        verdicts.wanted(
            format_args!("balloon.out-{round}"),
            answer,
            &[Answer::Value(COUNT)],
        );
        let frame = memory::mfn(Pfn(first));
        let answer = Answer::of(memory::map(window, frame, RO));
        verdicts.refused(format_args!("balloon.map-gone-{round}"), answer);
        memory::map(window, Mfn(0), 0);
        verdicts.wanted(
            format_args!("balloon.out-twice-{round}"),
            give_back(frame),
            &[Answer::Value(0)],
        );
        (0..COUNT).for_each(|n| SCRATCH.set(512 + n as usize, first + n));
        let answer = reservation(op::POPULATE_PHYSMAP, COUNT, 0, 0x7ff0);
        verdicts.wanted(
            format_args!("balloon.in-{round}"),
            answer,
            &[Answer::Value(COUNT)],
        );
        for n in 0..COUNT {
            let frame = Mfn(SCRATCH.get(512 + n as usize));
            memory::set_mfn(Pfn(first + n), frame);
            let mapped = memory::map(window, frame, RO) == 0;
            verdicts.quietly(
                format_args!("balloon.in-{round}: frame {frame:?} can not be mapped"),
                mapped,
            );
            verdicts.quietly(
                format_args!("balloon.in-{round}: frame {frame:?} is neither clear nor as it was"),
                mapped && holds_only(window, SECRET),
            );
            verdicts.quietly(
                format_args!("balloon.in-{round}: frame {frame:?} has another number"),
                m2p::m2p(frame) == Some(first + n),
            );
            memory::map(window, Mfn(0), 0);
        }
    }
}

fn arguments(verdicts: &mut Verdicts) {
    let harmless = |answer: Answer| answer.is_refusal() || answer == Answer::Value(0);
    for command in [
        op::INCREASE_RESERVATION,
        op::DECREASE_RESERVATION,
        op::POPULATE_PHYSMAP,
    ] {
        SCRATCH.set(512, memory::root().0);
        for (name, count, order, domid) in [
            ("order-9", 1u64, 9u64, 0x7ff0u64),
            ("order-63", 1, 63, 0x7ff0),
            ("order-all", 1, 0xffff_ffff, 0x7ff0),
            ("count-all", !0, 0, 0x7ff0),
            ("domain-0", 1, 0, 0),
            ("domain-xen", 1, 0, 0x7ff2),
        ] {
            let answer = reservation(command, count, order, domid);
            let fine = harmless(answer) || name == "order-9" && command == op::POPULATE_PHYSMAP;
            verdicts.note(format_args!("memory-{command}.{name}"), answer, fine);
        }
        for list in [0xffff_8300_0000_0000u64, 0x8000_0000_0000, !7, 0x1000] {
            SCRATCH.set(0, list);
            SCRATCH.set(1, 16);
            SCRATCH.set(2, 0);
            SCRATCH.set(3, 0x7ff0);
            let answer = call(nr::MEMORY_OP, [command, SCRATCH.va(0), 0, 0, 0]);
            verdicts.note(
                format_args!("memory-{command}.list-{list:#x}"),
                answer,
                harmless(answer),
            );
        }
        let answer = call(nr::MEMORY_OP, [command | !0 << 6, SCRATCH.va(0), 0, 0, 0]);
        verdicts.note(
            format_args!("memory-{command}.start-all"),
            answer,
            answer != Answer::Value(1),
        );
    }
    SCRATCH.set(512, 3);
    let answer = reservation(op::POPULATE_PHYSMAP, 1, 0, 0x7ff0);
    verdicts.note(
        format_args!("memory.more-than-maximum"),
        answer,
        harmless(answer),
    );
}
