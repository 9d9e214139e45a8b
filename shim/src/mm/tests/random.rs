//! A random walk through all operations on guest memory.  After every step the ledger is compared
//! with a full scan, and with what the CPUs may still have cached.

mod op;

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::collection;
use proptest::prelude::any;
use proptest::test_runner::{Config, TestRunner};
use xen_abi::mmu::{Level, MmuUpdate, Pte, UvmFlags, update};
use xen_abi::{Errno, Mfn, Pfn};

use self::op::{Op, op};
use super::super::{AddressSpaces, Flush, FrameUse, Tlb};
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
}

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
        }
    }

    /// Does one step, and settles what it owes unless more of a list is to come; returns its result.
    fn step(&mut self, op: &Op, is_last: bool) -> Result<(), Errno> {
        let result = self.perform(op);
        match (op, &result) {
            (Op::Va(..), _) => {}
            (Op::Base(vcpu, _) | Op::UserBase(vcpu, _), Ok(Flush::Full)) => {
                self.machine.load_table(*vcpu);
            }
            (_, &Ok(flush)) => self.owed = self.owed.and(flush),
            _ => {}
        }
        if op.ends_lists() {
            self.settle();
        }
        self.check();
        if is_last {
            self.settle();
        }
        result.map(|_| ())
    }

    fn settle(&mut self) {
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
}

#[test]
fn the_ledger_agrees_with_the_tables_after_every_step() {
    let succeeded = RefCell::new(BTreeMap::<String, u32>::new());
    let config = Config {
        cases: 80,
        failure_persistence: None,
        ..Config::default()
    };
    let walk = collection::vec((op(), any::<bool>()), 1..160);
    let outcome = TestRunner::new(config).run(&walk, |ops| {
        let mut walk = Walk::new();
        for (op, is_last) in &ops {
            let done = walk.step(op, *is_last).is_ok();
            *succeeded.borrow_mut().entry(op.name()).or_default() += u32::from(done);
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let succeeded = succeeded.into_inner();
    assert_eq!(succeeded.len(), 18, "every kind was tried: {succeeded:?}");
    for (name, &count) in &succeeded {
        assert!(count > 0, "{name} never succeeds: {succeeded:?}");
    }
}
