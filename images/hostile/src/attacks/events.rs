//! Ports, vCPU operations, multicalls, grants, polls: numbers out of range and calls inside calls.

use xen_abi::evtchn::op;
use xen_abi::{Mfn, hypercall as nr};

use super::call;
use crate::console;
use crate::memory::{self, SCRATCH, VICTIMS};
use crate::trap;
use crate::verdict::{Answer, Verdicts};

/// The vCPU's info, to bad places and then to a good one.
pub(super) fn registrations(verdicts: &mut Verdicts) {
    let register = |frame: Mfn, offset: u64, vcpu| {
        SCRATCH.set(0, frame.0);
        SCRATCH.set(1, offset);
        call(nr::VCPU_OP, [10, vcpu, SCRATCH.va(0), 0, 0])
    };
    let frame = VICTIMS.mfn(31);
    for (name, frame, offset, vcpu) in [
        ("unaligned", frame, 4u64, 0u64),
        ("over-the-end", frame, 4096 - 56, 0),
        ("offset-all", frame, 0xffff_ffff, 0),
        ("own-l4", memory::root(), 0, 0),
        ("frame-all", Mfn(!0), 0, 0),
        ("vcpu-1000", frame, 0, 1000),
        ("vcpu-all", frame, 0, !0),
    ] {
        verdicts.refused(
            format_args!("vcpu-info.{name}"),
            register(frame, offset, vcpu),
        );
    }
    // Before it happens, since an event is raised in the new place at once.
    trap::info_moved(VICTIMS.va(31) + 64);
    let answer = register(frame, 64, 0);
    verdicts.wanted(format_args!("vcpu-info.good"), answer, &[Answer::Value(0)]);
    verdicts.refused(format_args!("vcpu-info.twice"), register(frame, 128, 0));
}

pub(super) fn all(verdicts: &mut Verdicts) {
    ports(verdicts);
    vcpus(verdicts);
    multicalls(verdicts);
    grants(verdicts);
    waiting(verdicts);
}

fn ports(verdicts: &mut Verdicts) {
    let scratch = SCRATCH.va(0);
    for port in [0u64, 1000, 4095, 4096, 0x8000_0000, 0xffff_ffff] {
        for command in [op::CLOSE, op::SEND, op::UNMASK, op::BIND_VCPU] {
            SCRATCH.set(0, port);
            let answer = call(nr::EVENT_CHANNEL_OP, [command, scratch, 0, 0, 0]);
            // Unmasking a port that nothing is bound to changes a bit of the guest's own.
            let fine = answer.is_refusal() || command == op::UNMASK && port < 4096;
            verdicts.note(format_args!("port-{port:#x}.{command}"), answer, fine);
        }
        SCRATCH.set(0, 0x7ff0 | port << 32);
        SCRATCH.set(1, 0);
        SCRATCH.set(2, 0);
        let answer = call(nr::EVENT_CHANNEL_OP, [op::STATUS, scratch, 0, 0, 0]);
        let fine = answer.is_refusal() || SCRATCH.get(1) & 0xffff_ffff == 0;
        verdicts.note(format_args!("port-{port:#x}.status"), answer, fine);
    }
    for (name, virq, vcpu) in [
        ("virq-all", 0xffff_ffffu64, 0u64),
        ("virq-24", 24, 0),
        ("vcpu-32", 0, 32),
        ("vcpu-all", 0, 0xffff_ffff),
        ("again", 0, 0),
    ] {
        SCRATCH.set(0, virq | vcpu << 32);
        SCRATCH.set(1, 0);
        let answer = call(nr::EVENT_CHANNEL_OP, [op::BIND_VIRQ, scratch, 0, 0, 0]);
        verdicts.refused(format_args!("bind-virq.{name}"), answer);
    }
    SCRATCH.set(0, 0xffff_ffff);
    let answer = call(nr::EVENT_CHANNEL_OP, [op::BIND_IPI, scratch, 0, 0, 0]);
    verdicts.refused(format_args!("bind-ipi.vcpu-all"), answer);
    SCRATCH.set(0, u64::from(console::port()) | 99 << 32);
    let answer = call(nr::EVENT_CHANNEL_OP, [op::BIND_VCPU, scratch, 0, 0, 0]);
    verdicts.refused(format_args!("bind-vcpu.vcpu-99"), answer);
    SCRATCH.set(0, 0x7ff0 | 0xffff_fff0 << 32);
    SCRATCH.set(1, 0);
    let answer = call(
        nr::EVENT_CHANNEL_OP,
        [op::BIND_INTERDOMAIN, scratch, 0, 0, 0],
    );
    verdicts.refused(format_args!("bind-interdomain.port"), answer);
    SCRATCH.set(0, 0x7ff5);
    let answer = call(
        nr::EVENT_CHANNEL_OP,
        [op::BIND_INTERDOMAIN, scratch, 0, 0, 0],
    );
    verdicts.refused(format_args!("bind-interdomain.domain"), answer);
    // All ports that there are, and then all given back.
    let mut made = 0u64;
    loop {
        SCRATCH.set(0, 0x7ff0);
        if call(nr::EVENT_CHANNEL_OP, [op::ALLOC_UNBOUND, scratch, 0, 0, 0]) != Answer::Value(0) {
            break;
        }
        made += 1;
        if made == 8192 {
            break;
        }
    }
    verdicts.note(
        format_args!("ports.exhausted ({made})"),
        Answer::Is("counted"),
        made < 8192,
    );
    for port in (console::port().max(2) + 1)..4096 {
        SCRATCH.set(0, 0x7ff0 | u64::from(port) << 32);
        SCRATCH.set(1, 0);
        call(nr::EVENT_CHANNEL_OP, [op::STATUS, scratch, 0, 0, 0]);
        // EVTCHNSTAT_unbound
        if SCRATCH.get(1) & 0xffff_ffff == 1 && SCRATCH.get(2) & 0xffff == SCRATCH.get(2) & 0x7fff {
            SCRATCH.set(0, port.into());
            call(nr::EVENT_CHANNEL_OP, [op::CLOSE, scratch, 0, 0, 0]);
        }
    }
}

fn vcpus(verdicts: &mut Verdicts) {
    let scratch = SCRATCH.va(0);
    for command in 0..20 {
        for vcpu in [32u64, 1000, !0] {
            let answer = call(nr::VCPU_OP, [command, vcpu, scratch, 0, 0]);
            verdicts.refused(format_args!("vcpu-op-{command}.{vcpu:#x}"), answer);
        }
    }
    // A runstate area where nothing can be written: nothing is, and nothing breaks.
    for address in [
        0xffff_8300_0000_0000u64,
        0x8000_0000_0000,
        0x1000,
        memory::text(),
        !7,
    ] {
        SCRATCH.set(0, address);
        let answer = call(nr::VCPU_OP, [5, 0, scratch, 0, 0]);
        call(nr::SCHED_OP, [0, 0, 0, 0, 0]);
        verdicts.note(format_args!("runstate-{address:#x}"), answer, true);
    }
    SCRATCH.set(0, 0);
    call(nr::VCPU_OP, [5, 0, scratch, 0, 0]);
    for period in [0u64, 1, 999_999, !0, 1 << 63] {
        SCRATCH.set(0, period);
        let answer = call(nr::VCPU_OP, [6, 0, scratch, 0, 0]);
        verdicts.note(
            format_args!("period-{period:#x}"),
            answer,
            answer.is_refusal() || period > 1 << 40,
        );
    }
    for deadline in [0u64, 1, 1 << 62, 1 << 63, !0] {
        SCRATCH.set(0, deadline);
        SCRATCH.set(1, 1);
        let answer = call(nr::VCPU_OP, [8, 0, scratch, 0, 0]);
        verdicts.note(format_args!("deadline-{deadline:#x}"), answer, true);
        let answer = call(nr::SET_TIMER_OP, [deadline, 0, 0, 0, 0]);
        verdicts.note(format_args!("timer-{deadline:#x}"), answer, true);
    }
    trap::arm();
}

/// Batches inside batches, and results where nothing may be written.
fn multicalls(verdicts: &mut Verdicts) {
    let scratch = SCRATCH.va(0);
    let entry = |at: usize, op, args: [u64; 2]| {
        (0..8).for_each(|word| SCRATCH.set(at * 8 + word, 0));
        SCRATCH.set(at * 8, op);
        SCRATCH.set(at * 8 + 2, args[0]);
        SCRATCH.set(at * 8 + 3, args[1]);
    };
    entry(0, nr::MULTICALL, [scratch, 1]);
    call(nr::MULTICALL, [scratch, 1, 0, 0, 0]);
    verdicts.refused(
        format_args!("multicall.of-itself"),
        Answer::of(SCRATCH.get(1)),
    );
    entry(0, nr::XEN_VERSION, [0, 0]);
    for (name, list, count) in [
        // The last that is mapped is clear: SET_TRAP_TABLE with no table.
        ("count-all", memory::mapped_end() - 64, !0u64),
        ("hole", 0xffff_8300_0000_0000, 1),
        ("m2p", 0xffff_8000_0000_0000, 1),
        ("non-canonical", 0x8000_0000_0000, 1),
        ("top", !63, 2),
        ("unmapped", 0x1000, 1),
        ("read-only", memory::text() & !63, 4),
    ] {
        let answer = call(nr::MULTICALL, [list, count, 0, 0, 0]);
        trap::repair();
        verdicts.note(
            format_args!("multicall.{name}"),
            answer,
            answer.is_refusal() || name == "count-all",
        );
    }
    // A batch that overwrites itself.
    entry(0, nr::XEN_VERSION, [3, scratch]);
    entry(1, nr::XEN_VERSION, [0, 0]);
    let answer = call(nr::MULTICALL, [scratch, 2, 0, 0, 0]);
    verdicts.note(format_args!("multicall.overwrites-itself"), answer, true);
    // An iret in a batch ends it and goes where the stack says.
    entry(0, nr::IRET, [0, 0]);
    entry(1, nr::XEN_VERSION, [0, 0]);
    for (n, value) in [
        0x77,
        0,
        0,
        0,
        trap::done_address(),
        0xe030,
        0x200,
        memory::stack_middle(),
        0xe02b,
    ]
    .into_iter()
    .enumerate()
    {
        memory::set_stack(n, value);
    }
    let mut regs = trap::Regs::call(nr::MULTICALL, [scratch, 2, 0, 0, 0]);
    let end = trap::observed(&mut regs);
    verdicts.note(
        format_args!("multicall.iret"),
        Answer::of_call(end, &regs),
        end == trap::End::Done && regs.rax == 0x77 && SCRATCH.get(9) == 0,
    );
}

/// Grants of what must not be granted are worth nothing; here are the operations themselves.
fn grants(verdicts: &mut Verdicts) {
    let scratch = SCRATCH.va(0);
    for command in 0..16u64 {
        for (name, pointer, count) in [
            ("count-all", scratch, 0xffff_ffffu64),
            ("hole", 0xffff_8300_0000_0000, 1),
            ("non-canonical", 0x8000_0000_0000, 1),
            ("top", !7, 2),
        ] {
            (0..64).for_each(|word| SCRATCH.set(word, 0xffff_ffff_ffff_ffff));
            let answer = call(nr::GRANT_TABLE_OP, [command, pointer, count, 0, 0]);
            // Operations tell each element's outcome in the element.
            verdicts.note(
                format_args!("grant-{command}.{name}"),
                answer,
                answer.is_refusal() || name == "count-all",
            );
        }
    }
    // GNTTABOP_setup_table with the list of frames where nothing may be written, and too many.
    for (name, frames, list) in [
        ("hole", 1u64, 0xffff_8300_0000_0000u64),
        ("read-only", 1, memory::text()),
        ("too-many", 0xffff_ffff, scratch + 2048),
    ] {
        SCRATCH.set(0, 0x7ff0 | frames << 32);
        SCRATCH.set(1, 0);
        SCRATCH.set(2, list);
        let answer = call(nr::GRANT_TABLE_OP, [2, scratch, 1, 0, 0]);
        let status = SCRATCH.get(1) as u16 as i16;
        verdicts.note(
            format_args!("grant-setup.{name} (status {status})"),
            answer,
            answer.is_refusal() || status != 0,
        );
    }
    // A frame of ours is no frame to copy from the hypervisor into.
    for (n, value) in [0x200u64, 0x7ff0, VICTIMS.mfn(0).0, 0x7ff0, 4096]
        .into_iter()
        .enumerate()
    {
        SCRATCH.set(n, value);
    }
    let answer = call(nr::GRANT_TABLE_OP, [5, scratch, 1, 0, 0]);
    let status = (SCRATCH.get(4) >> 32) as u16 as i16;
    verdicts.note(
        format_args!("grant-copy.from-hypervisor (status {status})"),
        answer,
        answer.is_refusal() || status != 0,
    );
}

fn waiting(verdicts: &mut Verdicts) {
    let scratch = SCRATCH.va(0);
    for (name, ports, count) in [
        ("too-many", scratch, 129u64),
        ("count-all", scratch, 0xffff_ffff),
        ("hole", 0xffff_8300_0000_0000, 1),
        ("non-canonical", 0x8000_0000_0000, 1),
        ("port-4096", scratch + 512, 1),
    ] {
        SCRATCH.set(0, ports);
        SCRATCH.set(1, count);
        SCRATCH.set(2, 1);
        SCRATCH.set(64, 4096);
        let answer = call(nr::SCHED_OP, [3, scratch, 0, 0, 0]);
        verdicts.refused(format_args!("poll.{name}"), answer);
    }
    trap::arm();
    let before = trap::events();
    let answer = call(nr::SCHED_OP, [1, 0, 0, 0, 0]);
    verdicts.note(
        format_args!("block"),
        answer,
        answer == Answer::Value(0) && trap::events() > before,
    );
}
