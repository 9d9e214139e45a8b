//! `vcpu_op` but for timers: which vCPUs there are, where their info lives, NMIs.

use xen_abi::hypercall::{CALLBACK_OP, VCPU_OP};
use xen_abi::mmu::Pte;
use xen_abi::shared_info::vcpu_info;
use xen_abi::vcpu::{RegisterVcpuInfo, op};
use xen_abi::{Errno, Mfn, callback};

use super::{HOLE, UNMAPPED};
use crate::mem::Frames;
use crate::testing::Bench;

const HANDLER: u64 = Bench::KERNEL + 0x200;

fn register(bench: &mut Bench, mfn: u64, offset: u32) -> Result<u64, Errno> {
    let arg = bench.arg(&RegisterVcpuInfo {
        mfn,
        offset,
        rsvd: 0,
    });
    bench.call(VCPU_OP, &[op::REGISTER_VCPU_INFO, 0, arg])
}

#[test]
fn there_is_one_vcpu_and_it_is_up() {
    let mut bench = Bench::new();
    assert_eq!(bench.call(VCPU_OP, &[op::IS_UP, 0, 0]), Ok(1));
    for id in [1, 32, 1 << 32, u64::MAX] {
        for command in [op::IS_UP, op::UP, op::SEND_NMI, 99] {
            let answer = bench.call(VCPU_OP, &[command, id, 0]);
            assert_eq!(answer, Err(Errno::ENOENT), "vcpu {id}");
        }
    }
    assert_eq!(bench.call(VCPU_OP, &[op::UP, 0, 0]), Ok(0));
    let again = bench.call(VCPU_OP, &[op::INITIALISE, 0, 0]);
    assert_eq!(again, Err(Errno::EEXIST));
    let physid = bench.call(VCPU_OP, &[op::GET_PHYSID, 0, 0]);
    assert_eq!(physid, Err(Errno::EINVAL));
    for command in [op::REGISTER_VCPU_TIME_MEMORY_AREA, 14, 15, 99] {
        let answer = bench.call(VCPU_OP, &[command, 0, 0]);
        assert_eq!(answer, Err(Errno::ENOSYS), "command {command}");
    }
}

#[test]
fn the_info_moves_with_what_it_holds_and_everything_counts_as_pending() {
    let mut bench = Bench::new();
    let at = bench.page(7) + 0x840;
    let frame = bench.frame(at);
    bench
        .guest
        .m
        .store64(Bench::SHARED_INFO, vcpu_info::CR2, 0x1234_5678);
    bench.mask_events(true);
    assert_eq!(register(&mut bench, frame.0, 0x840), Ok(0));
    assert_eq!(bench.get::<u64>(at + vcpu_info::CR2 as u64), 0x1234_5678);
    assert_eq!(bench.get::<u64>(at + vcpu_info::PENDING_SEL as u64), !0);
    assert_eq!(bench.upcall(), (1, 1));
    assert_eq!(bench.get::<[u8; 2]>(at), [1, 1]);
    let here = bench.guest_clock();
    assert_eq!(here, bench.guest.now());
    // From now on everything about the vCPU happens there, and only there.
    bench.take_events();
    let port = bench.bind_virq(xen_abi::evtchn::virq::DEBUG);
    bench
        .guest
        .m
        .store8(Bench::SHARED_INFO, vcpu_info::UPCALL_PENDING, 0);
    let guest = &bench.guest;
    guest.channels.raise(&guest.m, &guest.vcpus, port);
    assert_eq!(bench.get::<[u8; 2]>(at), [1, 1]);
    let old = bench
        .guest
        .m
        .load8(Bench::SHARED_INFO, vcpu_info::UPCALL_PENDING);
    assert_eq!(old, 0);
    assert_eq!(register(&mut bench, frame.0, 0x900), Err(Errno::EBUSY));
    bench.check();
}

#[test]
fn the_info_must_lie_on_one_writable_page_of_the_guest() {
    let mut bench = Bench::new();
    let frame = {
        let page = bench.page(7);
        bench.frame(page).0
    };
    let table = bench.layout.tables.start;
    let table = bench.mfn(table).0;
    let cases = [
        (frame, 4, Errno::ENXIO),
        (frame, 4096 - 56, Errno::ENXIO),
        (frame, 8192, Errno::ENXIO),
        (frame, u32::MAX, Errno::ENXIO),
        (table, 0, Errno::EACCES),
        (Bench::SHIM.0, 0, Errno::EINVAL),
        (Bench::END.0 - 1, 0, Errno::EINVAL),
        (u64::MAX, 0, Errno::EINVAL),
    ];
    for (mfn, offset, expected) in cases {
        let answer = register(&mut bench, mfn, offset);
        assert_eq!(answer, Err(expected), "{mfn:#x} + {offset:#x}");
    }
    let answer = bench.call(VCPU_OP, &[op::REGISTER_VCPU_INFO, 0, HOLE]);
    assert_eq!(answer, Err(Errno::EFAULT));
    assert_eq!(register(&mut bench, frame, 4096 - 64), Ok(0));
    // Its page can not become a table, nor go back to the host.
    let page = bench.page(7);
    let gone = bench.remap(page, Pte(0));
    assert_eq!(gone, Ok(0));
    let pin = bench.mmuext(xen_abi::mmu::ext::PIN_L1_TABLE, frame, 0);
    assert_eq!(pin, Err(Errno::EINVAL));
    let release = bench.mm().release(Mfn(frame), &FakeM2p);
    assert_eq!(release.map(|_| ()), Err(Errno::EBUSY));
}

struct FakeM2p;

impl crate::mm::M2p for FakeM2p {
    fn set(&self, _: Mfn, _: u64) {}
}

fn send_nmi(bench: &mut Bench) -> Result<u64, Errno> {
    bench.call(VCPU_OP, &[op::SEND_NMI, 0, 0])
}

#[test]
fn an_nmi_without_a_handler_is_lost() {
    let mut bench = Bench::new();
    let rip = bench.regs.rip;
    assert_eq!(send_nmi(&mut bench), Ok(0));
    assert_eq!(bench.regs.rip, rip + 2);
    assert!(!bench.guest.vcpus[0].nmi_pending);
    assert!(!bench.guest.vcpus[0].nmi_blocked);
    let answer = bench.call(VCPU_OP, &[op::SEND_NMI, 0, Bench::KERNEL]);
    assert_eq!(answer, Err(Errno::EINVAL));
}

#[test]
fn an_nmi_waits_for_the_return_from_the_one_before() {
    let mut bench = Bench::new();
    let arg = bench.arg(&callback::Register {
        kind: callback::kind::NMI,
        flags: 0,
        pad: 0,
        address: HANDLER,
    });
    assert_eq!(bench.call(CALLBACK_OP, &[callback::REGISTER, arg]), Ok(0));
    bench.mask_events(false);
    let rip = bench.regs.rip;
    assert_eq!(send_nmi(&mut bench), Ok(0));
    assert_eq!(bench.regs.rip, HANDLER);
    assert_eq!(bench.upcall().1, 1, "its handler starts with events masked");
    assert_eq!(bench.get::<u64>(bench.regs.rsp + 16), rip + 2);
    assert_eq!(send_nmi(&mut bench), Ok(0));
    assert_eq!(bench.regs.rip, HANDLER + 2, "one at a time");
    // Any iret ends it; the next one comes on that very way back.
    let context = xen_abi::trap::IretContext {
        rip: rip + 2,
        cs: 0xe030,
        rflags: 0x202,
        rsp: bench.page(9),
        ss: 0xe02b,
        ..Default::default()
    };
    bench.iret(&context);
    assert_eq!(bench.regs.rip, HANDLER);
    assert_eq!(bench.get::<u64>(bench.regs.rsp + 16), rip + 2);
    bench.iret(&context);
    assert_eq!(bench.regs.rip, rip + 2);
    let answer = bench.call(VCPU_OP, &[op::GET_RUNSTATE_INFO, 0, UNMAPPED]);
    assert_eq!(answer, Err(Errno::EFAULT));
}
