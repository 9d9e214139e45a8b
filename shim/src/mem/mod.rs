//! How the shim's logic reaches memory: whole frames by number, guest memory by guest address.
//!
//! Both are shared with somebody who may change them at any moment (the guest, a backend, the
//! CPU's page walker), so there are no references into them: every access copies or is a single
//! atomic operation, and what was copied is checked before it is used.

use xen_abi::{GuestVa, Mfn};

/// The machine's frames, each [`PAGE_SIZE`](xen_abi::PAGE_SIZE) bytes.
///
/// Offsets are in bytes and must be naturally aligned for the width and inside the frame; a
/// violation, like a frame that does not exist, is a bug of the caller and panics.  Frame numbers
/// that come from outside are therefore checked against the ledger first.  Loads and stores are
/// relaxed atomics; callers place [`core::sync::atomic::fence`] where a protocol needs order.
pub trait Frames {
    /// Loads a byte.
    fn load8(&self, frame: Mfn, offset: usize) -> u8;
    /// Stores a byte.
    fn store8(&self, frame: Mfn, offset: usize, value: u8);
    /// Loads 16 bits.
    fn load16(&self, frame: Mfn, offset: usize) -> u16;
    /// Stores 16 bits.
    fn store16(&self, frame: Mfn, offset: usize, value: u16);
    /// Replaces `old` by `new` if it is still there; returns what was there.
    fn cas16(&self, frame: Mfn, offset: usize, old: u16, new: u16) -> u16;
    /// Loads 32 bits.
    fn load32(&self, frame: Mfn, offset: usize) -> u32;
    /// Stores 32 bits.
    fn store32(&self, frame: Mfn, offset: usize, value: u32);
    /// Loads 64 bits.
    fn load64(&self, frame: Mfn, offset: usize) -> u64;
    /// Stores 64 bits.
    fn store64(&self, frame: Mfn, offset: usize, value: u64);
    /// Replaces `old` by `new` if it is still there; returns what was there.
    fn cas64(&self, frame: Mfn, offset: usize, old: u64, new: u64) -> u64;
    /// Sets `bits` and returns what was there before (sequentially consistent).
    fn fetch_or64(&self, frame: Mfn, offset: usize, bits: u64) -> u64;
    /// Keeps only `bits` and returns what was there before (sequentially consistent).
    fn fetch_and64(&self, frame: Mfn, offset: usize, bits: u64) -> u64;
    /// Copies out of a frame; `offset + buf.len()` stays within it.
    fn read(&self, frame: Mfn, offset: usize, buf: &mut [u8]);
    /// Copies into a frame; `offset + buf.len()` stays within it.
    fn write(&self, frame: Mfn, offset: usize, buf: &[u8]);
    /// Fills a whole frame with zeroes.
    fn clear(&self, frame: Mfn);
}

/// A guest address could not be accessed: not mapped, not writable, or not the guest's at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress;

impl From<BadAddress> for xen_abi::Errno {
    fn from(_: BadAddress) -> Self {
        Self::EFAULT
    }
}

/// Guest memory under the guest's current *kernel* page tables.
///
/// Addresses in the hypervisor's part of the address space are refused.
pub trait GuestMemory {
    /// Copies from the guest; on an error some of `buf` may have been filled.
    fn read_guest(&self, va: GuestVa, buf: &mut [u8]) -> Result<(), BadAddress>;
    /// Copies to the guest; on an error some of it may have been written.
    fn write_guest(&self, va: GuestVa, buf: &[u8]) -> Result<(), BadAddress>;
}

/// Where the shim takes frames for its own use from, and gives them back to.
pub trait FramePool {
    /// Takes a zeroed frame that the guest can not reach.
    fn take(&mut self) -> Option<Mfn>;
    /// Returns a frame that [`take`](Self::take) gave.
    fn give_back(&mut self, frame: Mfn);
    /// Returns how many frames could be taken.
    fn available(&self) -> usize;
}
