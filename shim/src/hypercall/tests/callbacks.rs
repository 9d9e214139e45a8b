//! Where the guest wants its exceptions and events: trap table and callbacks.

use xen_abi::callback::{self, Register, kind};
use xen_abi::hypercall::{CALLBACK_OP, NMI_OP, SET_CALLBACKS, SET_TRAP_TABLE};
use xen_abi::trap::TrapInfo;
use xen_abi::{Errno, PAGE_SIZE};

use super::{HOLE, UNMAPPED, WILD};
use crate::testing::Bench;

const HANDLER: u64 = Bench::KERNEL + 0x340;

fn info(vector: u8, flags: u8, address: u64) -> TrapInfo {
    TrapInfo {
        vector,
        flags,
        cs: 0,
        pad: 0,
        address,
    }
}

fn register(bench: &mut Bench, kind: u16, flags: u16, address: u64) -> Result<u64, Errno> {
    let arg = bench.arg(&Register {
        kind,
        flags,
        pad: 0,
        address,
    });
    bench.call(CALLBACK_OP, &[callback::REGISTER, arg])
}

#[test]
fn the_trap_table_is_read_up_to_its_end() {
    let mut bench = Bench::new();
    // Across a page border.
    let table = bench.page(6) - 16;
    bench.put(table, &info(14, 4, HANDLER));
    bench.put(table + 16, &info(0x80, 3, HANDLER + 8));
    bench.put(table + 32, &info(14, 0, 0));
    bench.put(table + 48, &info(13, 0, HANDLER));
    assert_eq!(bench.call(SET_TRAP_TABLE, &[table]), Ok(0));
    let traps = &bench.guest.vcpus[0].traps;
    assert_eq!(
        (traps[14].address, traps[14].masks_events()),
        (HANDLER, true)
    );
    assert_eq!((traps[0x80].address, traps[0x80].dpl()), (HANDLER + 8, 3));
    assert_eq!(traps[13].address, 0, "it is behind the end");
    // A later table changes only what it names.
    bench.put(table, &info(3, 3, HANDLER));
    bench.put(table + 16, &info(0, 0, 0));
    assert_eq!(bench.call(SET_TRAP_TABLE, &[table]), Ok(0));
    assert_eq!(bench.guest.vcpus[0].traps[14].address, HANDLER);
    assert_eq!(bench.call(SET_TRAP_TABLE, &[0]), Ok(0));
    assert!(
        bench.guest.vcpus[0]
            .traps
            .iter()
            .all(|trap| trap.address == 0)
    );
}

#[test]
fn a_bad_trap_table_is_taken_up_to_the_mistake() {
    let mut bench = Bench::new();
    for wrong in [WILD, HOLE] {
        let table = bench.page(6);
        bench.put(table, &info(14, 0, HANDLER));
        bench.put(table + 16, &info(13, 0, wrong));
        assert_eq!(bench.call(SET_TRAP_TABLE, &[table]), Err(Errno::EINVAL));
        assert_eq!(bench.guest.vcpus[0].traps[14].address, HANDLER);
        assert_eq!(bench.guest.vcpus[0].traps[13].address, 0);
    }
    assert_eq!(bench.call(SET_TRAP_TABLE, &[UNMAPPED]), Err(Errno::EFAULT));
    assert_eq!(bench.call(SET_TRAP_TABLE, &[HOLE]), Err(Errno::EFAULT));
}

#[test]
fn a_trap_table_without_an_end_ends_with_the_memory() {
    let mut bench = Bench::new();
    let first = bench.page(20);
    for index in 0..10 * PAGE_SIZE as u64 / 16 {
        bench.put(first + index * 16, &info(index as u8, 0, HANDLER));
    }
    let last = bench.page(30);
    assert_eq!(bench.remap(last, xen_abi::mmu::Pte(0)), Ok(0));
    assert_eq!(bench.call(SET_TRAP_TABLE, &[first]), Err(Errno::EFAULT));
}

#[test]
fn callbacks_are_registered_by_kind() {
    let mut bench = Bench::new();
    for (offset, kind) in [
        kind::EVENT,
        kind::FAILSAFE,
        kind::SYSCALL,
        kind::SYSENTER,
        kind::SYSCALL32,
    ]
    .into_iter()
    .enumerate()
    {
        let address = HANDLER + offset as u64;
        assert_eq!(
            register(&mut bench, kind, callback::MASK_EVENTS, address),
            Ok(0)
        );
    }
    let vcpu = &bench.guest.vcpus[0];
    let all = [
        vcpu.event,
        vcpu.failsafe,
        vcpu.syscall,
        vcpu.sysenter,
        vcpu.syscall32,
    ];
    for (offset, callback) in all.into_iter().enumerate() {
        assert_eq!(callback.address, HANDLER + offset as u64);
        assert!(callback.masks_events);
    }
    assert_eq!(register(&mut bench, kind::SYSCALL, 0, HANDLER), Ok(0));
    assert!(!bench.guest.vcpus[0].syscall.masks_events);
}

#[test]
fn bad_callbacks_are_refused() {
    let mut bench = Bench::new();
    for kind in [3, 6, 8, u16::MAX] {
        assert_eq!(register(&mut bench, kind, 0, HANDLER), Err(Errno::ENOSYS));
    }
    for address in [WILD, HOLE] {
        let answer = register(&mut bench, kind::EVENT, 0, address);
        assert_eq!(answer, Err(Errno::EINVAL));
    }
    assert_eq!(bench.guest.vcpus[0].event.address, 0);
    for va in [0, UNMAPPED, HOLE] {
        for command in [callback::REGISTER, callback::UNREGISTER] {
            let answer = bench.call(CALLBACK_OP, &[command, va]);
            assert_eq!(answer, Err(Errno::EFAULT));
        }
    }
    let answer = bench.call(CALLBACK_OP, &[2, Bench::KERNEL]);
    assert_eq!(answer, Err(Errno::ENOSYS));
}

#[test]
fn only_the_nmi_callback_can_be_unregistered() {
    let mut bench = Bench::new();
    assert_eq!(register(&mut bench, kind::NMI, 0, HANDLER), Ok(0));
    let nmi = bench.guest.vcpus[0].traps[2];
    assert_eq!((nmi.address, nmi.vector), (HANDLER, 2));
    assert!(nmi.masks_events());
    let mut unregister = |kind: u16| {
        let arg = bench.arg(&kind);
        bench.call(CALLBACK_OP, &[callback::UNREGISTER, arg])
    };
    assert_eq!(unregister(kind::NMI), Ok(0));
    for kind in [0, 1, 2, 5, 7] {
        assert_eq!(unregister(kind), Err(Errno::EINVAL), "kind {kind}");
    }
    for kind in [3, 6, 8] {
        assert_eq!(unregister(kind), Err(Errno::ENOSYS), "kind {kind}");
    }
    assert_eq!(bench.guest.vcpus[0].traps[2].address, 0);
}

#[test]
fn the_older_forms_do_the_same() {
    let mut bench = Bench::new();
    let set = [HANDLER, HANDLER + 1, HANDLER + 2];
    assert_eq!(bench.call(SET_CALLBACKS, &set), Ok(0));
    let vcpu = &bench.guest.vcpus[0];
    let got = [vcpu.event, vcpu.failsafe, vcpu.syscall].map(|callback| callback.address);
    assert_eq!(got, set);
    // It always succeeds, and what can not be stays as it was.
    assert_eq!(bench.call(SET_CALLBACKS, &[WILD, 0, HANDLER]), Ok(0));
    let vcpu = &bench.guest.vcpus[0];
    let got = [vcpu.event, vcpu.failsafe, vcpu.syscall].map(|callback| callback.address);
    assert_eq!(got, [HANDLER, 0, HANDLER]);

    let arg = bench.arg(&[HANDLER, 0u64]);
    assert_eq!(bench.call(NMI_OP, &[0, arg]), Ok(0));
    assert_eq!(bench.guest.vcpus[0].traps[2].address, HANDLER);
    assert_eq!(bench.call(NMI_OP, &[1, 0]), Ok(0));
    assert_eq!(bench.guest.vcpus[0].traps[2].address, 0);
    assert_eq!(bench.call(NMI_OP, &[2, 0]), Err(Errno::ENOSYS));
    assert_eq!(bench.call(NMI_OP, &[0, HOLE]), Err(Errno::EFAULT));
}
