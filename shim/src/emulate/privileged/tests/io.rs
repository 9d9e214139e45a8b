//! Instructions that need I/O privilege, and ports.

use super::{DONE, kernel, process, refused, regs, run, set_cpl};
use xen_abi::GuestVa;

use crate::emulate::privileged::{GuestCpu, Outcome};
use crate::testing::Bench;

fn with_iopl(mut bench: Bench, iopl: u8) -> Bench {
    bench.guest.vcpus[0].iopl = iopl;
    bench
}

/// The guest's CR2.
fn cr2(bench: &mut Bench) -> u64 {
    GuestCpu::new(&mut bench.guest, 0).cr2()
}

#[test]
fn interrupt_flag_instructions_need_iopl_and_do_nothing() {
    for bytes in [&[0xfa], &[0xfb]] {
        let mut after = regs(0, 0, 0);
        assert_eq!(run(bytes, &mut after, &mut kernel()), DONE);
        assert_eq!((after.rip, after.rflags), (0x1001, 0x202));
        refused(bytes, &regs(0, 0, 0), &mut with_iopl(kernel(), 0));
        let mut privileged = with_iopl(process(), 3);
        assert_eq!(run(bytes, &mut regs(0, 0, 0), &mut privileged), DONE);
    }
}

#[test]
fn permitted_ports_read_as_ones() {
    let mut after = regs(0x1122_3344_5566_7788, 0, 0x60);
    let mut bench = kernel();
    assert_eq!(run(&[0xec], &mut after, &mut bench), DONE);
    assert_eq!(after.gpr(0), 0x1122_3344_5566_77ff);
    assert_eq!(run(&[0x66, 0xed], &mut after, &mut bench), DONE);
    assert_eq!(after.gpr(0), 0x1122_3344_5566_ffff);
    assert_eq!(run(&[0xe5, 0x80], &mut after, &mut bench), DONE);
    assert_eq!(after.gpr(0), 0xffff_ffff);
    assert_eq!(run(&[0xe6, 0x80], &mut after, &mut bench), DONE);
}

#[test]
fn the_bitmap_must_allow_every_port_of_an_access() {
    let mut bench = kernel();
    let bitmap = bench.page(10);
    let mut refuses = [0xff_u8; 8192];
    for port in [0x60, 0x61, 0xffff] {
        refuses[port / 8] &= !(1 << (port % 8));
    }
    bench.put(bitmap, &refuses);
    set_cpl(&mut bench, 3);
    let all = 0x1_0000;
    bench.guest.vcpus[0].io_bitmap = (GuestVa(bitmap), all);
    assert_eq!(run(&[0xec], &mut regs(0, 0, 0x60), &mut bench), DONE);
    assert_eq!(run(&[0x66, 0xed], &mut regs(0, 0, 0x60), &mut bench), DONE);
    refused(&[0x66, 0xed], &regs(0, 0, 0x61), &mut bench);
    refused(&[0xed], &regs(0, 0, 0x60), &mut bench);
    assert_eq!(run(&[0xee], &mut regs(0, 0, 0xffff), &mut bench), DONE);
    refused(&[0x66, 0xef], &regs(0, 0, 0xffff), &mut bench);
    // A bitmap that is shorter refuses what it does not cover, and one that is nowhere everything.
    bench.guest.vcpus[0].io_bitmap.1 = all - 1;
    refused(&[0xee], &regs(0, 0, 0xffff), &mut bench);
    bench.guest.vcpus[0].io_bitmap.0 = GuestVa(0x1000);
    refused(&[0xec], &regs(0, 0, 0x60), &mut bench);
}

#[test]
fn string_io_moves_one_element_at_a_time() {
    let mut bench = kernel();
    let mut after = regs(0, 2, 0x60);
    let memory = bench.page(3);
    after.set_gpr(7, memory + 4);
    // rep insw
    assert_eq!(run(&[0xf3, 0x66, 0x6d], &mut after, &mut bench), DONE);
    let left = (after.rip, after.gpr(1), after.gpr(7));
    assert_eq!(left, (0x1000, 1, memory + 6));
    assert_eq!(run(&[0xf3, 0x66, 0x6d], &mut after, &mut bench), DONE);
    let left = (after.rip, after.gpr(1), after.gpr(7));
    assert_eq!(left, (0x1003, 0, memory + 8));
    let written: [u8; 6] = bench.get(memory + 3);
    assert_eq!(written, [0, 0xff, 0xff, 0xff, 0xff, 0]);
    // outsb backwards
    let mut after = regs(0, 0, 0x60);
    after.rflags |= 1 << 10;
    after.set_gpr(6, memory + 5);
    assert_eq!(run(&[0x6e], &mut after, &mut bench), DONE);
    assert_eq!((after.rip, after.gpr(6)), (0x1001, memory + 4));
}

#[test]
fn string_io_faults_like_any_access_to_memory() {
    let mut bench = kernel();
    let mut after = regs(0, 3, 0x60);
    after.set_gpr(7, 0xffff_8000_0000_0000);
    let outcome = run(&[0xf3, 0x6c], &mut after, &mut bench);
    assert_eq!(
        outcome,
        Outcome::Inject {
            vector: 14,
            error_code: Some(2)
        }
    );
    assert_eq!(
        (cr2(&mut bench), after.rip, after.gpr(1)),
        (0xffff_8000_0000_0000, 0x1000, 3)
    );
    after.set_gpr(1, 0);
    assert_eq!(run(&[0xf3, 0x6c], &mut after, &mut bench), DONE);
}

#[test]
fn a_process_with_ports_does_not_reach_its_kernels_memory() {
    let mut bench = with_iopl(kernel(), 3);
    bench.make_user();
    bench.handlers_for_user();
    bench.enter_user();
    for (address, error_code) in [(0xffff_8880_0000_0000, 6), (1 << 47, 6), ((1 << 47) - 1, 6)] {
        let mut after = regs(0, 0, 0x60);
        after.set_gpr(7, address);
        let outcome = run(&[0x6d], &mut after, &mut bench);
        assert_eq!(
            outcome,
            Outcome::Inject {
                vector: 14,
                error_code: Some(error_code)
            }
        );
        assert_eq!((cr2(&mut bench), after.rip), (address, 0x1000));
    }
    let mut after = regs(0, 0, 0x60);
    after.set_gpr(6, 0xffff_ffff_8000_0000);
    let outcome = run(&[0x6f], &mut after, &mut bench);
    assert_eq!(
        outcome,
        Outcome::Inject {
            vector: 14,
            error_code: Some(4)
        }
    );
    after.set_gpr(6, Bench::USER);
    assert_eq!(run(&[0x6f], &mut after, &mut bench), DONE);
}
