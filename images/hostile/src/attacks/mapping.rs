//! Every way to get at a frame, tried on every kind of frame that must stay out of reach.

use xen_abi::callback;
use xen_abi::mmu::{Level, Pte, ext, update as command};
use xen_abi::{GuestVa, Mfn, hypercall as nr, memory as mem};

use super::{call, extended, update};
use crate::m2p;
use crate::memory::{self, GDT, RO, RW, SCRATCH, VICTIMS};
use crate::trap::{self, End, Regs, attempt};
use crate::verdict::{Answer, Verdicts};

/// A frame to attack.
#[derive(Clone, Copy)]
struct Target {
    name: &'static str,
    frame: Mfn,
    /// It is the guest's own, so reading it is allowed.
    is_own: bool,
}

pub(super) fn all(verdicts: &mut Verdicts) {
    let foreign = |name, frame| Target {
        name,
        frame: Mfn(frame),
        is_own: false,
    };
    let own = |name, frame| Target {
        name,
        frame,
        is_own: true,
    };
    let slot = |index| memory::table_entry(memory::root(), index).frame().0;
    let va = SCRATCH.va(0);
    let table = |level| memory::table(level, va).unwrap_or(Mfn(0));
    for target in [
        foreign("hypervisor", first_foreign(0x200)),
        foreign("hypervisor-later", first_foreign(0x400)),
        foreign("m2p-table", slot(256)),
        foreign("hypervisor-slot-261", slot(261)),
        foreign("frame-0", 0),
        foreign("host-shared-info", 0xfe000),
        foreign("host-grant-table", 0xfe100),
        foreign("host-store-ring", 0xfeffc),
        foreign("host-console-ring", 0xfefff),
        foreign("local-apic", 0xfee00),
        foreign("behind-ram", 0x7_ffff_ffff),
        foreign("last-frame", (1 << 40) - 1),
        own("own-l4", table(Level::L4)),
        own("own-l3", table(Level::L3)),
        own("own-l2", table(Level::L2)),
        own("own-l1", table(Level::L1)),
        own("own-gdt", GDT.mfn(0)),
    ] {
        // On real Xen a number may happen to be a frame of ours.
        if target.is_own || !m2p::is_own(target.frame) {
            attack(target, verdicts);
        }
    }
}

/// The first frame from `from` on that is not this domain's.
pub fn first_foreign(from: u64) -> u64 {
    (from..)
        .find(|&frame| !m2p::is_own(Mfn(frame)))
        .unwrap_or(from)
}

fn attack(target: Target, verdicts: &mut Verdicts) {
    let Target {
        name,
        frame,
        is_own,
    } = target;
    let window = memory::window(2);
    let entry = |flags| Pte::new(frame, flags).0;
    let map = |flags| call(nr::UPDATE_VA_MAPPING, [window, entry(flags), 2, 0, 0]);

    verdicts.refused(format_args!("map.{name}.rw"), map(RW));
    let answer = map(RO);
    if is_own {
        verdicts.wanted(format_args!("map.{name}.ro"), answer, &[Answer::Value(0)]);
    } else {
        verdicts.refused(format_args!("map.{name}.ro"), answer);
    }
    map(0);
    memory::map(window, Mfn(0), 0);

    let place = memory::entry_address(Level::L1, window);
    for (kind, flag) in [
        ("normal", command::NORMAL),
        ("keep-ad", command::PRESERVE_AD),
    ] {
        let answer = update(place | flag, entry(RW));
        verdicts.refused(format_args!("map.{name}.mmu-update-{kind}"), answer);
    }
    let answer = store(window, entry(RW));
    verdicts.refused(format_args!("map.{name}.native-store"), answer);
    for (level, index) in [(Level::L2, 300), (Level::L3, 300), (Level::L4, 300)] {
        // Free places: as a table of the level below.
        let place = memory::table(level, window).unwrap_or(Mfn(0)).addr() + index * 8;
        let answer = update(place, entry(RW));
        // A valid table one level lower may be linked twice; only a stranger may not.
        if !is_own {
            verdicts.refused(format_args!("link.{name}.{level:?}"), answer);
        }
        update(place, 0);
    }
    if !is_own {
        for (level, command) in [
            (Level::L1, ext::PIN_L1_TABLE),
            (Level::L2, ext::PIN_L2_TABLE),
            (Level::L3, ext::PIN_L3_TABLE),
            (Level::L4, ext::PIN_L4_TABLE),
        ] {
            let answer = extended(command, frame.0, 0);
            verdicts.refused(format_args!("pin.{name}.{level:?}"), answer);
        }
        verdicts.refused(
            format_args!("unpin.{name}"),
            extended(ext::UNPIN_TABLE, frame.0, 0),
        );
        verdicts.refused(
            format_args!("baseptr.{name}"),
            extended(ext::NEW_BASEPTR, frame.0, 0),
        );
        if frame.0 != 0 {
            verdicts.refused(
                format_args!("user-baseptr.{name}"),
                extended(ext::NEW_USER_BASEPTR, frame.0, 0),
            );
        }
        let answer = update(frame.addr(), 0x5a);
        verdicts.refused(format_args!("write.{name}.mmu-update"), answer);
        let answer = update(frame.addr() | command::MACHPHYS, 1);
        verdicts.refused(format_args!("write.{name}.m2p"), answer);
        let answer = extended(ext::COPY_PAGE, VICTIMS.mfn(0).0, frame.0);
        verdicts.refused(format_args!("read.{name}.copy-page"), answer);
    }
    verdicts.refused(
        format_args!("write.{name}.clear-page"),
        extended(ext::CLEAR_PAGE, frame.0, 0),
    );
    verdicts.refused(
        format_args!("write.{name}.copy-page"),
        extended(ext::COPY_PAGE, frame.0, VICTIMS.mfn(0).0),
    );
    if name != "own-gdt" {
        let answer = call(nr::UPDATE_DESCRIPTOR, [frame.addr() + 8, 0, 0, 0, 0]);
        verdicts.refused(format_args!("write.{name}.descriptor"), answer);
        SCRATCH.set(0, frame.0);
        let answer = call(nr::SET_GDT, [SCRATCH.va(0), 512, 0, 0, 0]);
        verdicts.refused(format_args!("write.{name}.gdt"), answer);
    }
    let answer = hypercall_page(frame);
    verdicts.refused(format_args!("write.{name}.hypercall-page"), answer);
    if !is_own {
        decrease(name, frame, verdicts);
        exotic(name, frame, verdicts);
    }
}

/// Stores an entry through the read-only mapping of the live table.
fn store(va: u64, entry: u64) -> Answer {
    let table = memory::table(Level::L1, va).unwrap_or(Mfn(0));
    let mut regs = Regs::marked();
    regs.rdi = memory::va_of(table) + Level::L1.index(GuestVa(va)) as u64 * 8;
    regs.rax = entry;
    // mov %rax, (%rdi)
    let end = attempt(&[0x48, 0x89, 0x07], &mut regs);
    let stored = memory::entry(Level::L1, va).is_some_and(Pte::is_present);
    if end == End::Done && !stored {
        // Swallowed is as good as refused.
        return Answer::Trap(14);
    }
    Answer::of_code(end)
}

/// Has the hypercall page written to a frame.
fn hypercall_page(frame: Mfn) -> Answer {
    let mut regs = Regs::marked();
    regs.rcx = 0x4000_0000;
    regs.rax = frame.addr() & 0xffff_ffff;
    regs.rdx = frame.addr() >> 32;
    Answer::of_code(attempt(&[0x0f, 0x30], &mut regs))
}

fn decrease(name: &str, frame: Mfn, verdicts: &mut Verdicts) {
    SCRATCH.set(0, frame.0);
    SCRATCH.set(8, SCRATCH.va(0));
    SCRATCH.set(9, 1);
    SCRATCH.set(10, 0);
    SCRATCH.set(11, 0x7ff0);
    let answer = call(
        nr::MEMORY_OP,
        [mem::op::DECREASE_RESERVATION, SCRATCH.va(0) + 64, 0, 0, 0],
    );
    // The answer is how many frames were taken.
    verdicts.note(
        format_args!("balloon.{name}"),
        answer,
        answer == Answer::Value(0) || answer.is_refusal(),
    );
}

/// Ways that no ordinary guest takes.
fn exotic(name: &str, frame: Mfn, verdicts: &mut Verdicts) {
    let scratch = SCRATCH.va(0);
    // VCPUOP_register_vcpu_info
    SCRATCH.set(0, frame.0);
    SCRATCH.set(1, 0);
    let answer = call(nr::VCPU_OP, [10, 0, scratch, 0, 0]);
    verdicts.refused(format_args!("write.{name}.vcpu-info"), answer);
    // EVTCHNOP_init_control and expand_array
    SCRATCH.set(0, frame.0);
    SCRATCH.set(1, 0);
    SCRATCH.set(2, 0);
    let answer = call(nr::EVENT_CHANNEL_OP, [11, scratch, 0, 0, 0]);
    verdicts.refused(format_args!("write.{name}.fifo-control"), answer);
    let answer = call(nr::EVENT_CHANNEL_OP, [12, scratch, 0, 0, 0]);
    verdicts.refused(format_args!("write.{name}.fifo-array"), answer);
    // PHYSDEVOP_pirq_eoi_gmfn_v1 and v2
    for command in [17, 28] {
        SCRATCH.set(0, frame.0);
        let answer = call(nr::PHYSDEV_OP, [command, scratch, 0, 0, 0]);
        verdicts.refused(format_args!("write.{name}.pirq-{command}"), answer);
    }
    // XENMEM_add_to_physmap: the shared info page, in its place
    SCRATCH.set(0, 0x7ff0);
    SCRATCH.set(1, 0);
    SCRATCH.set(2, frame.0);
    let answer = call(nr::MEMORY_OP, [mem::op::ADD_TO_PHYSMAP, scratch, 0, 0, 0]);
    verdicts.refused(format_args!("write.{name}.physmap"), answer);
    // NMI_op and CALLBACK_op take addresses: one of the direct map over it.
    SCRATCH.set(0, u64::from(callback::kind::EVENT));
    SCRATCH.set(1, 0xffff_8300_0000_0000 | frame.addr() & 0x7f_ffff_ffff);
    let answer = call(nr::CALLBACK_OP, [callback::REGISTER, scratch, 0, 0, 0]);
    trap::repair_callbacks();
    // Xen takes any canonical address; entering it faults.
    verdicts.note(format_args!("run.{name}.callback"), answer, true);
}
