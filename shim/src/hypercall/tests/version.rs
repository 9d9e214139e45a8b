//! `xen_version` tells only what was frozen at first boot, and fills what it writes.

use xen_abi::version::op;
use xen_abi::{Errno, hypercall::XEN_VERSION};

use super::{HOLE, UNMAPPED, WILD};
use crate::testing::Bench;

#[test]
fn numbers_come_in_rax() {
    let mut bench = Bench::new();
    assert_eq!(bench.call(XEN_VERSION, &[op::VERSION, 0]), Ok(0x4_0011));
    assert_eq!(bench.call(XEN_VERSION, &[op::PAGESIZE, 0]), Ok(4096));
    let pagesize = bench.call(XEN_VERSION, &[op::PAGESIZE, Bench::KERNEL]);
    assert_eq!(pagesize, Err(Errno::EINVAL));
}

#[test]
fn strings_fill_their_field_and_nothing_more() {
    let mut bench = Bench::new();
    let denied = |len: usize| {
        let mut field = vec![0; len];
        field[..8].copy_from_slice(b"<denied>");
        field
    };
    let mut capabilities = vec![0; 1024];
    capabilities[..15].copy_from_slice(b"xen-3.0-x86_64 ");
    let compile_info = [denied(64), denied(16), denied(32), denied(32)].concat();
    let fields = [
        (op::EXTRAVERSION, b".5-test\0\0\0\0\0\0\0\0\0".to_vec()),
        (op::COMPILE_INFO, compile_info),
        (op::CAPABILITIES, capabilities),
        (op::CHANGESET, denied(64)),
        (op::COMMANDLINE, denied(1024)),
        (op::GUEST_HANDLE, b"0123456789abcdef".to_vec()),
        (
            op::PLATFORM_PARAMETERS,
            0xffff_8000_0000_0000u64.to_le_bytes().to_vec(),
        ),
    ];
    for (command, expected) in fields {
        // Across the border of two pages, both full of junk.
        let va = bench.page(2) - 11;
        bench.put(bench.page(1), &[0xaau8; 8192]);
        assert_eq!(bench.call(XEN_VERSION, &[command, va]), Ok(0));
        let mut around = vec![0; expected.len() + 2];
        crate::mem::GuestMemory::read_guest(&bench.guest.m, xen_abi::GuestVa(va - 1), &mut around)
            .expect("mapped");
        let (first, rest) = around.split_first().expect("not empty");
        let (last, field) = rest.split_last().expect("not empty");
        assert_eq!((*first, *last), (0xaa, 0xaa), "command {command}");
        assert_eq!(field, expected, "command {command}");
    }
}

#[test]
fn features_are_those_that_kernels_insist_on() {
    let mut bench = Bench::new();
    let va = bench.arg(&[0u32, 0xaaaa_aaaa]);
    assert_eq!(bench.call(XEN_VERSION, &[op::GET_FEATURES, va]), Ok(0));
    assert_eq!(bench.get::<[u32; 2]>(va), [0, 1 << 5 | 1 << 6 | 1 << 7]);
    let va = bench.arg(&[1u32, 0xaaaa_aaaa]);
    let second = bench.call(XEN_VERSION, &[op::GET_FEATURES, va]);
    assert_eq!(second, Err(Errno::EINVAL));
    assert_eq!(bench.get::<[u32; 2]>(va), [1, 0xaaaa_aaaa]);
}

#[test]
fn bad_pointers_and_unknown_commands_are_refused() {
    let mut bench = Bench::new();
    for command in [1, 2, 3, 4, 5, 6, 8, 9] {
        for va in [0, UNMAPPED, HOLE, WILD, u64::MAX - 3] {
            let answer = bench.call(XEN_VERSION, &[command, va]);
            assert_eq!(answer, Err(Errno::EFAULT), "command {command} at {va:#x}");
        }
    }
    assert_eq!(bench.call(XEN_VERSION, &[op::BUILD_ID]), Err(Errno::EPERM));
    assert_eq!(bench.call(XEN_VERSION, &[99]), Err(Errno::ENOSYS));
}
