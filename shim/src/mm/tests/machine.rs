//! A machine of a few frames, and short ways to fill its tables.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use xen_abi::mmu::{INVALID_M2P_ENTRY, Pte, XEN_SLOTS};
use xen_abi::{Errno, Mfn};

use super::super::{AddressSpaces, Flush, Ledger, M2p, Mm, Owner, ShimSlots, Tlb};
use crate::mem::Frames;
use crate::testing::FakeFrames;
use crate::testing::Translations;

/// What a guest writes into an entry for a kernel page or a table.
pub const KERNEL_RW: u64 = Pte::PRESENT | Pte::RW | Pte::ACCESSED | Pte::DIRTY;
pub const KERNEL_RO: u64 = Pte::PRESENT | Pte::ACCESSED;
pub const USER_RW: u64 = KERNEL_RW | Pte::USER;

/// Frames from 0 that are the shim's; those up to [`SHARED`] are the guest's.
pub const FIRST_GUEST: u64 = 4;
pub const SHARED: Mfn = Mfn(40);
pub const READ_ONLY: Mfn = Mfn(41);
pub const SHIM: Mfn = Mfn(1);
/// There is no memory here, so an access panics.
pub const HOLE: Mfn = Mfn(42);
pub const OUTSIDE: Mfn = Mfn(1000);
pub const END: u64 = 44;

/// Checks that an operation succeeded and needs no flush.
pub fn done(result: Result<Flush, Errno>) {
    assert_eq!(result, Ok(Flush::None));
}

/// The machine's CPUs; counts how often all of them had to forget everything.
pub struct Cpus {
    pub flushes: Cell<u32>,
    cpus: Rc<[Translations; CPUS]>,
}

/// How many there are.
pub const CPUS: usize = 2;

impl Tlb for Cpus {
    fn flush_everything(&self) {
        self.flushes.set(self.flushes.get() + 1);
        self.cpus.iter().for_each(Translations::forget);
    }
}

#[derive(Default)]
pub struct FakeM2p(pub RefCell<BTreeMap<Mfn, u64>>);

impl FakeM2p {
    pub fn get(&self, mfn: Mfn) -> u64 {
        let entry = self.0.borrow().get(&mfn).copied();
        entry.unwrap_or(INVALID_M2P_ENTRY)
    }
}

impl M2p for FakeM2p {
    fn set(&self, mfn: Mfn, value: u64) {
        assert!(mfn.0 < END, "M2P entry of {mfn:?}");
        self.0.borrow_mut().insert(mfn, value);
    }
}

pub struct Machine {
    pub frames: FakeFrames,
    pub ledger: Ledger,
    pub slots: ShimSlots,
    pub tlb: Cpus,
    pub m2p: FakeM2p,
}

impl Machine {
    pub fn new() -> Self {
        let mut ledger = Ledger::new(Mfn(END), &[(Mfn(0), HOLE.0)]).expect("small");
        for mfn in FIRST_GUEST..SHARED.0 {
            ledger.give_to_guest(Mfn(mfn)).expect("the shim's");
        }
        for (mfn, owner) in [(SHARED, Owner::Shared), (READ_ONLY, Owner::ReadOnly)] {
            ledger.change_owner(mfn, Owner::Shim, owner).expect("free");
        }
        let mut slots = [0; XEN_SLOTS];
        for (slot, index) in slots.iter_mut().zip(0x100..) {
            *slot = Pte::new(Mfn(index), Pte::PRESENT).0;
        }
        let frames = FakeFrames::new(HOLE.0);
        let cpus = Rc::new([(); CPUS].map(|()| Translations::new(&ledger)));
        let judges = cpus.clone();
        frames.on_store(move |frame| judges.iter().for_each(|cpu| cpu.judge_store(frame)));
        let tlb = Cpus {
            flushes: Cell::new(0),
            cpus,
        };
        Self {
            frames,
            ledger,
            slots: ShimSlots(slots),
            tlb,
            m2p: FakeM2p::default(),
        }
    }

    pub fn mm(&mut self) -> Mm<'_, FakeFrames> {
        Mm {
            frames: &self.frames,
            ledger: &mut self.ledger,
            slots: &self.slots,
            tlb: &self.tlb,
        }
    }

    /// Lets a CPU run on these tables: it remembers all that it could reach.
    pub fn run(&self, cpu: usize, spaces: &AddressSpaces) {
        for root in [Some(spaces.kernel()), spaces.user()].into_iter().flatten() {
            self.tlb.cpus[cpu].speculate(&self.frames, root, true);
        }
    }

    /// Loads a table on a CPU, which then remembers nothing.
    pub fn load_table(&self, cpu: usize) {
        self.tlb.cpus[cpu].forget();
    }

    /// Checks what the CPUs could still reach.
    pub fn check_cpus(&self) {
        self.tlb.cpus.iter().for_each(Translations::check);
    }

    /// Stores an entry as the guest does while it builds a table.
    pub fn poke(&self, table: Mfn, index: usize, frame: Mfn, flags: u64) {
        self.frames
            .store64(table, index * 8, Pte::new(frame, flags).0);
    }

    pub fn peek(&self, table: Mfn, index: usize) -> Pte {
        Pte(self.frames.load64(table, index * 8))
    }

    /// Returns a frame's counts: typed, plain.
    pub fn counts(&self, mfn: Mfn) -> (u64, u64) {
        let info = self.ledger.info(mfn).expect("in range");
        (info.typed, info.plain)
    }

    /// Builds tables of frames 4 (L4), 5 (L3), 6 (L2) and 7 (L1) for address 0, still unchecked.
    pub fn tree(&self) -> [Mfn; 4] {
        let tables = [Mfn(4), Mfn(5), Mfn(6), Mfn(7)];
        for pair in tables.windows(2) {
            self.poke(pair[0], 0, pair[1], USER_RW);
        }
        tables
    }
}
