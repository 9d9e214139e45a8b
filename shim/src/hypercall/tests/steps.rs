//! Nothing that a guest asks for keeps the host waiting: of every hypercall, with the longest
//! arguments, no more than a bound of work is done between two looks for what the host wants.

use xen_abi::hypercall as nr;
use xen_abi::memory::{Reservation, op as memory};
use xen_abi::mmu::{ENTRIES, MmuExtOp, MmuUpdate, Pte, ext};
use xen_abi::trap::{TrapInfo, vector};
use xen_abi::{DomId, Errno, Mfn};

use super::SELF;
use crate::host::HostEvent;
use crate::mem::Frames;
use crate::mm::FrameUse;
use crate::mm::work::{LONGEST_STEP, STEP};
use crate::testing::Bench;

const LINK: u64 = Pte::PRESENT | Pte::RW | Pte::USER;

/// Pages of the guest from this one on are its large tables.
const FIRST: u64 = 300;

/// The tables of a subtree in which every entry of every table above L1 is used.
struct Large {
    l4: Mfn,
    l3: Mfn,
    last_l2: Mfn,
    l1: Mfn,
}

/// Makes a call until it is done, while the host wants something all the time or never.  Returns the
/// answer, and how often others had their turn.
fn call(bench: &mut Bench, busy: bool, number: u64, args: &[u64]) -> (Result<u64, Errno>, u32) {
    let rip = bench.regs.rip;
    let mut turns = 0;
    let want = |bench: &mut Bench| {
        if busy {
            bench.guest.host.events.push_back(HostEvent::Console);
        }
    };
    want(bench);
    bench.syscall(number, args);
    while bench.regs.rip == rip {
        turns += 1;
        assert!(turns < 100_000, "{number} {args:x?} comes to no end");
        bench.check_releases();
        want(bench);
        bench.syscall_again();
    }
    bench.check_releases();
    let longest = bench.guest.ledger.work().take_longest();
    assert!(
        longest <= LONGEST_STEP,
        "{longest} units: {number} {args:x?}"
    );
    (Errno::from_rax(bench.regs.rax), turns)
}

impl Bench {
    /// The guest goes on only when nothing is half released.
    fn check_releases(&self) {
        assert!(!self.guest.ledger.is_releasing());
    }

    fn large_page(&self, index: u64) -> u64 {
        self.layout.va(self.layout.stack + 1 + FIRST + index)
    }

    /// Builds the tables, which nothing maps writable any more.
    fn large(&mut self) -> Large {
        let frames = (0..ENTRIES as u64 + 3).map(|index| self.mfn_of_page(FIRST + index));
        let frames = frames.collect::<Vec<_>>();
        let [l4, l3, l1, l2s @ ..] = &frames[..] else {
            unreachable!("there are three more");
        };
        for index in 0..frames.len() as u64 {
            assert_eq!(self.remap(self.large_page(index), Pte(0)), Ok(0));
        }
        self.guest.flush(crate::mm::Flush::Full);
        let m = &self.guest.m;
        m.store64(*l4, 0, Pte::new(*l3, LINK).0);
        for (index, &l2) in l2s.iter().enumerate() {
            m.store64(*l3, index * 8, Pte::new(l2, LINK).0);
            for entry in 0..ENTRIES {
                m.store64(l2, entry * 8, Pte::new(*l1, LINK).0);
            }
            let page = Pte::new(Mfn(l2.0), Pte::PRESENT | Pte::USER);
            m.store64(*l1, index * 8, page.0);
        }
        Large {
            l4: *l4,
            l3: *l3,
            last_l2: l2s[ENTRIES - 1],
            l1: *l1,
        }
    }

    fn ext(&mut self, busy: bool, cmd: u32, arg1: u64, arg2: u64) -> (Result<u64, Errno>, u32) {
        let op = MmuExtOp {
            cmd,
            pad: 0,
            arg1,
            arg2,
        };
        let list = self.arg(&op);
        call(self, busy, nr::MMUEXT_OP, &[list, 1, 0, SELF])
    }

    fn update(
        &mut self,
        busy: bool,
        table: Mfn,
        index: u64,
        val: u64,
    ) -> (Result<u64, Errno>, u32) {
        let ptr = table.addr() + index * 8;
        let list = self.arg(&MmuUpdate { ptr, val });
        call(self, busy, nr::MMU_UPDATE, &[list, 1, 0, SELF])
    }

    /// A copy of the kernel's top-level table, that has a large subtree besides.
    fn large_root(&mut self, large: &Large) -> Mfn {
        let root = self.guest.m.root;
        let mut page = [0; 4096];
        self.guest.m.read(root, 0, &mut page);
        self.guest.m.write(large.l4, 0, &page);
        let link = Pte::new(large.l3, LINK).0;
        self.guest.m.store64(large.l4, 8, link);
        large.l4
    }
}

/// How often others have their turn at least while all entries are looked at.
const TURNS: u32 = (ENTRIES * ENTRIES) as u32 / LONGEST_STEP;

#[test]
fn large_tables_are_pinned_and_unpinned_in_steps() {
    for busy in [true, false] {
        let mut bench = Bench::new();
        let large = bench.large();
        bench.guest.ledger.work().take_longest();
        let least = if busy { TURNS } else { 0 };
        for (cmd, table) in [
            (ext::PIN_L4_TABLE, large.l4),
            (ext::PIN_L3_TABLE, large.l3),
            (ext::PIN_L2_TABLE, large.last_l2),
            (ext::PIN_L1_TABLE, large.l1),
        ] {
            let (answer, turns) = bench.ext(busy, cmd, table.0, 0);
            assert_eq!(answer, Ok(0));
            let is_long = cmd == ext::PIN_L4_TABLE || cmd == ext::PIN_L3_TABLE;
            assert!(!is_long || turns >= least, "{turns} turns");
            bench.check();
            assert_eq!(bench.ext(busy, ext::UNPIN_TABLE, table.0, 0).0, Ok(0));
            assert_eq!(bench.guest.ledger.used_as(table), FrameUse::None);
            bench.check();
        }
    }
}

#[test]
fn a_large_table_that_is_bad_at_its_end_is_refused_in_steps() {
    for busy in [true, false] {
        let mut bench = Bench::new();
        let large = bench.large();
        let bad = Pte::new(Bench::SHIM, LINK).0;
        bench.guest.m.store64(large.last_l2, 511 * 8, bad);
        let root = bench.guest.m.root;
        let link = Pte::new(large.l3, LINK).0;
        for _ in 0..2 {
            let pin = bench.ext(busy, ext::PIN_L4_TABLE, large.l4.0, 0).0;
            assert_eq!(pin, Err(Errno::EINVAL));
            let linked = bench.update(busy, root, 1, link).0;
            assert_eq!(linked, Err(Errno::EINVAL));
            assert_eq!(bench.guest.m.load64(root, 8), 0);
        }
        for table in [large.l4, large.l3, large.last_l2, large.l1] {
            assert_eq!(bench.guest.ledger.used_as(table), FrameUse::None);
        }
        bench.check();
    }
}

#[test]
fn a_large_subtree_is_linked_and_unlinked_in_steps() {
    let mut bench = Bench::new();
    let large = bench.large();
    let root = bench.guest.m.root;
    let (answer, turns) = bench.update(true, root, 1, Pte::new(large.l3, LINK).0);
    assert_eq!(answer, Ok(0));
    assert!(turns >= TURNS, "{turns} turns");
    bench.check();
    assert_eq!(bench.update(true, root, 1, 0).0, Ok(0));
    assert_eq!(bench.guest.ledger.used_as(large.l1), FrameUse::None);
    bench.check();
}

#[test]
fn large_bases_are_loaded_and_left_in_steps() {
    let mut bench = Bench::new();
    let large = bench.large();
    let small = bench.guest.m.root;
    let root = bench.large_root(&large);
    for cmd in [ext::NEW_BASEPTR, ext::NEW_USER_BASEPTR] {
        let (answer, turns) = bench.ext(true, cmd, root.0, 0);
        assert_eq!(answer, Ok(0));
        assert!(turns >= TURNS, "{turns} turns");
        let back = if cmd == ext::NEW_BASEPTR { small.0 } else { 0 };
        assert_eq!(bench.ext(true, cmd, back, 0).0, Ok(0));
        assert_eq!(bench.guest.ledger.used_as(large.l1), FrameUse::None);
        bench.check();
    }
}

#[test]
fn a_move_to_cr3_is_made_again_until_it_is_done() {
    let mut bench = Bench::new();
    let large = bench.large();
    let root = bench.large_root(&large);
    // mov %rax, %cr3
    bench.put(Bench::KERNEL, &[0x0fu8, 0x22, 0xd8]);
    let mut turns = 0;
    bench.regs.rip = Bench::KERNEL;
    bench.regs.rax = root.addr();
    while bench.regs.rip == Bench::KERNEL {
        bench.guest.host.events.push_back(HostEvent::Console);
        bench.trap(vector::GENERAL_PROTECTION, 0);
        turns += 1;
        assert!(turns < 1000);
    }
    assert_eq!(
        (bench.regs.rip, bench.guest.m.root),
        (Bench::KERNEL + 3, root)
    );
    assert!(turns > TURNS, "{turns} turns");
    assert!(bench.guest.ledger.work().take_longest() <= LONGEST_STEP);
    bench.check();
}

#[test]
fn what_comes_between_two_steps_finds_the_tables_closed() {
    let mut bench = Bench::new();
    let large = bench.large();
    let rip = bench.regs.rip;
    let list = bench.page(4);
    let op = |cmd, table: Mfn| MmuExtOp {
        cmd,
        pad: 0,
        arg1: table.0,
        arg2: 0,
    };
    bench.put(list, &op(ext::PIN_L4_TABLE, large.l4));
    bench.guest.host.events.push_back(HostEvent::Console);
    bench.syscall(nr::MMUEXT_OP, &[list, 1, 0, SELF]);
    assert_eq!(bench.regs.rip, rip);
    let left = bench.regs;
    for table in [large.l4, large.l3] {
        assert_eq!(bench.guest.ledger.used_as(table), FrameUse::Unfinished);
        let page = bench.page(70);
        let map = bench.remap(page, Pte::new(table, LINK));
        assert_eq!(map, Err(Errno::EINVAL), "not for writing");
        assert_eq!(bench.remap(page, Pte::new(table, LINK & !Pte::RW)), Ok(0));
        assert_eq!(bench.remap(page, Pte(0)), Ok(0));
        let store = bench.update(false, table, 5, 0).0;
        assert_eq!(store, Err(Errno::EINVAL));
        assert_eq!(
            bench.mmuext(ext::CLEAR_PAGE, table.0, 0),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            bench.mmuext(ext::PIN_L1_TABLE, table.0, 0),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            bench.mmuext(ext::UNPIN_TABLE, table.0, 0),
            Err(Errno::EINVAL)
        );
        assert!(bench.guest.ledger.reclaim(table).is_err());
        bench.check();
    }
    // Somebody else goes on with a part of it, and the first with the rest.
    assert_eq!(bench.mmuext(ext::PIN_L3_TABLE, large.l3.0, 0), Ok(0));
    bench.regs = left;
    bench.syscall_again();
    assert_eq!(bench.regs.rax, 0);
    assert_eq!(bench.guest.ledger.used_as(large.l4), FrameUse::L4);
    bench.check();
}

#[test]
fn lists_and_batches_of_large_tables_are_served_in_steps() {
    for busy in [true, false] {
        let mut bench = Bench::new();
        let large = bench.large();
        let list = bench.page(4);
        let op = |cmd, table: Mfn| MmuExtOp {
            cmd,
            pad: 0,
            arg1: table.0,
            arg2: 0,
        };
        // What is dropped by one is cleared by the next.
        let ops = [
            op(ext::PIN_L4_TABLE, large.l4),
            op(ext::UNPIN_TABLE, large.l4),
            op(ext::CLEAR_PAGE, large.l4),
            op(ext::PIN_L3_TABLE, large.l3),
            op(ext::UNPIN_TABLE, large.l3),
            op(ext::CLEAR_PAGE, large.l1),
        ];
        for (index, op) in ops.iter().enumerate() {
            bench.put(list + index as u64 * 24, op);
        }
        let done = bench.page(5);
        bench.put(done, &0u32);
        // A batch of two such lists, of which the second finds an empty L4 table.
        let batch = bench.page(6);
        let entry = [nr::MMUEXT_OP, !0, list, ops.len() as u64, done, SELF, 0, 0];
        bench.put(batch, &entry);
        bench.put(batch + 64, &entry);
        assert_eq!(call(&mut bench, busy, nr::MULTICALL, &[batch, 2]).0, Ok(0));
        assert_eq!(bench.get::<u64>(batch + 8), 0);
        assert_eq!(bench.get::<u64>(batch + 64 + 8), 0);
        assert_eq!(bench.get::<u32>(done), ops.len() as u32);
        bench.check();
    }
}

/// Fills pages, one behind the other, and returns the address of the first.
fn fill(bench: &mut Bench, pages: u64, value: &[u8]) -> u64 {
    let first = bench.page(0);
    for page in 0..pages {
        for at in (0..4096).step_by(value.len()) {
            bench.put(first + page * 4096 + at, value);
        }
    }
    first
}

#[test]
fn lists_at_their_longest_are_served_in_steps() {
    use zerocopy::IntoBytes;
    for busy in [true, false] {
        let mut bench = Bench::new();
        let endless = TrapInfo {
            vector: 3,
            flags: 0,
            cs: 0xe033,
            pad: 0,
            address: Bench::HANDLER,
        };
        let list = fill(&mut bench, 20, endless.as_bytes());
        let (_, turns) = call(&mut bench, busy, nr::SET_TRAP_TABLE, &[list]);
        assert!(!busy || turns > 1000, "{turns}");
        // Every page a table of descriptors.
        let list = fill(&mut bench, 20, &0x00cf_f300_0000_ffffu64.to_le_bytes());
        for page in 0..16 {
            let frame = bench.mfn_of_page(page);
            let ro = Pte::new(frame, Pte::PRESENT | Pte::USER);
            assert_eq!(bench.remap(bench.page(page), ro), Ok(0));
        }
        let frames = (0..14)
            .map(|page| bench.mfn_of_page(page).0)
            .collect::<Vec<_>>();
        let gdt = bench.page(30);
        bench.put(gdt, &frames[..]);
        assert_eq!(
            call(&mut bench, busy, nr::SET_GDT, &[gdt, 14 * 512]).0,
            Ok(0)
        );
        assert_eq!(call(&mut bench, busy, nr::SET_GDT, &[gdt, 0]).0, Ok(0));
        let op = MmuExtOp {
            cmd: ext::SET_LDT,
            pad: 0,
            arg1: list,
            arg2: ext::MAX_LDT_ENTRIES,
        };
        bench.put(gdt, &op);
        let ldt = call(&mut bench, busy, nr::MMUEXT_OP, &[gdt, 1, 0, SELF]);
        assert_eq!(ldt.0, Ok(0));
        bench.check();
    }
}

#[test]
fn pages_are_filled_in_steps() {
    for busy in [true, false] {
        let mut bench = Bench::new();
        let frame = bench.spare(0);
        for cmd in [ext::CLEAR_PAGE, ext::COPY_PAGE] {
            let list = bench.page(20);
            let op = MmuExtOp {
                cmd,
                pad: 0,
                arg1: frame.0,
                arg2: frame.0,
            };
            // As many as lie in 20 pages.
            for index in 0..20 * 4096 / 24 {
                bench.put(list + index * 24, &op);
            }
            let args = [list, 20 * 4096 / 24, 0, SELF];
            assert_eq!(call(&mut bench, busy, nr::MMUEXT_OP, &args).0, Ok(0));
        }
    }
}

#[test]
fn the_balloon_is_served_in_steps() {
    for busy in [true, false] {
        let mut bench = Bench::new();
        let frames = (0..150)
            .map(|index| bench.spare(index).0)
            .collect::<Vec<_>>();
        let list = bench.page(20);
        bench.guest.host.spare = 1000;
        for command in [memory::DECREASE_RESERVATION, memory::POPULATE_PHYSMAP] {
            bench.put(list, &frames[..]);
            let arg = bench.arg(&Reservation {
                extent_start: list,
                nr_extents: 150,
                extent_order: 0,
                mem_flags: 0,
                domid: DomId::SELF.0,
                pad: [0; 3],
            });
            let (answer, turns) = call(&mut bench, busy, nr::MEMORY_OP, &[command, arg]);
            assert_eq!(answer, Ok(150));
            assert!(!busy || turns > 1);
        }
        bench.check();
    }
}

#[test]
fn no_call_takes_longer_whatever_its_arguments() {
    // Those that wait, and those that leave the kernel.
    let excepted = |number, sub| match number {
        nr::IRET => true,
        nr::SCHED_OP => sub <= 3,
        _ => false,
    };
    for filling in [0u8, 0xff] {
        let mut bench = Bench::new();
        let page = bench.page(0);
        for number in 0..64 {
            for sub in 0..36 {
                if excepted(number, sub) {
                    continue;
                }
                for count in [1, u64::MAX] {
                    bench.put(page, &[filling; 4096]);
                    let arg = bench.page(2);
                    bench.put(arg, &[filling; 4096]);
                    for args in [[sub, page, count, SELF, 0], [page, count, arg, SELF, sub]] {
                        if number == nr::SCHED_OP && args[0] == page {
                            continue;
                        }
                        if number == nr::MULTICALL && filling != 0 {
                            continue;
                        }
                        let _ = call(&mut bench, false, number, &args);
                    }
                }
            }
        }
    }
}

#[test]
fn the_bounds_fit_each_other() {
    // A step ends at most with two tables that are not divided.
    assert!(STEP + 2 * ENTRIES as u32 + 8 <= LONGEST_STEP);
}
