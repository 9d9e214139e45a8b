//! How the machine reaches guest memory: by the guest's own page tables, and by what its CPU
//! [remembers](crate::testing::Translations) of them.

use xen_abi::mmu::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, is_canonical};
use xen_abi::{GuestVa, Mfn, PAGE_SIZE};

use super::{FakeMachine, Flushed};
use crate::mem::{BadAddress, Frames, GuestMemory};
use crate::mm::Tlb;
use crate::testing::heap::SmallHeap;

impl FakeMachine {
    /// Translates an address as an access of ring 3 does, and remembers the translation.
    pub fn translate(&self, va: u64, write: bool) -> Result<Mfn, BadAddress> {
        // What the fake remembers takes none of the shim's heap.
        SmallHeap::outside(|| self.cpu.translate(&self.frames, self.root, va, write))
    }

    /// Has the CPU remember all tables that it could walk now.
    pub fn speculate(&self) {
        SmallHeap::outside(|| self.cpu.speculate(&self.frames, self.root, false));
    }

    /// Checks that whatever the CPU remembers is the guest's to reach.
    pub fn check_cpu(&self) {
        self.cpu.check();
    }

    /// How often the tables were walked, which is how often no translation was remembered.
    pub fn walks(&self) -> usize {
        self.cpu.walks()
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
        SmallHeap::outside(|| self.flushes.borrow_mut().push(Flushed::All));
        SmallHeap::outside(|| self.cpu.forget());
        self.speculate();
    }
}
