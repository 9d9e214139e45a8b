//! A random walk through all operations on guest memory.  After every step the ledger is compared
//! with a full scan, and with what the CPUs may still have cached.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{Just, Strategy, any};
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use proptest::{collection, prop_oneof};
use xen_abi::mmu::{Level, MmuUpdate, Pte, UvmFlags, update};
use xen_abi::{Errno, GuestVa, Mfn, Pfn};

use super::super::{AddressSpaces, Flush, FrameUse, Owner};
use super::machine::{
    FIRST_GUEST, HOLE, KERNEL_RO, KERNEL_RW, Machine, OUTSIDE, READ_ONLY, SHARED, SHIM, USER_RW,
};
use super::scan::Scan;
use crate::emulate::ptstore::Entry;
use crate::mem::Frames;

const VCPUS: usize = 2;

#[derive(Clone, Debug)]
enum Op {
    /// The guest writes a frame that it may map writable.
    Native(Mfn, usize, Pte),
    Pin(Level, Mfn),
    Unpin(Mfn),
    Update(Mfn, usize, Pte, bool),
    Va(usize, GuestVa, Pte),
    /// An emulated store; with a value, an exchange that expects the entry to differ by it.
    Store(Mfn, usize, Pte, Option<u64>),
    Base(usize, Mfn),
    UserBase(usize, Mfn),
    Descriptors(Mfn),
    DropDescriptors(usize),
    Descriptor(Mfn, usize, u64),
    Device(Mfn),
    DropDevice(usize),
    Release(Mfn),
    Populate(Mfn),
    Clear(Mfn),
    Copy(Mfn, Mfn),
    /// The page walker notes an access.
    Walker(Mfn, usize),
}

impl Op {
    fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split('(').next().unwrap_or_default().to_owned()
    }
}

/// Frames by the use that the walk prefers for them, so that it gets anywhere: 0 is data.
fn role(level: u64) -> impl Strategy<Value = Mfn> {
    let usual = match level {
        4 => 4..7,
        3 => 7..9,
        2 => 9..11,
        1 => 11..15,
        _ => 15..20_u64,
    };
    prop_oneof![
        24 => usual.prop_map(Mfn),
        2 => (FIRST_GUEST..20).prop_map(Mfn),
        1 => select(vec![SHARED, READ_ONLY, SHIM, HOLE, OUTSIDE, Mfn(0)]),
    ]
}

fn any_frame() -> impl Strategy<Value = Mfn> {
    (0_u64..5).prop_flat_map(role)
}

fn index() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0_usize..2, 1 => select(vec![255, 256, 271, 272, 511])]
}

fn flags() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => select(vec![USER_RW, KERNEL_RW]),
        6 => Just(KERNEL_RO),
        6 => Just(0),
        1 => any::<u64>().prop_map(|bits| bits & !Pte::FRAME),
    ]
}

fn entry(level: u64) -> impl Strategy<Value = Pte> {
    // Of the entries that map pages, some map tables.
    let target = prop_oneof![3 => role(level - 1).boxed(), 1 => any_frame().boxed()];
    (target, flags()).prop_map(|(frame, flags)| Pte::new(frame, flags))
}

fn slot() -> impl Strategy<Value = (Mfn, usize, Pte)> {
    let level = select(vec![1_u64, 1, 1, 2, 2, 3, 4]);
    level.prop_flat_map(|level| (role(level), index(), entry(level)))
}

fn store() -> impl Strategy<Value = Op> {
    // Overwrite, exchange what is there, exchange what was there before the walker came.
    let expected = select(vec![None, Some(0), Some(Pte::DIRTY)]);
    (role(1), index(), entry(1), expected)
        .prop_map(|(table, index, pte, expected)| Op::Store(table, index, pte, expected))
}

fn op() -> impl Strategy<Value = Op> {
    let levels = select(vec![Level::L1, Level::L2, Level::L3, Level::L4]);
    let pin = levels.prop_flat_map(|level| (Just(level), role(level as u64)));
    let bases = select(vec![0, 1 << 21, (!0_u64) << 21]);
    let va = (0..VCPUS, index(), bases, entry(1))
        .prop_map(|(vcpu, l1, base, pte)| Op::Va(vcpu, GuestVa(base + l1 as u64 * 4096), pte));
    let raw = select(vec![
        0,
        0x00af_9b00_0000_ffff,
        0x8900_0000_0067,
        0x2000_0000_0000,
    ]);
    prop_oneof![
        12 => slot().prop_map(|(table, index, pte)| Op::Native(table, index, pte)),
        4 => pin.prop_map(|(level, table)| Op::Pin(level, table)),
        3 => any_frame().prop_map(Op::Unpin),
        8 => (slot(), any::<bool>()).prop_map(|((table, index, pte), preserve)| {
            Op::Update(table, index, pte, preserve)
        }),
        6 => va,
        8 => store(),
        2 => (0..VCPUS, role(4)).prop_map(|(vcpu, root)| Op::Base(vcpu, root)),
        2 => (0..VCPUS, role(4)).prop_map(|(vcpu, root)| Op::UserBase(vcpu, root)),
        1 => any_frame().prop_map(Op::Descriptors),
        3 => (0_usize..2).prop_map(Op::DropDescriptors),
        1 => (any_frame(), index(), raw)
            .prop_map(|(frame, index, raw)| Op::Descriptor(frame, index, raw)),
        1 => any_frame().prop_map(Op::Device),
        3 => (0_usize..2).prop_map(Op::DropDevice),
        2 => any_frame().prop_map(Op::Release),
        6 => any_frame().prop_map(Op::Populate),
        1 => any_frame().prop_map(Op::Clear),
        1 => (any_frame(), any_frame()).prop_map(|(to, from)| Op::Copy(to, from)),
        2 => (role(1), index()).prop_map(|(table, index)| Op::Walker(table, index)),
    ]
}

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
            Op::Populate(mfn) if mfn == HOLE => Err(Errno::ENOMEM),
            Op::Populate(mfn) => mm.populate(mfn, Pfn(mfn.0), &m2p).map(|()| Flush::None),
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
                assert!(!matches!(owner, Owner::Shim | Owner::Nobody), "{mfn:?}");
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
