//! A random walk through all operations on guest memory.  After every step the ledger is compared
//! with a full scan, and with what the CPUs may still have cached.
//!
//! Operations are interrupted wherever they can be.  Another walk that is never interrupted takes the
//! same steps and comes to the same result; one that leaves half of what it began has yet to be in
//! order.

mod op;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use proptest::collection;
use proptest::prelude::{Strategy, any};
use proptest::prop_oneof;
use proptest::test_runner::{Config, TestRunner};
use xen_abi::mmu::{Level, MmuUpdate, Pte, UvmFlags, update};
use xen_abi::{Errno, Mfn, Pfn};

use self::op::{Op, op};
use super::super::{AddressSpaces, Flush, FrameInfo, FrameUse, Tlb};
use super::machine::{CPUS, HOLE, Machine, USER_RW};
use super::scan::Scan;
use crate::emulate::ptstore::Entry;
use crate::mem::Frames;

const VCPUS: usize = CPUS;

struct Walk {
    machine: Machine,
    spaces: Vec<AddressSpaces>,
    /// The flush that is due at the end of the list that is being worked on.
    owed: Flush,
    pins: BTreeMap<Mfn, Level>,
    descriptors: Vec<Mfn>,
    devices: Vec<Mfn>,
    interrupted: u32,
}

/// Where an operation is interrupted: after how many units for the first time, and after how many
/// more each time from then on; and whether it is begun again then.
type Pauses = (u32, u32, bool);

impl Walk {
    /// Starts with both CPUs on a tree that translates the first 4 MiB and some at the end.
    fn new() -> Self {
        let mut machine = Machine::new();
        for (table, index, child) in [
            (4, 0, 7),
            (4, 511, 7),
            (5, 0, 7),
            (7, 0, 9),
            (7, 511, 9),
            (9, 0, 11),
            (9, 1, 12),
            (9, 511, 13),
        ] {
            machine.poke(Mfn(table), index, Mfn(child), USER_RW);
        }
        let spaces = (0..VCPUS as u64).map(|vcpu| machine.mm().enter(Mfn(4 + vcpu), None));
        let spaces = spaces.collect::<Result<_, _>>().expect("good tables");
        Self {
            machine,
            spaces,
            owed: Flush::None,
            pins: BTreeMap::new(),
            descriptors: Vec::new(),
            devices: Vec::new(),
            interrupted: 0,
        }
    }

    /// Has the next operation interrupted.
    fn pause(&mut self, (first, step, _): Pauses) {
        self.machine.ledger.set_step(step);
        self.machine.ledger.work().spend(step.saturating_sub(first));
    }

    /// Others have their turn, and find everything in order.
    fn look(&mut self) {
        self.interrupted += 1;
        self.check();
        self.machine.ledger.work().note_look();
    }

    /// Does one step, and settles what it owes unless more of a list is to come; returns its result.
    fn step(&mut self, op: &Op, is_last: bool, goes_on: bool) -> Result<(), Errno> {
        let mut result = self.perform(op);
        while result == Err(Errno::ERESTART) {
            self.look();
            if !goes_on {
                break;
            }
            result = self.perform(op);
        }
        match (op, &result) {
            (Op::Va(..), _) => {}
            (Op::Base(vcpu, _) | Op::UserBase(vcpu, _), Ok(Flush::Full)) => {
                self.machine.load_table(*vcpu);
            }
            (_, &Ok(flush)) => self.owed = self.owed.and(flush),
            _ => {}
        }
        if op.ends_lists() {
            self.finish_releases();
        }
        while self.machine.mm().finish_releases().is_err() {
            self.look();
        }
        self.check();
        if is_last {
            self.finish_releases();
        }
        result.map(|_| ())
    }

    fn finish_releases(&mut self) {
        if std::mem::take(&mut self.owed) == Flush::Full {
            self.machine.tlb.flush_everything();
            self.machine.ledger.note_full_flush();
        }
    }

    fn perform(&mut self, op: &Op) -> Result<Flush, Errno> {
        let m2p = std::mem::take(&mut self.machine.m2p);
        let mut mm = self.machine.mm();
        let result = match *op {
            Op::Native(table, index, pte) => {
                // It maps the page for that, and forgets to flush when it has done.
                mm.ledger.get_writable(table, mm.tlb).map(|()| {
                    mm.frames.store64(table, index * 8, pte.0);
                    mm.ledger.put_writable(table);
                    Flush::None
                })
            }
            Op::Pin(level, table) => mm.pin(level, table).inspect(|_| {
                self.pins.insert(table, level);
            }),
            Op::Unpin(table) => mm.unpin(table).inspect(|_| {
                self.pins.remove(&table);
            }),
            Op::Update(table, index, pte, preserve) => {
                let command = u64::from(preserve) * update::PRESERVE_AD;
                let request = MmuUpdate {
                    ptr: table.addr() + index as u64 * 8 + command,
                    val: pte.0,
                };
                mm.mmu_update(request, &m2p)
            }
            Op::Va(vcpu, va, pte) => {
                let root = self.spaces[vcpu].kernel();
                mm.update_va_mapping(root, va, pte, UvmFlags::NONE)
            }
            Op::Store(table, index, pte, differs) => match mm.live_entry(table, index * 8) {
                Some(mut entry) => {
                    let expected = differs.map(|bits| entry.load() ^ bits);
                    let stored = entry.store(expected, pte.0);
                    assert_ne!(stored, Ok(differs == Some(Pte::DIRTY)));
                    stored.map(|_| Flush::None)
                }
                None => Err(Errno::EFAULT),
            },
            Op::Base(vcpu, root) => mm.new_baseptr(&mut self.spaces[vcpu], root),
            Op::UserBase(vcpu, root) => mm.new_user_baseptr(&mut self.spaces[vcpu], root),
            Op::Descriptors(mfn) => mm.get_descriptors(mfn).map(|()| {
                self.descriptors.push(mfn);
                Flush::None
            }),
            Op::DropDescriptors(nr) if nr < self.descriptors.len() => {
                mm.put_descriptors(self.descriptors.swap_remove(nr));
                Ok(Flush::None)
            }
            Op::Descriptor(mfn, index, raw) => mm
                .update_descriptor(mfn.addr() + index as u64 * 8, raw)
                .map(|()| Flush::None),
            Op::Device(mfn) => mm.ledger.get_writable(mfn, mm.tlb).map(|()| {
                self.devices.push(mfn);
                Flush::None
            }),
            Op::DropDevice(nr) if nr < self.devices.len() => {
                mm.ledger.put_writable(self.devices.swap_remove(nr));
                Ok(Flush::None)
            }
            Op::DropDescriptors(_) | Op::DropDevice(_) => Err(Errno::ENOENT),
            Op::Release(mfn) => mm.release(mfn, &m2p),
            Op::Populate(mfn) => {
                let mfn = mm.ledger.last_given_up().unwrap_or(mfn);
                mm.populate(mfn, Pfn(mfn.0), &m2p).map(|()| Flush::None)
            }
            Op::Clear(mfn) => mm.clear_page(mfn).map(|()| Flush::None),
            Op::Copy(to, from) => mm.copy_page(to, from).map(|()| Flush::None),
            Op::Walker(table, index) => {
                let entry = mm.frames.load64(Mfn(table.0 % HOLE.0), index * 8);
                if mm.ledger.used_as(table) == FrameUse::L1 && entry & Pte::PRESENT != 0 {
                    let bits = Pte::ACCESSED + (entry & Pte::RW) * (Pte::DIRTY / Pte::RW);
                    mm.frames.fetch_or64(table, index * 8, bits);
                    Ok(Flush::None)
                } else {
                    Err(Errno::EFAULT)
                }
            }
        };
        self.machine.m2p = m2p;
        result
    }

    fn check(&mut self) {
        let mut scan = Scan::new(&self.machine);
        for (&mfn, &level) in &self.pins {
            scan = scan.pin(level, mfn);
        }
        for spaces in &self.spaces {
            scan = scan.spaces(spaces);
        }
        for &mfn in &self.descriptors {
            scan = scan.descriptors(mfn);
        }
        for &mfn in &self.devices {
            scan = scan.writable(mfn);
        }
        scan.check();
        for (cpu, spaces) in self.spaces.iter().enumerate() {
            self.machine.run(cpu, spaces);
        }
        self.machine.check_cpus();
    }

    /// What stands in memory, and what the ledger says of it.
    fn snapshot(&self) -> Vec<(Option<FrameInfo>, Vec<u64>)> {
        let frames = (0..HOLE.0).map(Mfn);
        let words = |mfn| self.machine.frames.words(mfn).to_vec();
        let line = |mfn| (self.machine.ledger.info(mfn), words(mfn));
        frames.map(line).collect()
    }

    /// Asks again for all that was left half done, and checks that nothing of it stays.
    fn end(mut self) {
        self.machine.ledger.set_step(u32::MAX);
        for mfn in (0..HOLE.0).rev().map(Mfn) {
            if let Some((level, _)) = self.machine.ledger.unfinished(mfn)
                && self.machine.mm().pin(level, mfn).is_ok()
            {
                assert_eq!(self.machine.mm().unpin(mfn), Ok(Flush::None));
            }
        }
        let left = (0..HOLE.0).find(|&mfn| self.machine.ledger.unfinished(Mfn(mfn)).is_some());
        assert_eq!(left, None);
        self.check();
    }
}

fn pauses() -> impl Strategy<Value = Pauses> {
    let first = prop_oneof![1 => 1_u32..6, 1 => 1_u32..1000];
    (first, 100_u32..2000, proptest::bool::weighted(0.4))
}

/// Runs random walks; `go` takes one.
fn walks(cases: u32, go: impl Fn(&[(Op, bool, Pauses)])) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let walk = collection::vec((op(), any::<bool>(), pauses()), 1..160);
    let outcome = TestRunner::new(config).run(&walk, |ops| {
        go(&ops);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn the_ledger_agrees_with_the_tables_after_every_step() {
    let succeeded = RefCell::new(BTreeMap::<String, u32>::new());
    let interrupted = Cell::new(0);
    walks(50, |ops| {
        let (mut walk, mut other) = (Walk::new(), Walk::new());
        for (op, is_last, pauses) in ops {
            walk.pause(*pauses);
            let result = walk.step(op, *is_last, true);
            assert_eq!(result, other.step(op, *is_last, true), "{op:?}");
            let done = result.is_ok();
            *succeeded.borrow_mut().entry(op.name()).or_default() += u32::from(done);
        }
        assert!(walk.snapshot() == other.snapshot(), "as if uninterrupted");
        interrupted.set(interrupted.get() + walk.interrupted);
    });
    assert!(interrupted.get() > 20, "{} times", interrupted.get());
    let succeeded = succeeded.into_inner();
    assert_eq!(succeeded.len(), 18, "every kind was tried: {succeeded:?}");
    for (name, &count) in &succeeded {
        assert!(count > 0, "{name} never succeeds: {succeeded:?}");
    }
}

#[test]
fn what_is_left_half_done_is_in_order_and_can_be_taken_up() {
    let left = Cell::new(0);
    walks(30, |ops| {
        let mut walk = Walk::new();
        for (op, is_last, pauses) in ops {
            walk.pause(*pauses);
            let result = walk.step(op, *is_last, pauses.2);
            left.set(left.get() + u32::from(result == Err(Errno::ERESTART)));
        }
        walk.end();
    });
    assert!(left.get() > 3, "{} times", left.get());
}
