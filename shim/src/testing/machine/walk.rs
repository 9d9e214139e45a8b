//! How the machine reaches guest memory, and what its CPU remembers.
//!
//! Guest addresses are translated by the guest's own page tables, through a cache that forgets
//! nothing unless it is told to: what a CPU *may* still use after a change of a table, this one
//! does use.

use xen_abi::mmu::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, Level, Pte, is_canonical};
use xen_abi::{GuestVa, Mfn, PAGE_SIZE};

use super::{FakeMachine, Flushed};
use crate::mem::{BadAddress, Frames, GuestMemory};
use crate::mm::{Ledger, Owner, Tlb};

/// A translation that the CPU remembers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cached {
    frame: Mfn,
    writable: bool,
}

impl FakeMachine {
    /// Translates an address as an access of ring 3 does, and remembers the translation.
    pub fn translate(&self, va: u64, write: bool) -> Result<Mfn, BadAddress> {
        let page = va / PAGE_SIZE as u64;
        let cached = self.cached.borrow().get(&page).copied();
        if let Some(hit) = cached.filter(|hit| hit.writable || !write) {
            return Ok(hit.frame);
        }
        let hit = self.walk(va, write)?;
        self.cached.borrow_mut().insert(page, hit);
        Ok(hit.frame)
    }

    /// Walks the tables, and sets accessed and dirty bits as the CPU does.
    fn walk(&self, va: u64, write: bool) -> Result<Cached, BadAddress> {
        self.walks.set(self.walks.get() + 1);
        let mut table = self.root;
        let mut writable = true;
        for level in [Level::L4, Level::L3, Level::L2, Level::L1] {
            let at = level.index(GuestVa(va)) * 8;
            let entry = Pte(self.frames.load64(table, at));
            if !entry.is_present() {
                return Err(BadAddress);
            }
            assert!(entry.has(Pte::USER), "{level:?} of {va:#x}: {entry:?}");
            writable &= entry.has(Pte::RW);
            if write && !writable {
                return Err(BadAddress);
            }
            let dirty = if write && level == Level::L1 {
                Pte::DIRTY
            } else {
                0
            };
            self.frames.fetch_or64(table, at, Pte::ACCESSED | dirty);
            table = entry.frame();
        }
        Ok(Cached {
            frame: table,
            writable,
        })
    }

    /// Checks that whatever the CPU remembers is the guest's to reach: nothing of the shim's, and
    /// for writing no table.
    pub fn check_cache(&self, ledger: &Ledger) {
        for (page, hit) in self.cached.borrow().iter() {
            let owner = ledger.owner(hit.frame);
            assert!(
                matches!(owner, Owner::Guest | Owner::Shared | Owner::ReadOnly),
                "page {page:#x} still leads to {:?}, which is {owner:?}'s",
                hit.frame
            );
            assert!(
                !hit.writable || ledger.is_plain_data(hit.frame),
                "page {page:#x} can still be written, and {:?} is {:?}",
                hit.frame,
                ledger.info(hit.frame)
            );
        }
    }

    /// How often the tables were walked, which is how often no translation was remembered.
    pub fn walks(&self) -> usize {
        self.walks.get()
    }
}

/// Splits a range into what lies on each page: address and the range of the buffer.
fn pages(va: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = va + done as u64;
        let on_page = (PAGE_SIZE - at as usize % PAGE_SIZE).min(len - done);
        done += on_page;
        Some((at, done - on_page..done))
    })
}

/// Whether all of a range is outside the hypervisor's part and canonical.
fn is_guest_range(va: GuestVa, len: usize) -> bool {
    let Some(last) = va.0.checked_add(len as u64) else {
        return false;
    };
    last <= 1 << 47 || va.0 >= HYPERVISOR_VIRT_END && is_canonical(va)
}

const _: () = assert!(HYPERVISOR_VIRT_START < HYPERVISOR_VIRT_END);

impl GuestMemory for FakeMachine {
    fn read_guest(&self, va: GuestVa, buf: &mut [u8]) -> Result<(), BadAddress> {
        if !is_guest_range(va, buf.len()) {
            return Err(BadAddress);
        }
        for (at, range) in pages(va.0, buf.len()) {
            let frame = self.translate(at, false)?;
            self.frames
                .read(frame, at as usize % PAGE_SIZE, &mut buf[range]);
        }
        Ok(())
    }

    fn write_guest(&self, va: GuestVa, buf: &[u8]) -> Result<(), BadAddress> {
        if !is_guest_range(va, buf.len()) {
            return Err(BadAddress);
        }
        for (at, range) in pages(va.0, buf.len()) {
            let frame = self.translate(at, true)?;
            self.frames
                .write(frame, at as usize % PAGE_SIZE, &buf[range]);
        }
        Ok(())
    }
}

impl Tlb for FakeMachine {
    fn flush_everything(&self) {
        self.flushes.borrow_mut().push(Flushed::All);
        self.cached.borrow_mut().clear();
    }
}
