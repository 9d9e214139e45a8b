//! The small families, and everything that is not there.

use xen_abi::grant::{self, CopyOp, QuerySize};
use xen_abi::hypercall as nr;
use xen_abi::mmu::{FIRST_XEN_SLOT, ext};
use xen_abi::physdev::{SetIobitmap, op as physdev};
use xen_abi::trap::vector;
use xen_abi::{DomId, Errno};

use super::{HOLE, SELF, UNMAPPED, WILD};
use crate::cpu::Assist;
use crate::host::HostEvent;
use crate::mem::Frames;
use crate::testing::{Bench, Flushed};

const HANDLER: u64 = Bench::KERNEL + 0x500;

#[test]
fn what_is_not_there_answers_enosys() {
    let mut bench = Bench::new();
    let absent = [
        nr::SCHED_OP_COMPAT,
        nr::PLATFORM_OP,
        11,
        nr::EVENT_CHANNEL_OP_COMPAT,
        nr::PHYSDEV_OP_COMPAT,
        nr::UPDATE_VA_MAPPING_OTHERDOMAIN,
        nr::XSM_OP,
        nr::XENOPROF_OP,
        nr::HVM_OP,
        nr::SYSCTL,
        nr::DOMCTL,
        nr::KEXEC_OP,
        nr::TMEM_OP,
        nr::ARGO_OP,
        nr::XENPMU_OP,
        nr::DM_OP,
        nr::HYPFS_OP,
        43,
        48,
        63,
        64,
        1 << 32,
        u64::MAX,
    ];
    for number in absent {
        let before = bench.regs;
        let is_sysret = bench.syscall(number, &[1, 2, 3, 4, 5]);
        assert_eq!(Errno::from_rax(bench.regs.rax), Err(Errno::ENOSYS));
        assert!(is_sysret, "the way back is the fast one");
        // Nothing but rax, rcx and r11 changes in a hypercall.
        let mut expected = before;
        (expected.rdi, expected.rsi, expected.rdx) = (1, 2, 3);
        (expected.r10, expected.r8) = (4, 5);
        expected.rip += 2;
        expected.rcx = expected.rip;
        expected.r11 = expected.rflags;
        expected.rax = Errno::ENOSYS.to_rax();
        expected.vector = bench.regs.vector;
        assert_eq!(bench.regs, expected, "hypercall {number}");
    }
}

#[test]
fn grant_calls_go_to_their_point() {
    let mut bench = Bench::new();
    let answer = bench.call(nr::GRANT_TABLE_OP, &[99, 0x1000, 1]);
    assert_eq!(answer, Err(Errno::ENOSYS), "as the point says");
    let arg = bench.arg(&QuerySize {
        dom: DomId::SELF.0,
        ..QuerySize::default()
    });
    let answer = bench.call(nr::GRANT_TABLE_OP, &[grant::op::QUERY_SIZE, arg, 1]);
    assert_eq!(answer, Ok(0));
    assert_eq!(bench.get::<QuerySize>(arg).nr_frames, 1);
    // What it leaves of a list is asked for again.
    let rip = bench.regs.rip;
    let list = bench.page(2);
    let size = size_of::<CopyOp>() as u64;
    (0..5).for_each(|nr| bench.put(list + nr * size, &CopyOp::default()));
    bench.guest.host.events.push_back(HostEvent::Console);
    bench.syscall(nr::GRANT_TABLE_OP, &[grant::op::COPY, list, 5]);
    let left = [bench.regs.rdi, bench.regs.rsi, bench.regs.rdx];
    assert_eq!(
        (bench.regs.rip, left),
        (rip, [grant::op::COPY, list + size, 4])
    );
    bench.syscall_again();
    assert_eq!((bench.regs.rip, bench.regs.rax), (rip + 2, 0));
}

#[test]
fn the_fpu_traps_until_its_first_use() {
    let mut bench = Bench::new();
    bench.handlers(&[(vector::DEVICE_NOT_AVAILABLE, 0, HANDLER)]);
    for set in [1, u64::MAX] {
        assert_eq!(bench.call(nr::FPU_TASKSWITCH, &[set]), Ok(0));
        assert!(bench.guest.m.task_switched);
        assert_eq!(bench.call(nr::FPU_TASKSWITCH, &[0]), Ok(0));
        assert!(!bench.guest.m.task_switched);
    }
    assert_eq!(bench.call(nr::FPU_TASKSWITCH, &[1]), Ok(0));
    bench.trap(vector::DEVICE_NOT_AVAILABLE, 0);
    assert_eq!(bench.regs.rip, HANDLER);
    assert!(!bench.guest.m.task_switched, "cleared as the trap is taken");
}

#[test]
fn breakpoints_are_the_guests_own_addresses() {
    let mut bench = Bench::new();
    for index in 0..4 {
        let address = Bench::KERNEL + index;
        assert_eq!(bench.call(nr::SET_DEBUGREG, &[index, address]), Ok(0));
        assert_eq!(bench.guest.m.debug[index as usize], address);
        assert_eq!(bench.call(nr::GET_DEBUGREG, &[index]), Ok(address));
        for wrong in [HOLE, WILD, 0xffff_87ff_ffff_ffff] {
            let answer = bench.call(nr::SET_DEBUGREG, &[index, wrong]);
            assert_eq!(answer, Err(Errno::EPERM), "{wrong:#x}");
        }
        assert_eq!(bench.guest.m.debug[index as usize], address);
    }
}

#[test]
fn debug_control_takes_what_the_guest_may_have() {
    let mut bench = Bench::new();
    let set = |bench: &mut Bench, index, value| bench.call(nr::SET_DEBUGREG, &[index, value]);
    // Reserved bits have their fixed values.
    assert_eq!(set(&mut bench, 6, 0), Ok(0));
    assert_eq!(bench.call(nr::GET_DEBUGREG, &[6]), Ok(0xffff_0ff0));
    assert_eq!(set(&mut bench, 7, 0x0000_0001), Ok(0));
    assert_eq!(bench.guest.m.debug[7], 0x401);
    for index in [6, 7] {
        assert_eq!(set(&mut bench, index, 1 << 32), Err(Errno::EINVAL));
    }
    // General detect would trap the shim.
    assert_eq!(set(&mut bench, 7, 1 << 13), Err(Errno::EPERM));
    // I/O breakpoints need CR4.DE, but only if they are enabled.
    assert_eq!(set(&mut bench, 7, 2 << 16 | 1), Err(Errno::EPERM));
    assert_eq!(set(&mut bench, 7, 2 << 16), Ok(0));
    // 4 and 5 are other names of 6 and 7, until CR4.DE.
    assert_eq!(set(&mut bench, 5, 3), Ok(0));
    assert_eq!(bench.call(nr::GET_DEBUGREG, &[5]), Ok(0x403));
    assert_eq!(bench.call(nr::GET_DEBUGREG, &[7]), Ok(0x403));
    assert_eq!(bench.call(nr::GET_DEBUGREG, &[4]), Ok(0xffff_0ff0));
    bench.guest.vcpus[0].cr4 = 1 << 3;
    for index in [4, 5, 8, 15, u64::MAX] {
        assert_eq!(set(&mut bench, index, 0), Err(Errno::ENODEV));
        let got = bench.call(nr::GET_DEBUGREG, &[index]);
        assert_eq!(got, Err(Errno::ENODEV));
    }
    assert_eq!(set(&mut bench, 7, 2 << 16 | 1), Ok(0));
}

#[test]
fn io_privilege_and_port_bitmap_are_kept() {
    let mut bench = Bench::new();
    let arg = bench.arg(&1u32);
    assert_eq!(bench.call(nr::PHYSDEV_OP, &[physdev::SET_IOPL, arg]), Ok(0));
    assert_eq!(bench.guest.vcpus[0].iopl, 1);
    let arg = bench.arg(&4u32);
    let iopl = bench.call(nr::PHYSDEV_OP, &[physdev::SET_IOPL, arg]);
    assert_eq!(iopl, Err(Errno::EINVAL));
    assert_eq!(bench.guest.vcpus[0].iopl, 1);
    let mut set = |nr_ports| {
        let arg = bench.arg(&SetIobitmap {
            bitmap: Bench::KERNEL,
            nr_ports,
            pad: 0,
        });
        bench.call(nr::PHYSDEV_OP, &[physdev::SET_IOBITMAP, arg])
    };
    assert_eq!(set(65536), Ok(0));
    assert_eq!(set(65537), Err(Errno::EINVAL));
    let kept = bench.guest.vcpus[0].io_bitmap;
    assert_eq!((kept.0.0, kept.1), (Bench::KERNEL, 65536));
    for command in [physdev::SET_IOPL, physdev::SET_IOBITMAP] {
        for arg in [0, UNMAPPED, HOLE] {
            let answer = bench.call(nr::PHYSDEV_OP, &[command, arg]);
            assert_eq!(answer, Err(Errno::EFAULT));
        }
    }
    let unknown = bench.call(nr::PHYSDEV_OP, &[28, Bench::KERNEL]);
    assert_eq!(unknown, Err(Errno::ENOSYS));
}

#[test]
fn assists_are_those_of_a_64_bit_guest() {
    let mut bench = Bench::new();
    for kind in [0, 1, 2, 3, 4, 5, 32] {
        assert_eq!(bench.call(nr::VM_ASSIST, &[0, kind]), Ok(0), "{kind}");
    }
    assert_eq!(bench.guest.assist, Assist::all());
    assert_eq!(bench.call(nr::VM_ASSIST, &[1, 4]), Ok(0));
    assert!(!bench.guest.assist.contains(Assist::ARCHITECTURAL_IOPL));
    for kind in [6, 31, 33, 63, 64, 1 << 32, u64::MAX] {
        let answer = bench.call(nr::VM_ASSIST, &[0, kind]);
        assert_eq!(answer, Err(Errno::EINVAL), "{kind}");
    }
    assert_eq!(bench.call(nr::VM_ASSIST, &[2, 2]), Err(Errno::ENOSYS));
}

#[test]
fn the_emergency_console_takes_any_text() {
    let mut bench = Bench::new();
    let page = bench.page(2);
    bench.put(page, &[0xffu8; 4096]);
    for (count, va, expected) in [
        (0, HOLE, Err(Errno::EFAULT)),
        (5, page, Ok(0)),
        (u64::MAX, page, Ok(0)),
        (5, UNMAPPED, Err(Errno::EFAULT)),
    ] {
        let answer = bench.call(nr::CONSOLE_IO, &[0, count, va]);
        assert_eq!(answer, expected, "{count} bytes at {va:#x}");
    }
    let read = bench.call(nr::CONSOLE_IO, &[1, 5, page]);
    assert_eq!(read, Err(Errno::EPERM));
    // What a page-table call takes for its own is no business of anything else.
    assert_eq!(
        bench.call(nr::CONSOLE_IO, &[SELF, 5, page]),
        Err(Errno::EPERM)
    );
}

#[test]
fn user_mode_sees_the_m2p_unless_the_kernel_hides_it() {
    let mut bench = Bench::new();
    bench.make_user();
    let spaces = bench.guest.vcpus[0].spaces.as_ref().expect("tables");
    let (kernel, user) = (spaces.kernel(), spaces.user().expect("just set"));
    let shown = bench.guest.slots.0[0];
    let slots =
        |bench: &Bench| [kernel, user].map(|table| bench.guest.m.load64(table, FIRST_XEN_SLOT * 8));
    assert_eq!(slots(&bench), [shown, shown]);
    // What is in use changes at once, and is forgotten.
    bench.guest.m.take_flushes();
    assert_eq!(bench.call(nr::VM_ASSIST, &[0, 32]), Ok(0));
    assert_eq!(slots(&bench), [shown, 0]);
    assert_eq!(bench.guest.m.take_flushes(), [Flushed::All]);
    bench.check();
    assert_eq!(bench.call(nr::VM_ASSIST, &[1, 32]), Ok(0));
    assert_eq!(slots(&bench), [shown, shown]);
    // What comes into use is as it has to be, whatever it was before.
    assert_eq!(bench.mmuext(ext::NEW_USER_BASEPTR, 0, 0), Ok(0));
    assert_eq!(bench.call(nr::VM_ASSIST, &[0, 32]), Ok(0));
    assert_eq!(slots(&bench), [shown, shown]);
    assert_eq!(bench.mmuext(ext::NEW_USER_BASEPTR, user.0, 0), Ok(0));
    assert_eq!(slots(&bench), [shown, 0]);
    // One table for both is the kernel's.
    assert_eq!(bench.mmuext(ext::NEW_USER_BASEPTR, kernel.0, 0), Ok(0));
    assert_eq!(slots(&bench), [shown, 0]);
    bench.check();
}
