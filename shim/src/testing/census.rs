//! A recount of everything that the ledger counts, from what stands in memory.

use xen_abi::Mfn;
use xen_abi::mmu::{ENTRIES, FIRST_XEN_SLOT, Level, Pte, is_guest_l4_slot};
use zerocopy::IntoBytes;

use super::guest::TestGuest;
use crate::mem::Frames;
use crate::mm::{FrameUse, Owner, check_descriptor};

/// How often each frame is referred to.
pub(super) struct Census<'a> {
    guest: &'a TestGuest,
    typed: Vec<u64>,
    plain: Vec<u64>,
}

impl<'a> Census<'a> {
    /// Counts; panics at the first entry or descriptor that must not be there.
    pub(super) fn take(guest: &'a TestGuest) -> Self {
        let end = guest.ledger.end().0 as usize;
        let mut census = Self {
            guest,
            typed: vec![0; end],
            plain: vec![0; end],
        };
        for frame in (0..end as u64).map(Mfn) {
            let info = guest.ledger.info(frame).expect("in range");
            census.typed[frame.0 as usize] += u64::from(info.pinned);
            if let Some((level, checked)) = info.unfinished {
                census.table(frame, level, checked);
            }
            match info.used_as.level() {
                Some(level) => census.table(frame, level, ENTRIES),
                None if info.used_as == FrameUse::Descriptors => census.descriptors(frame),
                None => {}
            }
        }
        for vcpu in &guest.vcpus {
            let spaces = vcpu.spaces.as_ref();
            let roots = spaces.map(|spaces| [Some(spaces.kernel()), spaces.user()]);
            let info = vcpu.info.is_registered.then_some(vcpu.info.frame);
            let held = roots.into_iter().flatten().flatten().chain(info);
            for &frame in vcpu.gdt.iter().chain(&vcpu.ldt_frames) {
                census.typed[frame.0 as usize] += 1;
            }
            held.for_each(|frame| census.typed[frame.0 as usize] += 1);
        }
        census
    }

    /// Compares with the ledger.
    pub(super) fn compare(&self) {
        for (index, counted) in self.typed.iter().zip(&self.plain).enumerate() {
            let frame = Mfn(index as u64);
            let info = self.guest.ledger.info(frame).expect("in range");
            // The points hold frames besides, which only they can count.
            let is_covered = info.typed >= *counted.0 && info.plain >= *counted.1;
            assert!(is_covered, "{frame:?}: {info:?}, and counted {counted:?}");
            let is_free = matches!(info.used_as, FrameUse::None | FrameUse::Unfinished);
            assert_eq!(info.typed == 0, is_free);
            let is_guests = matches!(info.owner, Owner::Guest | Owner::Shared);
            assert!(info.typed == 0 || is_guests, "{frame:?}: {info:?}");
        }
    }

    fn words(&self, frame: Mfn) -> [u64; 512] {
        let mut words = [0; 512];
        self.guest.m.read(frame, 0, words.as_mut_bytes());
        words
    }

    /// Counts what the first `checked` entries of a table stand for.
    fn table(&mut self, table: Mfn, level: Level, checked: usize) {
        let ledger = &self.guest.ledger;
        let is_whole = ledger.used_as(table) == level.into();
        for (index, raw) in self.words(table).into_iter().enumerate().take(checked) {
            let entry = Pte(raw);
            if level == Level::L4 && !is_guest_l4_slot(index) {
                if !is_whole {
                    continue;
                }
                // Hidden, and only a table for user mode is without it.
                if index == FIRST_XEN_SLOT && raw == 0 {
                    let kernels = self
                        .guest
                        .vcpus
                        .iter()
                        .filter_map(|vcpu| vcpu.spaces.as_ref());
                    assert!(kernels.into_iter().all(|spaces| spaces.kernel() != table));
                    continue;
                }
                let own = self.guest.slots.0[index - 256];
                let ad = Pte::ACCESSED | Pte::DIRTY;
                assert_eq!(raw & !ad, own, "slot {index} of {table:?}");
                continue;
            }
            if !entry.is_present() {
                continue;
            }
            let target = entry.frame();
            let place = (level, table, index, entry, ledger.info(target));
            assert!(entry.has(Pte::USER) && !entry.has(Pte::PSE), "{place:?}");
            let counts = match level.child() {
                Some(child) => {
                    assert_eq!(ledger.used_as(target), child.into(), "{place:?}");
                    &mut self.typed
                }
                None if entry.is_writable() => {
                    assert!(ledger.is_plain_data(target), "{place:?}");
                    &mut self.typed
                }
                None => {
                    assert!(ledger.is_readable(target), "{place:?}");
                    &mut self.plain
                }
            };
            counts[target.0 as usize] += 1;
        }
    }

    fn descriptors(&self, frame: Mfn) {
        for (index, raw) in self.words(frame).into_iter().enumerate() {
            let checked = check_descriptor(raw);
            assert_eq!(checked, Ok(raw), "descriptor {index} of {frame:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use xen_abi::mmu::Pte;
    use xen_abi::{GuestVa, Mfn};

    use crate::mem::Frames;
    use crate::testing::Bench;

    /// Writes an L1 entry of the guest behind everybody's back.
    fn smuggle(bench: &mut Bench, pte: Pte) {
        let va = GuestVa(bench.page(60));
        let root = bench.guest.m.root;
        let place = bench.mm().walk(root, va).expect("mapped");
        bench.guest.m.store64(place.table, place.index * 8, pte.0);
    }

    const RW: u64 = Pte::PRESENT | Pte::RW | Pte::USER | Pte::GUEST_KERNEL;

    #[test]
    fn a_fresh_guest_is_in_order() {
        let mut bench = Bench::new();
        bench.check();
        bench.make_user();
        bench.check();
    }

    #[test]
    #[should_panic(expected = "Shim")]
    fn a_frame_of_the_shim_is_noticed() {
        let mut bench = Bench::new();
        smuggle(&mut bench, Pte::new(Bench::SHIM, RW & !Pte::RW));
        bench.check();
    }

    #[test]
    #[should_panic(expected = "used_as: L4")]
    fn a_writable_table_is_noticed() {
        let mut bench = Bench::new();
        let root = bench.guest.m.root;
        smuggle(&mut bench, Pte::new(root, RW));
        bench.check();
    }

    #[test]
    #[should_panic(expected = "typed: 1")]
    fn a_reference_that_was_not_counted_is_noticed() {
        let mut bench = Bench::new();
        let other = bench.page(61);
        let frame = bench.frame(other);
        smuggle(&mut bench, Pte::new(frame, RW));
        bench.check();
    }

    #[test]
    #[should_panic(expected = "can still be written")]
    fn a_stale_translation_is_noticed() {
        let mut bench = Bench::new();
        let page = bench.page(60);
        bench.put(page, &1u64);
        let frame: Mfn = bench.frame(page);
        // Read-only, and made a table, by who forgets to flush.
        let pte = bench.entry(page).without(Pte::RW);
        bench.guest.m.store64(frame, 0, 0);
        smuggle(&mut bench, pte);
        bench.guest.ledger.put_writable(frame);
        bench.guest.ledger.get_plain(frame).expect("the guest's");
        bench.guest.ledger.note_full_flush();
        let _ = bench.mm().pin(xen_abi::mmu::Level::L1, frame);
        bench.check();
    }
}
