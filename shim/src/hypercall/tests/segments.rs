//! Descriptor tables, segment bases and the kernel stack.

use xen_abi::hypercall::{SET_GDT, SET_SEGMENT_BASE, STACK_SWITCH, UPDATE_DESCRIPTOR};
use xen_abi::mmu::{Pte, ext};
use xen_abi::{Errno, Mfn};

use super::{HOLE, UNMAPPED, WILD};
use crate::mem::Frames;
use crate::mm::FrameUse;
use crate::testing::Bench;

const RO: u64 = Pte::PRESENT;
const RW: u64 = Pte::PRESENT | Pte::RW;
/// A writable data segment for ring 0, and what becomes of it.
const DATA_DPL0: u64 = 0x00cf_9300_0000_ffff;
const DATA_DPL3: u64 = 0x00cf_f300_0000_ffff;
const CALL_GATE: u64 = 0x0000_8c00_e033_1234;
const TSS: u64 = 0x0000_8900_0000_0067;

/// Makes a free page read-only, which a descriptor table has to be, and returns its frame.
fn read_only(bench: &mut Bench, index: u64) -> Mfn {
    let page = bench.page(index);
    let frame = bench.frame(page);
    assert_eq!(bench.remap(page, Pte::new(frame, RO)), Ok(0));
    frame
}

fn set_gdt(bench: &mut Bench, frames: &[Mfn], entries: u64) -> Result<u64, Errno> {
    let list = bench.page(2);
    for (index, frame) in frames.iter().enumerate() {
        bench.put(list + index as u64 * 8, &frame.0);
    }
    bench.call(SET_GDT, &[list, entries])
}

#[test]
fn a_gdt_is_checked_loaded_and_given_back() {
    let mut bench = Bench::new();
    let page = bench.page(60);
    bench.put(page + 24, &DATA_DPL0);
    let [first, second] = [60, 61].map(|index| read_only(&mut bench, index));
    assert_eq!(set_gdt(&mut bench, &[first], 512), Ok(0));
    assert_eq!(bench.guest.m.gdt, [first]);
    assert_eq!(bench.guest.m.load64(first, 24), DATA_DPL3);
    bench.check();
    assert_eq!(bench.remap(page, Pte::new(first, RW)), Err(Errno::EINVAL));
    // As many pages as the entries need.
    assert_eq!(set_gdt(&mut bench, &[second, first], 513), Ok(0));
    assert_eq!(bench.guest.m.gdt, [second, first]);
    assert_eq!(set_gdt(&mut bench, &[], 0), Ok(0));
    assert_eq!(bench.guest.m.gdt, []);
    assert_eq!(bench.guest.ledger.used_as(first), FrameUse::None);
    assert_eq!(bench.remap(page, Pte::new(first, RW)), Ok(0));
}

#[test]
fn a_bad_gdt_leaves_the_old_one() {
    let mut bench = Bench::new();
    let good = read_only(&mut bench, 60);
    assert_eq!(set_gdt(&mut bench, &[good], 1), Ok(0));
    for bad in [CALL_GATE, TSS] {
        let page = bench.page(61);
        let frame = bench.frame(page);
        bench.put(page, &bad);
        assert_eq!(bench.remap(page, Pte::new(frame, RO)), Ok(0));
        let answer = set_gdt(&mut bench, &[good, frame], 1024);
        assert_eq!(answer, Err(Errno::EINVAL), "{bad:#x}");
        assert_eq!(bench.guest.ledger.used_as(frame), FrameUse::None);
        assert_eq!(bench.remap(page, Pte::new(frame, RW)), Ok(0));
    }
    let page = bench.page(61);
    let writable = bench.frame(page);
    for wrong in [writable, Bench::SHIM, Bench::STORE, Bench::END, Mfn(!0)] {
        assert_eq!(set_gdt(&mut bench, &[wrong], 8), Err(Errno::EINVAL));
    }
    assert_eq!(set_gdt(&mut bench, &[], 7169), Err(Errno::EINVAL));
    assert_eq!(bench.call(SET_GDT, &[UNMAPPED, 1]), Err(Errno::EFAULT));
    assert_eq!(bench.call(SET_GDT, &[HOLE, 1]), Err(Errno::EFAULT));
    assert_eq!(bench.guest.m.gdt, [good]);
    bench.check();
}

#[test]
fn descriptors_are_updated_in_place_with_ring_3s_privilege() {
    let mut bench = Bench::new();
    let gdt = read_only(&mut bench, 60);
    assert_eq!(set_gdt(&mut bench, &[gdt], 512), Ok(0));
    let at = gdt.addr() + 40;
    assert_eq!(bench.call(UPDATE_DESCRIPTOR, &[at, DATA_DPL0]), Ok(0));
    assert_eq!(bench.guest.m.load64(gdt, 40), DATA_DPL3);
    assert_eq!(bench.call(UPDATE_DESCRIPTOR, &[at, 0]), Ok(0));
    for (at, raw) in [
        (at, CALL_GATE),
        (at, TSS),
        (at + 4, DATA_DPL0),
        (Bench::SHIM.addr(), 0),
        (Bench::END.addr(), 0),
        (bench.guest.m.root.addr(), 0),
        (!7, 0),
    ] {
        let answer = bench.call(UPDATE_DESCRIPTOR, &[at, raw]);
        assert_eq!(answer, Err(Errno::EINVAL), "{raw:#x} at {at:#x}");
    }
    bench.check();
}

#[test]
fn an_ldt_is_as_long_as_its_pages_are_there() {
    let mut bench = Bench::new();
    let frames = [60, 61].map(|index| read_only(&mut bench, index));
    let hole = bench.page(62);
    assert_eq!(bench.remap(hole, Pte(0)), Ok(0));
    let base = bench.page(60);
    assert_eq!(bench.mmuext(ext::SET_LDT, base, 8192), Ok(0));
    assert_eq!(
        (&bench.guest.m.ldt[..], bench.guest.m.ldt_entries),
        (&frames[..], 1024)
    );
    assert_eq!(bench.mmuext(ext::SET_LDT, base, 3), Ok(0));
    assert_eq!(
        (&bench.guest.m.ldt[..], bench.guest.m.ldt_entries),
        (&frames[..1], 3)
    );
    assert_eq!(bench.guest.ledger.used_as(frames[1]), FrameUse::None);
    bench.check();
    for (base, entries) in [
        (base + 8, 1),
        (base, 8193),
        (HOLE, 1),
        (WILD, 1),
        (base, !0),
    ] {
        let answer = bench.mmuext(ext::SET_LDT, base, entries);
        assert_eq!(answer, Err(Errno::EINVAL), "{entries} at {base:#x}");
    }
    assert_eq!(bench.mmuext(ext::SET_LDT, 0, 0), Ok(0));
    assert_eq!(bench.guest.m.ldt_entries, 0);
    assert_eq!(bench.guest.ledger.used_as(frames[0]), FrameUse::None);
}

#[test]
fn bases_are_canonical_and_go_where_they_belong() {
    let mut bench = Bench::new();
    let base = |bench: &mut Bench, which, value| bench.call(SET_SEGMENT_BASE, &[which, value]);
    assert_eq!(base(&mut bench, 0, 0x1111), Ok(0));
    assert_eq!(base(&mut bench, 1, 0x2222), Ok(0));
    assert_eq!(base(&mut bench, 2, Bench::KERNEL), Ok(0));
    assert_eq!(bench.guest.m.fs_base, 0x1111);
    assert_eq!(bench.guest.vcpus[0].other_gs_base, 0x2222, "the user's");
    assert_eq!(bench.guest.m.gs_base, Bench::KERNEL);
    for which in 0..3 {
        for wrong in [WILD, 0xffff_7fff_ffff_ffff, 1 << 63] {
            let answer = base(&mut bench, which, wrong);
            assert_eq!(answer, Err(Errno::EINVAL), "{which}: {wrong:#x}");
        }
    }
    assert_eq!(base(&mut bench, 4, 0), Err(Errno::EINVAL));
    // The two bases of GS change places with the mode.
    bench.make_user();
    bench.enter_user();
    assert_eq!(bench.guest.m.gs_base, 0x2222);
    assert_eq!(bench.guest.vcpus[0].other_gs_base, Bench::KERNEL);
}

#[test]
fn a_selector_loads_the_users_base_and_a_bad_one_is_null() {
    let mut bench = Bench::new();
    let page = bench.page(60);
    // Base 0x12345678.
    bench.put(page + 16, &0x12cf_f334_5678_ffffu64);
    let gdt = read_only(&mut bench, 60);
    assert_eq!(set_gdt(&mut bench, &[gdt], 512), Ok(0));
    for (selector, loaded, expected) in [
        (0x10, 0x13, 0x1234_5678),
        (0x13, 0x13, 0x1234_5678),
        (0x18, 0, 0),
        (0, 0, 0),
        (1, 1, 0),
        (3, 3, 0),
        (4, 0, 0),
        (0xffff, 0, 0),
        (0x1_0010, 0x13, 0x1234_5678),
    ] {
        bench.guest.vcpus[0].other_gs_base = 0x9999;
        assert_eq!(bench.call(SET_SEGMENT_BASE, &[3, selector]), Ok(0));
        let base = bench.guest.vcpus[0].other_gs_base;
        let found = (bench.guest.m.gs, base);
        assert_eq!(found, (loaded, expected), "selector {selector:#x}");
    }
}

#[test]
fn the_kernel_stack_is_taken_as_it_is() {
    let mut bench = Bench::new();
    for sp in [0, Bench::KERNEL + 0x1001, HOLE, u64::MAX] {
        assert_eq!(bench.call(STACK_SWITCH, &[0xe028, sp]), Ok(0));
        let vcpu = &bench.guest.vcpus[0];
        assert_eq!((vcpu.kernel_ss, vcpu.kernel_sp), (0xe02b, sp));
    }
}
