//! Page tables through the hypercalls: lists, counts, flushes, and what a guest builds and takes
//! apart.  What an entry may hold is tested in [`crate::mm`].

use xen_abi::hypercall::{MMU_UPDATE, UPDATE_VA_MAPPING};
use xen_abi::mmu::{Level, MmuUpdate, Pte, UvmFlags, ext, update};
use xen_abi::{DomId, Errno, GuestVa, Mfn};

use super::{HOLE, SELF, UNMAPPED};
use crate::host::HostEvent;
use crate::mem::{Frames, GuestMemory};
use crate::mm::FrameUse;
use crate::testing::{Bench, Flushed};

const RO: u64 = Pte::PRESENT | Pte::ACCESSED;
const RW: u64 = RO | Pte::RW;

/// Returns the machine address of the L1 entry of `va`.
fn entry_of(bench: &mut Bench, va: u64) -> u64 {
    let spaces = bench.guest.vcpus[0].spaces.as_ref();
    let root = spaces.expect("it has tables").kernel();
    let mapping = bench.mm().walk(root, GuestVa(va)).expect("a table");
    mapping.table.addr() + mapping.index as u64 * 8
}

fn updates(bench: &mut Bench, list: &[(u64, u64)], domain: u64) -> (Result<u64, Errno>, u32) {
    let at = bench.page(2);
    for (index, &(ptr, val)) in list.iter().enumerate() {
        bench.put(at + index as u64 * 16, &MmuUpdate { ptr, val });
    }
    let done = bench.arg(&0xdead_beefu32);
    let answer = bench.call(MMU_UPDATE, &[at, list.len() as u64, done, domain]);
    (answer, bench.get(done))
}

#[test]
fn a_list_is_served_up_to_the_first_mistake_and_counted() {
    let mut bench = Bench::new();
    let [a, b] = [60, 61].map(|index| bench.page(index));
    let (at_a, at_b) = (entry_of(&mut bench, a), entry_of(&mut bench, b));
    let frame = bench.mfn(Bench::UNMAPPED);
    let good = |at| (at, Pte::new(frame, RW).0);
    let list = [good(at_a), (at_b, Pte::new(Bench::SHIM, RO).0), good(at_b)];
    let (answer, done) = updates(&mut bench, &list, SELF);
    assert_eq!((answer, done), (Err(Errno::EINVAL), 1));
    assert_eq!(bench.frame(a), frame);
    assert_ne!(bench.frame(b), frame);
    let (answer, done) = updates(&mut bench, &[good(at_a), good(at_b)], SELF);
    assert_eq!((answer, done), (Ok(0), 2));
    let (answer, done) = updates(&mut bench, &[], SELF);
    assert_eq!((answer, done), (Ok(0), 0));
    // An entry of a frame that is no table is plain data.
    let data = bench.page(62);
    let plain = bench.frame(data).addr() + 24;
    let (answer, _) = updates(&mut bench, &[(plain, !0)], SELF);
    assert_eq!((answer, bench.get(data + 24)), (Ok(0), !0u64));
    let (answer, done) = updates(&mut bench, &[(at_a | 4, 0)], SELF);
    assert_eq!((answer, done), (Err(Errno::ENOSYS), 0));
    bench.check();
}

#[test]
fn only_the_guests_own_tables_can_be_named() {
    let mut bench = Bench::new();
    for domain in [0, 1, 2, SELF | 1 << 16, DomId::SELF.0 as u64 + 1] {
        let (answer, done) = updates(&mut bench, &[], domain);
        assert_eq!(answer, Err(Errno::ESRCH), "domain {domain:#x}");
        assert_eq!(done, 0xdead_beef, "nothing was begun");
    }
    let (answer, _) = updates(&mut bench, &[], SELF | 1 << 32);
    assert_eq!(answer, Ok(0), "the argument has 32 bits");
}

#[test]
fn bad_lists_fault_where_they_are_bad() {
    let mut bench = Bench::new();
    for (at, count) in [(HOLE, 1), (UNMAPPED, 1), (u64::MAX - 7, 1), (0, 1)] {
        let done = bench.arg(&7u32);
        let answer = bench.call(MMU_UPDATE, &[at, count, done, SELF]);
        assert_eq!(answer, Err(Errno::EFAULT));
        assert_eq!(bench.get::<u32>(done), 0);
    }
    // A count that can not be told is no mistake.
    let at = bench.page(2);
    let data = bench.page(62);
    let ptr = bench.frame(data).addr();
    bench.put(at, &MmuUpdate { ptr, val: 5 });
    assert_eq!(bench.call(MMU_UPDATE, &[at, 1, HOLE, SELF]), Ok(0));
    assert_eq!(bench.get::<u64>(data), 5);
}

#[test]
fn the_m2p_can_be_told_about_the_guests_frames() {
    let mut bench = Bench::new();
    let frame = bench.mfn(Bench::UNMAPPED);
    let tell = |frame: Mfn| [(frame.addr() | update::MACHPHYS, 4711)];
    assert_eq!(updates(&mut bench, &tell(frame), SELF), (Ok(0), 1));
    assert_eq!(bench.guest.m.m2p(frame), 4711);
    for frame in [Bench::SHIM, Bench::END, Mfn(1 << 40)] {
        let (answer, _) = updates(&mut bench, &tell(frame), SELF);
        assert_eq!(answer, Err(Errno::EINVAL));
    }
}

#[test]
fn a_long_list_makes_way_for_the_host_and_counts_on() {
    let mut bench = Bench::new();
    let data = bench.page(62);
    let ptr = bench.frame(data).addr();
    let at = bench.page(2);
    for index in 0..5 {
        let ptr = ptr + index * 8;
        bench.put(
            at + index * 16,
            &MmuUpdate {
                ptr,
                val: index + 1,
            },
        );
    }
    let rip = bench.regs.rip;
    let done = bench.arg(&0u32);
    bench.guest.host.events.push_back(HostEvent::Console);
    bench.syscall(MMU_UPDATE, &[at, 5, done, SELF]);
    assert_eq!((bench.regs.rip, bench.regs.rax), (rip, MMU_UPDATE));
    let left = [bench.regs.rdi, bench.regs.rsi, bench.regs.rdx];
    assert_eq!(left, [at + 16, 4 | 1 << 31, done]);
    assert_eq!((bench.regs.r10, bench.get::<u32>(done)), (SELF, 1));
    bench.syscall_again();
    assert_eq!((bench.regs.rip, bench.regs.rax), (rip + 2, 0));
    assert_eq!(bench.get::<u32>(done), 5);
    assert_eq!(bench.get::<[u64; 6]>(data), [1, 2, 3, 4, 5, 0]);
}

#[test]
fn a_mapping_is_changed_and_flushed_as_asked() {
    let mut bench = Bench::new();
    let page = bench.page(60);
    bench.put(page, &1u64);
    let frame = bench.mfn(Bench::UNMAPPED);
    bench.guest.m.store64(frame, 0, 2);
    let old = bench.frame(page);
    for (flags, flushes, sees) in [
        (0, vec![], 1),
        (2, vec![Flushed::Page(page)], 2),
        (1, vec![Flushed::All], 2),
        (5, vec![Flushed::All], 2),
        (6, vec![Flushed::Page(page)], 2),
    ] {
        bench.remap(page, Pte::new(old, RW)).expect("its own");
        assert_eq!(bench.get::<u64>(page), 1);
        bench.guest.m.take_flushes();
        let args = [page, Pte::new(frame, RW).0, flags];
        assert_eq!(bench.call(UPDATE_VA_MAPPING, &args), Ok(0));
        assert_eq!(bench.guest.m.take_flushes(), flushes, "flags {flags}");
        assert_eq!(bench.get::<u64>(page), sees, "flags {flags}");
    }
    for va in [UNMAPPED, HOLE, 0xffff_8000_0000_0000, Bench::KERNEL - 4096] {
        let answer = bench.remap(va, Pte(0));
        assert_eq!(answer, Err(Errno::EINVAL), "{va:#x}");
    }
    for pte in [
        Pte::new(Bench::SHIM, RO),
        Pte::new(frame, RW | Pte::PSE),
        Pte::new(frame, RW | Pte::PCD),
        Pte::new(Bench::END, RO),
    ] {
        assert_eq!(bench.remap(page, pte), Err(Errno::EINVAL), "{pte:?}");
    }
    bench.check();
}

#[test]
fn a_table_is_read_only_for_as_long_as_it_is_one() {
    let mut bench = Bench::new();
    let page = bench.page(60);
    let frame = bench.frame(page);
    // Still mapped writable: no.
    let pin = |bench: &mut Bench| bench.mmuext(ext::PIN_L1_TABLE, frame.0, 0);
    assert_eq!(pin(&mut bench), Err(Errno::EINVAL));
    bench.put(page, &0u64);
    // Read-only without a flush: what a CPU remembers is dropped when the frame becomes a table.
    let args = [page, Pte::new(frame, RO).0, 0];
    assert_eq!(bench.call(UPDATE_VA_MAPPING, &args), Ok(0));
    assert!(bench.guest.m.translate(page, true).is_ok());
    assert_eq!(pin(&mut bench), Ok(0));
    assert!(bench.guest.m.translate(page, true).is_err());
    assert_eq!(pin(&mut bench), Err(Errno::EINVAL), "once is enough");
    bench.check();
    assert_eq!(bench.remap(page, Pte::new(frame, RW)), Err(Errno::EINVAL));
    assert_eq!(bench.mmuext(ext::UNPIN_TABLE, frame.0, 0), Ok(0));
    let unpin = bench.mmuext(ext::UNPIN_TABLE, frame.0, 0);
    assert_eq!(unpin, Err(Errno::EINVAL));
    assert_eq!(bench.remap(page, Pte::new(frame, RW)), Ok(0));
    bench.check();
}

#[test]
fn a_process_lives_and_dies() {
    let mut bench = Bench::new();
    bench.make_user();
    let root = bench.guest.vcpus[0].spaces.as_ref().expect("tables");
    let (kernel, user) = (root.kernel(), root.user().expect("just set"));
    bench.check();
    bench.enter_user();
    assert_eq!(bench.guest.m.root, user);
    assert_eq!(bench.get::<u64>(Bench::USER), 0);
    let reach = bench.guest.m.translate(Bench::KERNEL, false);
    assert!(reach.is_err(), "the kernel's pages are not there");
    // Back in the kernel, the table goes.
    bench.handlers_for_user();
    bench.trap(xen_abi::trap::vector::INT80, 0);
    assert_eq!(bench.guest.m.root, kernel);
    assert_eq!(bench.mmuext(ext::UNPIN_TABLE, user.0, 0), Ok(0));
    assert_eq!(bench.guest.ledger.used_as(user), FrameUse::L4, "it is set");
    assert_eq!(bench.mmuext(ext::NEW_USER_BASEPTR, 0, 0), Ok(0));
    assert_eq!(bench.guest.ledger.used_as(user), FrameUse::None);
    for index in 110..114 {
        let page = bench.page(index);
        let frame = bench.frame(page);
        assert_eq!(bench.remap(page, Pte::new(frame, RW)), Ok(0));
    }
    bench.check();
}

#[test]
fn a_new_base_is_loaded_at_once() {
    let mut bench = Bench::new();
    let old = bench.guest.m.root;
    // A second top-level table with the same contents.
    let page = bench.page(60);
    let copy = bench.frame(page);
    assert_eq!(bench.mmuext(ext::COPY_PAGE, copy.0, old.0), Ok(0));
    assert_eq!(bench.remap(page, Pte::new(copy, RO)), Ok(0));
    assert_eq!(bench.mmuext(ext::NEW_BASEPTR, copy.0, 0), Ok(0));
    assert_eq!(bench.guest.m.root, copy);
    bench.check();
    // The old one is pinned, and may go now.
    assert_eq!(bench.mmuext(ext::UNPIN_TABLE, old.0, 0), Ok(0));
    assert_eq!(bench.guest.ledger.used_as(old), FrameUse::None);
    for wrong in [Bench::SHIM, Bench::STORE, Bench::END, Mfn(0)] {
        let answer = bench.mmuext(ext::NEW_BASEPTR, wrong.0, 0);
        assert_eq!(answer, Err(Errno::EINVAL), "{wrong:?}");
    }
    assert_eq!(bench.guest.m.root, copy);
    bench.check();
}

#[test]
fn flushes_do_what_they_say() {
    let mut bench = Bench::new();
    let va = bench.page(50);
    for (cmd, expected) in [
        (ext::TLB_FLUSH_LOCAL, Flushed::All),
        (ext::TLB_FLUSH_ALL, Flushed::All),
        (ext::INVLPG_LOCAL, Flushed::Page(va)),
        (ext::INVLPG_ALL, Flushed::Page(va)),
    ] {
        bench.guest.m.take_flushes();
        assert_eq!(bench.mmuext(cmd, va, 0), Ok(0));
        assert_eq!(bench.guest.m.take_flushes(), [expected], "{cmd}");
    }
}

#[test]
fn whole_pages_are_filled_only_where_the_guest_may_write() {
    let mut bench = Bench::new();
    let [from, to] = [60, 61].map(|index| bench.page(index));
    let frames = [from, to].map(|va| bench.frame(va));
    bench.put(from + 8, &0x1234u64);
    assert_eq!(
        bench.mmuext(ext::COPY_PAGE, frames[1].0, frames[0].0),
        Ok(0)
    );
    assert_eq!(bench.get::<u64>(to + 8), 0x1234);
    assert_eq!(bench.mmuext(ext::CLEAR_PAGE, frames[1].0, 0), Ok(0));
    assert_eq!(bench.get::<u64>(to + 8), 0);
    for wrong in [bench.guest.m.root, Bench::SHIM, Bench::END, Mfn(!0)] {
        for cmd in [ext::COPY_PAGE, ext::CLEAR_PAGE] {
            let answer = bench.mmuext(cmd, wrong.0, frames[0].0);
            assert_eq!(answer, Err(Errno::EINVAL), "{wrong:?}");
        }
    }
    let secret = bench.mmuext(ext::COPY_PAGE, frames[1].0, Bench::SHIM.0);
    assert_eq!(secret, Err(Errno::EINVAL));
}

#[test]
fn what_a_guest_without_devices_may_not_do_is_refused() {
    let mut bench = Bench::new();
    for (cmd, expected) in [
        (ext::FLUSH_CACHE, Errno::EACCES),
        (ext::FLUSH_CACHE_GLOBAL, Errno::EINVAL),
        (ext::MARK_SUPER, Errno::EOPNOTSUPP),
        (ext::UNMARK_SUPER, Errno::EOPNOTSUPP),
        (14, Errno::ENOSYS),
        (21, Errno::ENOSYS),
        (u32::MAX, Errno::ENOSYS),
    ] {
        assert_eq!(bench.mmuext(cmd, 0, 0), Err(expected), "{cmd}");
    }
}

#[test]
fn a_store_through_a_read_only_mapping_of_a_table_is_carried_out() {
    let mut bench = Bench::new();
    let target = bench.page(60);
    let entry = entry_of(&mut bench, target);
    // The builder has mapped the tables read-only behind each other.
    let table = bench.guest.m.m2p(Mfn::of(entry));
    let at = bench.layout.va(table) + (entry & 0xfff);
    assert_eq!(bench.get::<u64>(at) & Pte::PRESENT, 1);
    // xchg %rax, (%rdi) with a new frame.
    let frame = bench.mfn(Bench::UNMAPPED);
    bench.put(Bench::KERNEL, &[0x48u8, 0x87, 0x07]);
    (bench.regs.rip, bench.regs.rdi) = (Bench::KERNEL, at);
    bench.regs.rax = Pte::new(frame, RW).0;
    bench.guest.m.fault_address = at;
    bench.trap(xen_abi::trap::vector::PAGE_FAULT, 7);
    assert_eq!(bench.regs.rip, Bench::KERNEL + 3);
    assert_eq!(bench.frame(target), frame);
    bench.check();
    // Anything else there is a fault of the guest's own.
    let handler = Bench::KERNEL + 0x80;
    bench.handlers(&[(14, 0, handler)]);
    bench.put(Bench::KERNEL, &[0x48u8, 0x87, 0x07]);
    (bench.regs.rip, bench.regs.rdi) = (Bench::KERNEL, at);
    bench.regs.rax = Pte::new(Bench::SHIM, RW).0;
    bench.trap(xen_abi::trap::vector::PAGE_FAULT, 7);
    assert_eq!(bench.regs.rip, handler);
    assert_eq!(bench.frame(target), frame);
    let level = Level::L1.index(GuestVa(target));
    assert_eq!(entry as usize & 0xfff, level * 8);
    let mut probe = [0; 8];
    assert!(bench.guest.m.read_guest(GuestVa(at), &mut probe).is_ok());
}

/// Makes an L1 table of a frame that is mapped nowhere, links it behind what `va` is translated by,
/// and returns it with the machine address of the entry.
fn linked(bench: &mut Bench, va: u64) -> (Mfn, u64) {
    let mut table = bench.guest.m.root;
    for level in [Level::L4, Level::L3] {
        table = Pte(bench.guest.m.load64(table, level.index(GuestVa(va)) * 8)).frame();
    }
    let (entry, new) = (table.addr() + 400 * 8, bench.mfn(Bench::UNMAPPED));
    let link = Pte::new(new, RW | Pte::USER).0;
    assert_eq!(updates(bench, &[(entry, link)], SELF), (Ok(0), 1));
    assert_eq!(bench.guest.ledger.used_as(new), FrameUse::L1);
    (new, entry)
}

#[test]
fn what_one_request_makes_of_a_table_is_flushed_before_the_next_is_read() {
    let mut bench = Bench::new();
    let va = bench.page(60);
    let (table, link) = linked(&mut bench, va);
    // What a CPU that still walks the table would take for a page of the shim's.
    let evil = Pte::new(Bench::SHIM, RW | Pte::USER).0;
    bench.guest.m.take_flushes();
    let list = [(link, 0), (table.addr() + 8, evil)];
    assert_eq!(updates(&mut bench, &list, SELF), (Ok(0), 2));
    let flushes = bench.guest.m.take_flushes();
    assert_eq!(
        flushes,
        [Flushed::All, Flushed::All],
        "before the store, and at the end"
    );
    bench.check();
}

#[test]
fn a_set_of_vcpus_that_cannot_be_read_is_refused() {
    let mut bench = Bench::new();
    let va = bench.page(60);
    for cmd in [ext::TLB_FLUSH_MULTI, ext::INVLPG_MULTI] {
        assert_eq!(bench.mmuext(cmd, va, HOLE), Err(Errno::EINVAL), "{cmd}");
        let set = bench.arg(&1u64);
        assert_eq!(bench.mmuext(cmd, va, set), Ok(0), "{cmd}");
    }
    let entry = Pte::new(bench.frame(va), RO).0;
    let flags = UvmFlags::TLB_FLUSH.0 | HOLE;
    let answer = bench.call(UPDATE_VA_MAPPING, &[va, entry, flags]);
    assert_eq!(answer, Err(Errno::EFAULT));
    let at = entry_of(&mut bench, va);
    let now = bench.guest.m.load64(Mfn::of(at), at as usize & 0xfff);
    assert_eq!(now & RW, RO, "the entry has changed all the same");
}
