//! The CPU's page walker sets accessed and dirty bits between our look at an entry and our store.

use std::cell::Cell;

use xen_abi::mmu::{Level, MmuUpdate, Pte, update};
use xen_abi::{Mfn, PAGE_SIZE};

use super::super::{Flush, Mm};
use super::machine::{KERNEL_RO, Machine, done};
use super::scan::Scan;
use crate::emulate::ptstore::Entry;
use crate::mem::Frames;
use crate::testing::FakeFrames;

const AD: u64 = Pte::ACCESSED | Pte::DIRTY;
const L1: Mfn = Mfn(7);
const FLAGS: u64 = Pte::PRESENT | Pte::RW | Pte::USER;

/// Frames whose entry is touched by the walker just before each compare-and-exchange: first it is
/// accessed, then dirtied.
struct Walked<'a> {
    frames: &'a FakeFrames,
    touches: Cell<u64>,
}

impl Frames for Walked<'_> {
    fn load8(&self, frame: Mfn, offset: usize) -> u8 {
        self.frames.load8(frame, offset)
    }
    fn store8(&self, frame: Mfn, offset: usize, value: u8) {
        self.frames.store8(frame, offset, value);
    }
    fn load16(&self, frame: Mfn, offset: usize) -> u16 {
        self.frames.load16(frame, offset)
    }
    fn store16(&self, frame: Mfn, offset: usize, value: u16) {
        self.frames.store16(frame, offset, value);
    }
    fn cas16(&self, frame: Mfn, offset: usize, old: u16, new: u16) -> u16 {
        self.frames.cas16(frame, offset, old, new)
    }
    fn load32(&self, frame: Mfn, offset: usize) -> u32 {
        self.frames.load32(frame, offset)
    }
    fn store32(&self, frame: Mfn, offset: usize, value: u32) {
        self.frames.store32(frame, offset, value);
    }
    fn load64(&self, frame: Mfn, offset: usize) -> u64 {
        self.frames.load64(frame, offset)
    }
    fn store64(&self, frame: Mfn, offset: usize, value: u64) {
        self.frames.store64(frame, offset, value);
    }
    fn cas64(&self, frame: Mfn, offset: usize, old: u64, new: u64) -> u64 {
        let touches = self.touches.get();
        self.touches.set(touches + 1);
        let bits = [Pte::ACCESSED, Pte::DIRTY].get(touches as usize);
        self.frames
            .fetch_or64(frame, offset, bits.copied().unwrap_or(0));
        self.frames.cas64(frame, offset, old, new)
    }
    fn fetch_or64(&self, frame: Mfn, offset: usize, bits: u64) -> u64 {
        self.frames.fetch_or64(frame, offset, bits)
    }
    fn fetch_and64(&self, frame: Mfn, offset: usize, bits: u64) -> u64 {
        self.frames.fetch_and64(frame, offset, bits)
    }
    fn read(&self, frame: Mfn, offset: usize, buf: &mut [u8]) {
        self.frames.read(frame, offset, buf);
    }
    fn write(&self, frame: Mfn, offset: usize, buf: &[u8]) {
        self.frames.write(frame, offset, buf);
    }
    fn clear(&self, frame: Mfn) {
        self.frames.write(frame, 0, &[0; PAGE_SIZE]);
    }
}

/// Makes a machine with a live entry, lets `act` change it while the walker interferes, and checks
/// the counts; returns what `act` returned and the entry.
fn raced<R>(act: impl FnOnce(&mut Mm<'_, Walked<'_>>) -> R) -> (R, Pte) {
    let mut machine = Machine::new();
    machine.poke(L1, 0, Mfn(20), FLAGS);
    done(machine.mm().pin(Level::L1, L1));
    let walked = Walked {
        frames: &machine.frames,
        touches: Cell::new(0),
    };
    let result = act(&mut Mm {
        frames: &walked,
        ledger: &mut machine.ledger,
        slots: &machine.slots,
        tlb: &machine.tlb,
    });
    assert!(walked.touches.get() >= 2, "the walker was there");
    Scan::new(&machine).pin(Level::L1, L1).check();
    (result, machine.peek(L1, 0))
}

#[test]
fn an_emulated_exchange_fails_when_the_walker_was_faster() {
    let start = Pte::new(Mfn(20), FLAGS | Pte::GLOBAL);
    for new in [Pte(0), Pte::new(Mfn(21), FLAGS), start.without(Pte::RW)] {
        let (stored, left) = raced(|mm| {
            let mut entry = mm.live_entry(L1, 0).expect("live");
            [(); 3].map(|()| {
                let seen = entry.load();
                entry.store(Some(seen), new.0)
            })
        });
        assert_eq!(stored, [Ok(false), Ok(false), Ok(true)]);
        assert_eq!(left.without(Pte::GLOBAL), new.without(Pte::GLOBAL));
    }
}

#[test]
fn an_update_that_preserves_takes_the_walkers_bits_along() {
    let m2p = super::machine::FakeM2p::default();
    let new = Pte::new(Mfn(20), KERNEL_RO & !AD);
    let request = MmuUpdate {
        ptr: L1.addr() | update::PRESERVE_AD,
        val: new.0,
    };
    let (result, left) = raced(|mm| mm.mmu_update(request, &m2p));
    assert_eq!(result, Ok(Flush::None));
    assert_eq!(left, new.with(Pte::USER | Pte::GUEST_KERNEL | AD));
}
