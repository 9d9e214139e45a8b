//! An independent account of all references: starting from what the test knows to be held, it
//! reads every table reachable and compares with the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use xen_abi::mmu::{ENTRIES, FIRST_XEN_SLOT, Level, Pte, is_guest_l4_slot};
use xen_abi::{Mfn, PAGE_SIZE};

use super::super::{AddressSpaces, FrameUse, Owner};
use super::machine::{END, Machine};
use crate::mem::Frames;

pub struct Scan<'a> {
    machine: &'a Machine,
    typed: BTreeMap<Mfn, (FrameUse, u64)>,
    plain: BTreeMap<Mfn, u64>,
    pinned: BTreeSet<Mfn>,
}

impl<'a> Scan<'a> {
    /// Begins with what is half checked or half released, which nothing leads to.
    pub fn new(machine: &'a Machine) -> Self {
        let mut scan = Self {
            machine,
            typed: BTreeMap::new(),
            plain: BTreeMap::new(),
            pinned: BTreeSet::new(),
        };
        for mfn in (0..END).map(Mfn) {
            let info = machine.ledger.info(mfn).expect("in range");
            assert_eq!(
                info.unfinished.is_some(),
                info.used_as == FrameUse::Unfinished
            );
            if let Some((level, checked)) = info.unfinished {
                assert_eq!(info.owner, Owner::Guest);
                scan.typed.insert(mfn, (FrameUse::Unfinished, 0));
                let child = level.child().expect("above L1");
                scan.scan_upper(mfn, level, child.into(), 0..checked);
            }
        }
        scan
    }

    /// Adds a pinned table.
    pub fn pin(mut self, level: Level, mfn: Mfn) -> Self {
        assert!(self.pinned.insert(mfn), "{mfn:?} pinned twice");
        self.refer(mfn, level.into());
        self
    }

    /// Adds the tables of a vCPU.
    pub fn spaces(mut self, spaces: &AddressSpaces) -> Self {
        self.refer(spaces.kernel(), FrameUse::L4);
        if let Some(user) = spaces.user() {
            self.refer(user, FrameUse::L4);
        }
        self
    }

    /// Adds a reference to a descriptor page.
    pub fn descriptors(mut self, mfn: Mfn) -> Self {
        self.refer(mfn, FrameUse::Descriptors);
        self
    }

    /// Adds a page that a device writes.
    pub fn writable(mut self, mfn: Mfn) -> Self {
        self.refer(mfn, FrameUse::Writable);
        self
    }

    /// Compares with the ledger.
    pub fn check(&self) {
        for mfn in (0..END).map(Mfn) {
            let info = self.machine.ledger.info(mfn).expect("in range");
            let (kind, typed) = self.typed.get(&mfn).copied().unwrap_or((FrameUse::None, 0));
            let plain = self.plain.get(&mfn).copied().unwrap_or(0);
            assert_eq!(info.used_as, kind, "use of {mfn:?}");
            assert_eq!(info.typed, typed, "typed references to {mfn:?}");
            assert_eq!(info.plain, plain, "plain references to {mfn:?}");
            assert_eq!(info.pinned, self.pinned.contains(&mfn), "pin of {mfn:?}");
        }
    }

    fn refer(&mut self, mfn: Mfn, kind: FrameUse) {
        let owner = self.machine.ledger.owner(mfn);
        let allowed = match kind {
            FrameUse::Writable => matches!(owner, Owner::Guest | Owner::Shared),
            _ => owner == Owner::Guest,
        };
        assert!(allowed, "{mfn:?} of {owner:?} is used as {kind:?}");
        let (known, count) = self.typed.entry(mfn).or_insert((kind, 0));
        assert_eq!(*known, kind, "{mfn:?} has two uses");
        *count += 1;
        if *count == 1 {
            match kind {
                FrameUse::L1 => self.scan_l1(mfn),
                FrameUse::L2 => self.scan_upper(mfn, Level::L2, FrameUse::L1, 0..ENTRIES),
                FrameUse::L3 => self.scan_upper(mfn, Level::L3, FrameUse::L2, 0..ENTRIES),
                FrameUse::L4 => self.scan_upper(mfn, Level::L4, FrameUse::L3, 0..ENTRIES),
                FrameUse::Descriptors => self.scan_descriptors(mfn),
                FrameUse::None | FrameUse::Writable | FrameUse::Unfinished => {}
            }
        }
    }

    fn entries(&self, table: Mfn) -> Vec<Pte> {
        let mut bytes = [0; PAGE_SIZE];
        self.machine.frames.read(table, 0, &mut bytes);
        let (entries, _) = bytes.as_chunks();
        entries
            .iter()
            .map(|&entry| Pte(u64::from_le_bytes(entry)))
            .collect()
    }

    fn scan_l1(&mut self, table: Mfn) {
        for pte in self.entries(table) {
            if !pte.is_present() {
                continue;
            }
            assert!(pte.has(Pte::USER), "{pte:?} shuts the guest out");
            assert_ne!(
                pte.has(Pte::GLOBAL),
                pte.has(Pte::GUEST_KERNEL),
                "{pte:?} is either a process's or the kernel's"
            );
            assert_eq!(pte.0 & (Pte::PWT | Pte::PCD | Pte::PSE), 0);
            if pte.has(Pte::RW) {
                self.refer(pte.frame(), FrameUse::Writable);
            } else {
                let owner = self.machine.ledger.owner(pte.frame());
                assert!(
                    matches!(owner, Owner::Guest | Owner::Shared | Owner::ReadOnly),
                    "{pte:?} shows a frame of {owner:?}"
                );
                *self.plain.entry(pte.frame()).or_default() += 1;
            }
        }
    }

    fn scan_upper(&mut self, table: Mfn, level: Level, child: FrameUse, checked: Range<usize>) {
        let is_whole = self.typed[&table].0 != FrameUse::Unfinished;
        let entries = self.entries(table).into_iter().enumerate();
        for (index, pte) in entries.skip(checked.start).take(checked.len()) {
            if level == Level::L4 && !is_guest_l4_slot(index) {
                if !is_whole {
                    continue;
                }
                let own = self.machine.slots.0[index - FIRST_XEN_SLOT];
                assert_eq!(pte, Pte(own), "slot {index} of {table:?} is the shim's");
            } else if pte.is_present() {
                assert!(pte.has(Pte::USER), "{pte:?} shuts the guest out");
                assert_eq!(pte.0 & (Pte::PWT | Pte::PCD | Pte::PSE | Pte::GLOBAL), 0);
                self.refer(pte.frame(), child);
            }
        }
    }

    fn scan_descriptors(&self, mfn: Mfn) {
        for Pte(raw) in self.entries(mfn) {
            let present = raw >> 47 & 1 == 1;
            let segment = raw >> 44 & 1 == 1;
            assert!(!present || raw >> 45 & 3 == 3, "{raw:#x} is privileged");
            assert!(!present || segment || raw >> 40 & 15 == 0, "{raw:#x}");
        }
    }
}
