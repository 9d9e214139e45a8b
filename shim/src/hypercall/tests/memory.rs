//! `memory_op`: what goes out comes back, whatever is asked for, and never is a page in two hands.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{Strategy, prop_oneof, proptest};
use xen_abi::hypercall::MEMORY_OP;
use xen_abi::memory::{MachphysMapping, MemoryMap, Reservation, op};
use xen_abi::mmu::{INVALID_M2P_ENTRY, Pte};
use xen_abi::{DomId, Errno, Mfn, PAGE_SIZE};

use super::{HOLE, UNMAPPED};
use crate::guest::Leftovers;
use crate::host::HostEvent;
use crate::mem::Frames;
use crate::mm::Owner;
use crate::testing::{Bench, Flushed};

/// Makes a balloon call for extents that lie at `bench.page(3)`.
fn balloon(bench: &mut Bench, command: u64, count: u64) -> Result<u64, Errno> {
    let arg = bench.arg(&Reservation {
        extent_start: bench.page(3),
        nr_extents: count,
        extent_order: 0,
        mem_flags: 0,
        domid: DomId::SELF.0,
        pad: [0; 3],
    });
    bench.call(MEMORY_OP, &[command, arg])
}

fn decrease(bench: &mut Bench, frames: &[Mfn]) -> Result<u64, Errno> {
    let list = bench.page(3);
    for (index, frame) in frames.iter().enumerate() {
        bench.put(list + index as u64 * 8, &frame.0);
    }
    balloon(bench, op::DECREASE_RESERVATION, frames.len() as u64)
}

fn populate(bench: &mut Bench, pfns: &[u64]) -> (Result<u64, Errno>, Vec<Mfn>) {
    let list = bench.page(3);
    bench.put(list, pfns);
    let answer = balloon(bench, op::POPULATE_PHYSMAP, pfns.len() as u64);
    let done = answer.unwrap_or(0);
    let frames = (0..done).map(|index| Mfn(bench.get(list + index * 8)));
    (answer, frames.collect())
}

/// The frames that the guest has given up, the last first.
fn given_up(bench: &Bench) -> Vec<Mfn> {
    let ledger = &bench.guest.ledger;
    let before = |mfn: &Mfn| ledger.given_up_before(*mfn);
    std::iter::successors(ledger.last_given_up(), before).collect()
}

/// Frames that the guest has mapped nowhere.
fn free(bench: &Bench, count: u64) -> Vec<Mfn> {
    (0..count)
        .map(|index| bench.mfn(Bench::UNMAPPED + index))
        .collect()
}

#[test]
fn pages_go_to_the_host_and_come_back_clear() {
    let mut bench = Bench::new();
    let frames = free(&bench, 5);
    bench.guest.m.store64(frames[2], 8, 0x5ec2e7);
    let pages = bench.guest.pages;
    bench.guest.m.take_flushes();
    assert_eq!(decrease(&mut bench, &frames), Ok(5));
    assert_eq!(bench.guest.m.take_flushes(), [Flushed::All], "once for all");
    assert_eq!(bench.guest.pages, pages - 5);
    for &frame in &frames {
        assert!(!bench.guest.m.frames.contains(frame));
        assert_eq!(bench.guest.ledger.owner(frame), Owner::GivenUp);
        assert_eq!(bench.guest.m.m2p(frame), INVALID_M2P_ENTRY);
    }
    let own = bench.arg(&DomId::SELF.0);
    let current = bench.call(MEMORY_OP, &[op::CURRENT_RESERVATION, own]);
    assert_eq!(current, Ok(pages - 5));

    let pfns: Vec<u64> = (0..7).map(|index| 2000 + index).collect();
    let (answer, back) = populate(&mut bench, &pfns);
    assert_eq!(answer, Ok(5), "no more than were given up");
    let mut sorted = back.clone();
    sorted.sort();
    assert_eq!(sorted, frames);
    for (&frame, pfn) in back.iter().zip(pfns) {
        assert_eq!(bench.guest.m.m2p(frame), pfn);
        assert_eq!(bench.guest.ledger.owner(frame), Owner::Guest);
        assert_eq!(bench.guest.m.load64(frame, 8), 0);
    }
    assert_eq!(bench.guest.pages, pages);
    bench.check();
}

#[test]
fn a_page_in_use_stays_and_ends_the_list() {
    let mut bench = Bench::new();
    let free = free(&bench, 2);
    let mapped = {
        let page = bench.page(8);
        bench.frame(page)
    };
    let table = bench.mfn(bench.layout.tables.start);
    for wrong in [
        mapped,
        table,
        Bench::SHIM,
        Bench::STORE,
        Bench::END,
        Mfn(!0),
    ] {
        assert_eq!(decrease(&mut bench, &[wrong, free[0]]), Ok(0), "{wrong:?}");
    }
    assert_eq!(decrease(&mut bench, &[free[0], free[0], free[1]]), Ok(1));
    assert_eq!(decrease(&mut bench, &[free[1], Mfn(!0)]), Ok(1));
    assert_eq!(given_up(&bench), [free[1], free[0]]);
    bench.check();
}

#[test]
fn a_page_that_was_just_unmapped_is_forgotten_before_the_host_has_it() {
    let mut bench = Bench::new();
    let page = bench.page(8);
    bench.put(page, &1u64);
    let frame = bench.frame(page);
    // Without a flush, as balloon drivers may.
    let unmap = [page, 0, 0];
    let answer = bench.call(xen_abi::hypercall::UPDATE_VA_MAPPING, &unmap);
    assert_eq!(answer, Ok(0));
    assert!(bench.guest.m.translate(page, true).is_ok(), "remembered");
    assert_eq!(decrease(&mut bench, &[frame]), Ok(1));
    assert!(bench.guest.m.translate(page, true).is_err());
    bench.check();
}

#[test]
fn a_host_without_memory_fills_fewer() {
    let mut bench = Bench::new();
    let frames = free(&bench, 4);
    assert_eq!(decrease(&mut bench, &frames), Ok(4));
    bench.guest.host.spare = 3;
    let (answer, back) = populate(&mut bench, &[1, 2, 3, 4]);
    assert_eq!((answer, back.len()), (Ok(3), 3));
    assert_eq!(given_up(&bench).len(), 1);
    bench.check();
}

#[test]
fn an_extent_that_the_guest_is_not_told_of_does_not_count() {
    let mut bench = Bench::new();
    let frames = free(&bench, 2);
    assert_eq!(decrease(&mut bench, &frames), Ok(2));
    let list = bench.page(3);
    bench.put(list, &[1u64, 2]);
    let read_only = Pte::new(bench.frame(list), Pte::PRESENT);
    assert_eq!(bench.remap(list, read_only), Ok(0));
    assert_eq!(balloon(&mut bench, op::POPULATE_PHYSMAP, 2), Ok(0));
    // It has the page, as under Xen, and finds it by its name.
    assert_eq!(given_up(&bench).len(), 1);
    bench.check();
}

#[test]
fn a_host_that_keeps_its_pages_costs_the_guest_nothing() {
    let mut bench = Bench::new();
    let frames = free(&bench, 2);
    bench.guest.host.keeps_frames = true;
    assert_eq!(decrease(&mut bench, &frames), Ok(2));
    let (answer, _) = populate(&mut bench, &[1, 2]);
    assert_eq!(answer, Ok(2));
    bench.check();
}

#[test]
fn what_can_not_begin_does_nothing_and_says_so_by_its_count() {
    let mut bench = Bench::new();
    let frame = free(&bench, 1)[0];
    let list = bench.page(3);
    bench.put(list, &frame.0);
    let good = Reservation {
        extent_start: list,
        nr_extents: 1,
        extent_order: 0,
        mem_flags: 0,
        domid: DomId::SELF.0,
        pad: [0; 3],
    };
    let wrong = [
        Reservation { domid: 0, ..good },
        Reservation {
            nr_extents: 0,
            ..good
        },
        Reservation {
            nr_extents: 1 << 26,
            ..good
        },
        Reservation {
            extent_order: 9,
            ..good
        },
        Reservation {
            extent_start: UNMAPPED,
            ..good
        },
        Reservation {
            extent_start: HOLE,
            ..good
        },
        Reservation {
            extent_start: u64::MAX - 3,
            ..good
        },
    ];
    for command in [op::DECREASE_RESERVATION, op::POPULATE_PHYSMAP] {
        for (index, reservation) in wrong.iter().enumerate() {
            let arg = bench.arg(reservation);
            let answer = bench.call(MEMORY_OP, &[command, arg]);
            assert_eq!(answer, Ok(0), "{command}, case {index}");
        }
        for arg in [0, UNMAPPED, HOLE] {
            assert_eq!(bench.call(MEMORY_OP, &[command, arg]), Ok(0));
        }
        let arg = bench.arg(&good);
        let later = command | 7 << op::EXTENT_SHIFT;
        assert_eq!(bench.call(MEMORY_OP, &[later, arg]), Ok(7));
    }
    assert_eq!(given_up(&bench), []);
}

#[test]
fn a_long_list_makes_way_for_the_host_and_is_taken_up_again() {
    let mut bench = Bench::new();
    let frames = free(&bench, 6);
    bench.put(
        bench.page(3),
        &frames.iter().map(|f| f.0).collect::<Vec<_>>()[..],
    );
    let rip = bench.regs.rip;
    for command in [op::DECREASE_RESERVATION, op::POPULATE_PHYSMAP] {
        bench.regs.rip = rip;
        bench.guest.host.events.push_back(HostEvent::Console);
        let arg = bench.arg(&Reservation {
            extent_start: bench.page(3),
            nr_extents: 6,
            extent_order: 0,
            mem_flags: 0,
            domid: DomId::SELF.0,
            pad: [0; 3],
        });
        bench.syscall(MEMORY_OP, &[command, arg]);
        assert_eq!(bench.regs.rip, rip, "the instruction is to be repeated");
        assert_eq!(bench.regs.rax, MEMORY_OP);
        assert_eq!(bench.regs.rdi, command | 1 << op::EXTENT_SHIFT);
        assert_eq!(bench.regs.rsi, arg);
        assert!(bench.guest.host.events.is_empty(), "it had its turn");
        bench.syscall_again();
        assert_eq!((bench.regs.rax, bench.regs.rip), (6, rip + 2));
    }
    assert_eq!(given_up(&bench), []);
    bench.check();
}

#[test]
fn the_guest_learns_how_much_there_is() {
    let mut bench = Bench::new();
    let own = bench.arg(&DomId::SELF.0);
    let max = bench.guest.max_pages;
    for (command, expected) in [
        (op::CURRENT_RESERVATION, max),
        (op::MAXIMUM_RESERVATION, max),
        (op::MAXIMUM_GPFN, max - 1),
        (op::MAXIMUM_RAM_PAGE, Bench::END.0 - 1),
    ] {
        assert_eq!(bench.call(MEMORY_OP, &[command, own]), Ok(expected));
    }
    let foreign = bench.arg(&0u16);
    for command in [op::CURRENT_RESERVATION, op::MAXIMUM_RESERVATION] {
        let answer = bench.call(MEMORY_OP, &[command, foreign]);
        assert_eq!(answer, Err(Errno::EPERM));
        let answer = bench.call(MEMORY_OP, &[command, HOLE]);
        assert_eq!(answer, Err(Errno::EFAULT));
    }
    let va = bench.page(0);
    assert_eq!(bench.call(MEMORY_OP, &[op::MACHPHYS_MAPPING, va]), Ok(0));
    let told: MachphysMapping = bench.get(va);
    let expected = [0xffff_8000_0000_0000, 0xffff_8040_0000_0000, 0x7_ffff_ffff];
    assert_eq!([told.v_start, told.v_end, told.max_mfn], expected);
    let answer = bench.call(MEMORY_OP, &[op::MACHPHYS_MAPPING, HOLE]);
    assert_eq!(answer, Err(Errno::EFAULT));
    let privileged = bench.call(MEMORY_OP, &[op::MACHINE_MEMORY_MAP, va]);
    assert_eq!(privileged, Err(Errno::EPERM));
    for command in [op::EXCHANGE, op::ADD_TO_PHYSMAP, 26, 28, 63] {
        let answer = bench.call(MEMORY_OP, &[command, va]);
        assert_eq!(answer, Err(Errno::ENOSYS), "command {command}");
    }
}

#[test]
fn memory_that_a_move_would_not_see_is_not_taken() {
    let mut bench = Bench::new();
    let frames = free(&bench, 2);
    assert_eq!(decrease(&mut bench, &frames), Ok(2));
    bench.guest.host.is_mute = true;
    assert_eq!(populate(&mut bench, &[1, 2]).0, Ok(0));
    let there = frames
        .iter()
        .filter(|frame| bench.guest.m.frames.contains(**frame));
    assert_eq!(there.count(), 0);
    bench.guest.host.is_mute = false;
    assert_eq!(populate(&mut bench, &[1, 2]).0, Ok(2));
    bench.check();
}

#[test]
fn memory_that_a_move_has_brought_along_is_given_back_before_other_is_taken() {
    let mut bench = Bench::new();
    let frames = free(&bench, 3);
    assert_eq!(decrease(&mut bench, &frames), Ok(3));
    // Two of them were sent before the guest gave them up.
    frames[1..]
        .iter()
        .for_each(|frame| bench.guest.m.frames.add(*frame));
    bench.guest.leftovers = Leftovers::after_a_move(&bench.guest.ledger);
    // The call finds its turn only afterwards.
    assert_eq!(populate(&mut bench, &[1, 2, 3]).0, Ok(3));
    assert_eq!(bench.guest.host.lost, 0);
    assert!(!bench.guest.leftovers.are_there());
    bench.check();
}

#[test]
fn memory_that_a_move_has_brought_along_goes_back_by_and_by() {
    let mut bench = Bench::new();
    let frames = free(&bench, 100);
    assert_eq!(decrease(&mut bench, &frames), Ok(100));
    // Every third of them was sent before the guest gave it up.
    let came = frames.iter().step_by(3);
    came.for_each(|frame| bench.guest.m.frames.add(*frame));
    let there = |bench: &Bench| {
        let frames = frames.iter();
        frames
            .filter(|frame| bench.guest.m.frames.contains(**frame))
            .count()
    };
    bench.guest.leftovers = Leftovers::after_a_move(&bench.guest.ledger);
    // The guest takes some again, and gives up others, while it is being done.
    let mut owned = 0;
    let mut turns = 0;
    while bench.guest.leftovers.are_there() {
        let (answer, back) = populate(&mut bench, &[1, 2, 3]);
        assert_eq!(answer, Ok(3));
        if turns % 2 == 0 {
            assert_eq!(decrease(&mut bench, &back[..2]), Ok(2));
            owned += 1;
        } else {
            owned += 3;
        }
        turns += 1;
    }
    assert!((2..10).contains(&turns), "{turns} turns");
    assert_eq!(there(&bench), owned);
    assert_eq!(bench.guest.host.lost, 0);
    bench.check();
}

/// Whoever reads a domain while it runs: by the host's record of writes, as Xen's own tools do.
struct Reader(BTreeMap<Mfn, [u8; PAGE_SIZE]>);

impl Reader {
    /// Begins with all of the memory.
    fn begin(bench: &Bench) -> Self {
        bench.guest.m.frames.record_writes();
        let mut reader = Self(BTreeMap::new());
        reader.read(bench, (0..Bench::END.0).map(Mfn));
        reader
    }

    /// Another round: over the frames that are marked.
    fn go_on(&mut self, bench: &Bench) {
        self.read(bench, bench.guest.m.frames.take_written());
    }

    fn read(&mut self, bench: &Bench, frames: impl IntoIterator<Item = Mfn>) {
        for frame in frames {
            if bench.guest.m.frames.contains(frame) {
                let mut page = [0; PAGE_SIZE];
                bench.guest.m.read(frame, 0, &mut page);
                self.0.insert(frame, page);
            }
        }
    }
}

proptest! {
    /// Whenever a guest gives memory up, takes it back and writes to it, and whenever it is read
    /// meanwhile: in the end the reader has all of the memory that there is.
    #[test]
    fn whoever_reads_a_guest_by_the_hosts_record_has_all_of_it(
        steps in vec((vec((step(), proptest::prelude::any::<u64>()), 0..6), 0..3), 1..8),
    ) {
        let mut bench = Bench::new();
        let frames = free(&bench, 20);
        let mut reader = Reader::begin(&bench);
        for (changes, rounds) in steps {
            for (change, value) in changes {
                match change {
                    Step::Down(list) => {
                        let named = list.iter().filter_map(|index| frames.get(*index as usize));
                        let named: Vec<Mfn> = named.copied().collect();
                        decrease(&mut bench, &named).expect("a count");
                    }
                    Step::Up(count) => {
                        let pfns: Vec<u64> = (0..count as u64).collect();
                        populate(&mut bench, &pfns).0.expect("a count");
                    }
                    // As the guest does through a mapping of its own.
                    Step::Map(index) | Step::Unmap(index) => {
                        let frame = frames[index as usize];
                        if bench.guest.m.frames.contains(frame) {
                            bench.guest.m.store64(frame, 8, value);
                        }
                    }
                }
            }
            (0..rounds).for_each(|_| reader.go_on(&bench));
        }
        reader.go_on(&bench);
        for frame in (0..Bench::END.0).map(Mfn).filter(|frame| bench.guest.m.frames.contains(*frame)) {
            let mut page = [0; PAGE_SIZE];
            bench.guest.m.read(frame, 0, &mut page);
            assert!(reader.0.get(&frame) == Some(&page), "{frame:?}");
        }
        bench.check();
    }
}

#[test]
fn a_guest_sees_memory_to_come_and_gets_it_on_demand() {
    let mut bench = Bench::new();
    let pages = bench.guest.pages;
    let later = Mfn(Bench::END.0 - 1);
    bench.guest.ledger.give_later(later).expect("nobody's");
    bench.guest.max_pages = pages + 1;
    let own = bench.arg(&DomId::SELF.0);
    let current = bench.call(MEMORY_OP, &[op::CURRENT_RESERVATION, own]);
    let most = bench.call(MEMORY_OP, &[op::MAXIMUM_RESERVATION, own]);
    assert_eq!((current, most), (Ok(pages), Ok(pages + 1)));

    let buffer = bench.page(3);
    for (room, expected) in [(128, 1), (1, 1), (0, 0)] {
        bench.put(buffer, &[0xffu8; 24]);
        let map = MemoryMap {
            nr_entries: room,
            pad: 0,
            buffer,
        };
        let arg = bench.arg(&map);
        assert_eq!(bench.call(MEMORY_OP, &[op::MEMORY_MAP, arg]), Ok(0));
        assert_eq!(bench.get::<MemoryMap>(arg).nr_entries, expected);
        let words: [u64; 3] = bench.get(buffer);
        let all = [0, (pages + 1) * 4096, 0xffff_ffff_0000_0001];
        let expected = if expected == 1 { all } else { [!0; 3] };
        assert_eq!(words, expected, "20 bytes, and no more");
    }
    for (nr_entries, buffer, arg) in [(1, HOLE, None), (1, buffer, Some(HOLE))] {
        let map = MemoryMap {
            nr_entries,
            pad: 0,
            buffer,
        };
        let arg = arg.unwrap_or_else(|| bench.arg(&map));
        let answer = bench.call(MEMORY_OP, &[op::MEMORY_MAP, arg]);
        assert_eq!(answer, Err(Errno::EFAULT));
    }

    let (answer, frames) = populate(&mut bench, &[5000, 5001]);
    assert_eq!((answer, frames), (Ok(1), vec![later]));
    assert_eq!(bench.guest.pages, pages + 1);
    assert_eq!(bench.guest.ledger.owner(later), Owner::Guest);
    bench.check();
}

/// One step of a balloon driver, or of something that is none.
#[derive(Clone, Debug)]
enum Step {
    Down(Vec<u64>),
    Up(usize),
    Map(u64),
    Unmap(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        vec(0u64..30, 1..6).prop_map(Step::Down),
        (1usize..6).prop_map(Step::Up),
        (0u64..20).prop_map(Step::Map),
        (0u64..20).prop_map(Step::Unmap),
    ]
}

proptest! {
    /// Whatever a guest does with its balloon: the counts agree, a page is the guest's or given
    /// up, and nothing leads to one that was.
    #[test]
    fn pages_are_neither_lost_nor_made(steps in vec(step(), 1..40)) {
        let mut bench = Bench::new();
        let total = bench.guest.pages;
        let frames = free(&bench, 20);
        let wild = [Bench::SHIM, Bench::STORE, Bench::END, Mfn(!0)];
        let window = bench.page(40);
        for step in steps {
            match step {
                Step::Down(list) => {
                    let named = |index: u64| {
                        let index = index as usize;
                        frames.get(index).copied().unwrap_or(wild[index % 4])
                    };
                    let list: Vec<Mfn> = list.into_iter().map(named).collect();
                    decrease(&mut bench, &list).expect("a count");
                }
                Step::Up(count) => {
                    let pfns: Vec<u64> = (0..count as u64).collect();
                    populate(&mut bench, &pfns).0.expect("a count");
                }
                Step::Map(index) => {
                    let pte = Pte::new(frames[index as usize], Pte::PRESENT | Pte::RW);
                    let mapped = bench.remap(window + index * 4096, pte);
                    if mapped.is_ok() {
                        bench.put(window + index * 4096, &index);
                    }
                }
                Step::Unmap(index) => {
                    bench.remap(window + index * 4096, Pte(0)).expect("always");
                }
            }
            let list = given_up(&bench);
            assert_eq!(list.len() as u64, bench.guest.ledger.given_up_frames());
            assert_eq!(bench.guest.pages + list.len() as u64, total);
            for frame in &list {
                assert_eq!(bench.guest.ledger.owner(*frame), Owner::GivenUp);
                assert!(!bench.guest.m.frames.contains(*frame));
            }
        }
        bench.check();
    }
}
