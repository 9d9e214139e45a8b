//! Any sequence of operations on page tables and descriptors is served or refused, also when they
//! are interrupted, and then begun again or not; when all that the guest holds is given back, the
//! ledger has no reference left.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unmoved_shim::emulate::ptstore::Entry;
use unmoved_shim::mem::Frames;
use unmoved_shim::testing::FakeFrames;
use unmoved_shim::mm::{
    AddressSpaces, FrameUse, Ledger, M2p, Mm, Owner, ShimSlots, Tlb, check_descriptor,
};
use xen_abi::mmu::{Level, MmuUpdate, Pte, UvmFlags};
use xen_abi::{Errno, GuestVa, Mfn, Pfn};

/// Frames 0 and 1 are the shim's, then come the guest's, one that is shared and one that is lent.
const FRAMES: u64 = 20;
const SHARED: Mfn = Mfn(18);
const LENT: Mfn = Mfn(19);

struct Nothing;

impl Tlb for Nothing {
    fn flush_everything(&self) {}
}

impl M2p for Nothing {
    fn set(&self, mfn: Mfn, _: u64) {
        assert!(mfn.0 < FRAMES);
    }
}

/// The input as a list of operands.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// A frame, sometimes one that is not there.
    fn frame(&mut self) -> Option<Mfn> {
        Some(match self.byte()? {
            255 => Mfn(u64::MAX),
            254 => Mfn(FRAMES + 1),
            byte => Mfn(u64::from(byte) % (FRAMES + 1)),
        })
    }

    fn index(&mut self) -> Option<usize> {
        let byte = usize::from(self.byte()?);
        Some(if byte < 128 { byte % 4 } else { byte * 2 + 1 })
    }

    fn pte(&mut self) -> Option<Pte> {
        let frame = self.frame()?;
        let flags = u64::from(self.byte()?);
        // Bits 5, 6 and 7 choose from the upper ones, or a large page.
        let high = [0, Pte::GUEST_KERNEL, Pte::NX, 1 << 51][(flags >> 5 & 3) as usize];
        Some(Pte::new(frame, flags & 7 | flags & 0x80 | high))
    }
}

struct Held {
    spaces: AddressSpaces,
    descriptors: Vec<Mfn>,
    written: Vec<Mfn>,
}

/// Begins an operation again until it is not interrupted any more, or leaves it if it does not go on.
fn again<R>(
    mm: &mut Mm<'_, FakeFrames>,
    goes_on: bool,
    mut act: impl FnMut(&mut Mm<'_, FakeFrames>) -> Result<R, Errno>,
) {
    while matches!(act(mm), Err(Errno::ERESTART)) {
        mm.ledger.work().note_look();
        if !goes_on {
            break;
        }
    }
}

/// Performs the next operation; `None` at the end of the input.  Refusals are as good as successes.
fn step(mm: &mut Mm<'_, FakeFrames>, held: &mut Held, input: &mut Bytes<'_>) -> Option<()> {
    let step = input.byte()?;
    let goes_on = step & 1 == 0;
    mm.ledger.set_step(u32::from(step) * 8 + 1);
    match input.byte()? % 16 {
        0..3 => {
            let (table, index, pte) = (input.frame()?, input.index()?, input.pte()?);
            if mm.ledger.is_plain_data(table) {
                mm.frames.store64(table, index * 8, pte.0);
            }
        }
        3 => {
            let levels = [Level::L1, Level::L2, Level::L3, Level::L4];
            let level = levels[usize::from(input.byte()? % 4)];
            let frame = input.frame()?;
            again(mm, goes_on, |mm| mm.pin(level, frame));
        }
        4 => {
            let frame = input.frame()?;
            again(mm, goes_on, |mm| mm.unpin(frame));
        }
        5 | 6 => {
            let command = u64::from(input.byte()? % 5);
            let (table, index) = (input.frame()?, input.index()?);
            let request = MmuUpdate {
                ptr: (table.0 << 12) + index as u64 * 8 + command,
                val: input.pte()?.0,
            };
            again(mm, goes_on, |mm| mm.mmu_update(request, &Nothing));
        }
        7 => {
            let va = GuestVa((input.index()? as u64) << 12 | u64::from(input.byte()?) << 40);
            let flags = UvmFlags(u64::from(input.byte()?));
            let _ = mm.update_va_mapping(held.spaces.kernel(), va, input.pte()?, flags);
        }
        8 | 9 => {
            let (table, index) = (input.frame()?, input.index()?);
            let (differs, pte) = (input.byte()?, input.pte()?);
            if let Some(mut entry) = mm.live_entry(table, index * 8) {
                let seen = entry.load();
                let _ = entry.store((differs < 128).then_some(seen ^ u64::from(differs)), pte.0);
            }
        }
        10 => {
            let frame = input.frame()?;
            again(mm, goes_on, |mm| mm.new_baseptr(&mut held.spaces, frame));
        }
        11 => {
            let frame = input.frame()?;
            again(mm, goes_on, |mm| {
                mm.new_user_baseptr(&mut held.spaces, frame)
            });
        }
        12 => {
            let frame = input.frame()?;
            if mm.get_descriptors(frame).is_ok() {
                held.descriptors.push(frame);
            }
        }
        13 => {
            let (frame, index, high) = (input.frame()?, input.index()?, input.byte()?);
            let raw = u64::from(high) << 40;
            let stored = mm.update_descriptor((frame.0 << 12) + index as u64 * 8, raw);
            assert!(stored.is_err() || check_descriptor(raw).is_ok());
        }
        14 => {
            let frame = input.frame()?;
            if mm.ledger.get_writable(frame, mm.tlb).is_ok() {
                held.written.push(frame);
            }
        }
        _ => {
            let (frame, other) = (input.frame()?, input.frame()?);
            if mm.release(frame, &Nothing).is_ok() {
                mm.populate(frame, Pfn(0), &Nothing).expect("just released");
            }
            let _ = mm.copy_page(frame, other);
            let _ = mm.clear_page(other);
        }
    }
    // The guest goes on only then.
    while mm.finish_releases().is_err() {
        mm.ledger.work().note_look();
    }
    Some(())
}

fuzz_target!(|input: &[u8]| {
    let frames = FakeFrames::new(FRAMES);
    let mut ledger = Ledger::new(Mfn(FRAMES + 1), &[(Mfn(0), FRAMES)]).expect("small");
    for mfn in 2..SHARED.0 {
        ledger.give_to_guest(Mfn(mfn)).expect("the shim's");
    }
    for (mfn, owner) in [(SHARED, Owner::Shared), (LENT, Owner::ReadOnly)] {
        ledger.change_owner(mfn, Owner::Shim, owner).expect("free");
    }
    for (table, child) in [(2, 3), (3, 4), (4, 5)] {
        let pte = Pte::new(Mfn(child), Pte::PRESENT | Pte::RW | Pte::USER);
        frames.store64(Mfn(table), 0, pte.0);
    }
    let slots = ShimSlots([Pte::new(Mfn(0), Pte::PRESENT).0; 16]);
    let mut mm = Mm {
        frames: &frames,
        ledger: &mut ledger,
        slots: &slots,
        tlb: &Nothing,
    };
    let mut held = Held {
        spaces: mm.enter(Mfn(2), None).expect("good tables"),
        descriptors: Vec::new(),
        written: Vec::new(),
    };
    let mut input = Bytes(input);
    while step(&mut mm, &mut held, &mut input).is_some() {}

    mm.ledger.set_step(u32::MAX);
    mm.leave(&mut Some(held.spaces)).expect("all is settled");
    mm.put_gdt(&held.descriptors);
    for frame in held.written {
        mm.ledger.put_writable(frame);
    }
    for mfn in (0..FRAMES).map(Mfn) {
        let _ = mm.unpin(mfn);
    }
    // What was left half done is asked for once more.
    for mfn in (0..FRAMES).map(Mfn) {
        let info = mm.ledger.info(mfn).expect("in range");
        if let Some((level, _)) = info.unfinished
            && mm.pin(level, mfn).is_ok()
        {
            let _ = mm.unpin(mfn).expect("just pinned");
        }
    }
    for mfn in (0..FRAMES).map(Mfn) {
        let info = mm.ledger.info(mfn).expect("in range");
        assert_eq!(
            (info.used_as, info.typed, info.plain),
            (FrameUse::None, 0, 0),
            "{mfn:?}"
        );
    }
});
