//! A random walk through all operations on guest memory.  After every step the ledger is compared
//! with a full scan, and with what the CPUs may still have cached.

mod op;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::collection;
use proptest::test_runner::{Config, TestRunner};
use xen_abi::mmu::{Level, MmuUpdate, Pte, UvmFlags, update};
use xen_abi::{Errno, Mfn, Pfn};

use self::op::{Op, op};
use super::super::{AddressSpaces, Flush, FrameUse, Owner};
use super::machine::{HOLE, Machine, USER_RW};
use super::scan::Scan;
use crate::emulate::ptstore::Entry;
use crate::mem::Frames;

const VCPUS: usize = 2;

/// What a CPU may have cached since it was last flushed.
#[derive(Default)]
struct Cache {
    tables: BTreeMap<Mfn, FrameUse>,
    writable: BTreeSet<Mfn>,
    readable: BTreeSet<Mfn>,
}

struct Walk {
    machine: Machine,
    spaces: Vec<AddressSpaces>,
    caches: Vec<Cache>,
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
            caches: (0..VCPUS).map(|_| Cache::default()).collect(),
            pins: BTreeMap::new(),
            descriptors: Vec::new(),
            devices: Vec::new(),
        }
    }

    /// Does one step and settles what it owes; returns its result.
    fn step(&mut self, op: &Op) -> Result<(), Errno> {
        let flushed = self.machine.tlb.0.get();
        let result = self.perform(op);
        if self.machine.tlb.0.get() != flushed {
            self.caches.fill_with(Cache::default);
        }
        match (op, &result) {
            (Op::Va(..), _) => {}
            (Op::Base(vcpu, _) | Op::UserBase(vcpu, _), Ok(Flush::Full)) => {
                self.caches[*vcpu] = Cache::default();
            }
            (_, Ok(Flush::Full)) => {
                self.caches.fill_with(Cache::default);
                self.machine.ledger.note_full_flush();
            }
            _ => {}
        }
        self.check();
        result.map(|_| ())
    }

    fn perform(&mut self, op: &Op) -> Result<Flush, Errno> {
        let m2p = std::mem::take(&mut self.machine.m2p);
        let mut mm = self.machine.mm();
        let result = match *op {
            Op::Native(table, index, pte) => {
                if mm.ledger.is_plain_data(table) {
                    mm.frames.store64(table, index * 8, pte.0);
                    Ok(Flush::None)
                } else {
                    Err(Errno::EFAULT)
                }
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
            Op::Device(mfn) => mm.ledger.get_writable(mfn).map(|()| {
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
        for (cache, spaces) in self.caches.iter_mut().zip(&self.spaces) {
            let scan = Scan::new(&self.machine).spaces(spaces);
            cache.readable.extend(scan.read_only());
            for (mfn, kind) in scan.uses() {
                if kind == FrameUse::Writable {
                    cache.writable.insert(mfn);
                } else {
                    let known = cache.tables.insert(mfn, kind);
                    assert!(known.is_none_or(|known| known == kind), "{mfn:?} changed");
                }
            }
        }
        for cache in &self.caches {
            for (&mfn, &kind) in &cache.tables {
                // A frame that is no table any more could be written while a CPU walks it.
                assert_eq!(self.machine.ledger.used_as(mfn), kind, "cached table");
            }
            for &mfn in &cache.writable {
                let plain = self.machine.ledger.is_plain_data(mfn);
                assert!(plain, "{mfn:?} can be written through a stale translation");
            }
            for &mfn in &cache.readable {
                let owner = self.machine.ledger.owner(mfn);
                let is_gone = matches!(owner, Owner::Shim | Owner::Nobody | Owner::GivenUp);
                assert!(!is_gone, "{mfn:?}");
            }
        }
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
    let walk = collection::vec(op(), 1..160);
    let outcome = TestRunner::new(config).run(&walk, |ops| {
        let mut walk = Walk::new();
        for op in &ops {
            let done = walk.step(op).is_ok();
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
