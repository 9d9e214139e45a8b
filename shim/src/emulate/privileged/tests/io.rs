//! Instructions that need I/O privilege, and ports.

use super::{DONE, kernel, process, refused, regs, run};
use crate::emulate::fake::FakeVcpu;
use crate::emulate::privileged::Outcome;

#[test]
fn interrupt_flag_instructions_need_iopl_and_do_nothing() {
    for bytes in [&[0xfa], &[0xfb]] {
        let mut after = regs(0, 0, 0);
        assert_eq!(run(bytes, &mut after, &mut kernel()), DONE);
        assert_eq!((after.rip, after.rflags), (0x1001, 0x202));
        refused(
            bytes,
            &regs(0, 0, 0),
            &mut FakeVcpu {
                iopl: 0,
                ..kernel()
            },
        );
        let mut privileged = FakeVcpu {
            iopl: 3,
            ..process()
        };
        assert_eq!(run(bytes, &mut regs(0, 0, 0), &mut privileged), DONE);
    }
}

#[test]
fn permitted_ports_read_as_ones() {
    let mut after = regs(0x1122_3344_5566_7788, 0, 0x60);
    let mut vcpu = kernel();
    assert_eq!(run(&[0xec], &mut after, &mut vcpu), DONE);
    assert_eq!(after.gprs[0], 0x1122_3344_5566_77ff);
    assert_eq!(run(&[0x66, 0xed], &mut after, &mut vcpu), DONE);
    assert_eq!(after.gprs[0], 0x1122_3344_5566_ffff);
    assert_eq!(run(&[0xe5, 0x80], &mut after, &mut vcpu), DONE);
    assert_eq!(after.gprs[0], 0xffff_ffff);
    assert_eq!(run(&[0xe6, 0x80], &mut after, &mut vcpu), DONE);
}

#[test]
fn the_bitmap_must_allow_every_port_of_an_access() {
    let mut vcpu = process();
    vcpu.ports = [0x60, 0x61, 0xffff].to_vec();
    assert_eq!(run(&[0xec], &mut regs(0, 0, 0x60), &mut vcpu), DONE);
    assert_eq!(run(&[0x66, 0xed], &mut regs(0, 0, 0x60), &mut vcpu), DONE);
    refused(&[0x66, 0xed], &regs(0, 0, 0x61), &mut vcpu);
    refused(&[0xed], &regs(0, 0, 0x60), &mut vcpu);
    assert_eq!(run(&[0xee], &mut regs(0, 0, 0xffff), &mut vcpu), DONE);
    refused(&[0x66, 0xef], &regs(0, 0, 0xffff), &mut vcpu);
}

#[test]
fn string_io_moves_one_element_at_a_time() {
    let mut vcpu = kernel();
    let mut after = regs(0, 2, 0x60);
    after.gprs[7] = 4;
    // rep insw
    assert_eq!(run(&[0xf3, 0x66, 0x6d], &mut after, &mut vcpu), DONE);
    assert_eq!((after.rip, after.gprs[1], after.gprs[7]), (0x1000, 1, 6));
    assert_eq!(run(&[0xf3, 0x66, 0x6d], &mut after, &mut vcpu), DONE);
    assert_eq!((after.rip, after.gprs[1], after.gprs[7]), (0x1003, 0, 8));
    assert_eq!(vcpu.memory[3..9], [0, 0xff, 0xff, 0xff, 0xff, 0]);
    // outsb backwards
    let mut after = regs(0, 0, 0x60);
    after.rflags |= 1 << 10;
    after.gprs[6] = 5;
    assert_eq!(run(&[0x6e], &mut after, &mut vcpu), DONE);
    assert_eq!((after.rip, after.gprs[6]), (0x1001, 4));
}

#[test]
fn string_io_faults_like_any_access_to_memory() {
    let mut vcpu = kernel();
    let mut after = regs(0, 3, 0x60);
    after.gprs[7] = 0xffff_8000_0000_0000;
    let outcome = run(&[0xf3, 0x6c], &mut after, &mut vcpu);
    assert_eq!(
        outcome,
        Outcome::Inject {
            vector: 14,
            error_code: Some(2)
        }
    );
    assert_eq!(
        (vcpu.cr2, after.rip, after.gprs[1]),
        (0xffff_8000_0000_0000, 0x1000, 3)
    );
    after.gprs[1] = 0;
    assert_eq!(run(&[0xf3, 0x6c], &mut after, &mut vcpu), DONE);
}

#[test]
fn a_process_with_ports_does_not_reach_its_kernels_memory() {
    let mut vcpu = FakeVcpu {
        iopl: 3,
        ..process()
    };
    for (address, error_code) in [(0xffff_8880_0000_0000, 6), (1 << 47, 6), ((1 << 47) - 1, 6)] {
        let mut after = regs(0, 0, 0x60);
        after.gprs[7] = address;
        let outcome = run(&[0x6d], &mut after, &mut vcpu);
        assert_eq!(
            outcome,
            Outcome::Inject {
                vector: 14,
                error_code: Some(error_code)
            }
        );
        assert_eq!((vcpu.cr2, after.rip), (address, 0x1000));
    }
    let mut after = regs(0, 0, 0x60);
    after.gprs[6] = 0xffff_ffff_8000_0000;
    let outcome = run(&[0x6f], &mut after, &mut vcpu);
    assert_eq!(
        outcome,
        Outcome::Inject {
            vector: 14,
            error_code: Some(4)
        }
    );
    after.gprs[6] = 8;
    assert_eq!(run(&[0x6f], &mut after, &mut vcpu), DONE);
}
