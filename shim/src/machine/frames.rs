//! Memory through the direct map, and guest memory through the guest's own page tables.

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use unmoved_shim::mem::{BadAddress, Frames, GuestMemory};
use xen_abi::{GuestVa, Mfn, PAGE_SIZE};

use super::memory::direct;
use super::{Bare, globals};

/// Frames through the direct map; what [`Bare`] has too, without a vCPU.
#[derive(Clone, Copy)]
pub struct Direct;

unsafe extern "C" {
    fn guest_copy(dst: *mut u8, src: *const u8, len: usize) -> u32;
    fn guest_copy_smap(dst: *mut u8, src: *const u8, len: usize) -> u32;
}

/// Returns the address of `bytes` bytes in a frame, all of which the direct map covers.
#[inline]
fn place(frame: Mfn, offset: usize, bytes: usize) -> *mut u8 {
    assert!(
        // Checked in every build: a frame number that is too large would be an address beyond the
        // direct map.
        frame.0 < globals::frame_limit() && offset + bytes <= PAGE_SIZE,
        "no such frame"
    );
    // SAFETY: the direct map covers every frame below the limit, and the sum stays in the frame.
    unsafe { direct(frame).add(offset) }
}

macro_rules! atomic {
    ($type:ty, $frame:expr, $offset:expr) => {{
        let place = place($frame, $offset, size_of::<$type>());
        debug_assert!(place.addr() % size_of::<$type>() == 0);
        // SAFETY: the address is valid and aligned, and others that access it at the same time
        // (the guest, a backend, the page walker) do so as atomics do.
        unsafe { &*place.cast::<$type>() }
    }};
}

macro_rules! frames {
    ($name:ty) => {
        impl Frames for $name {
            #[inline]
            fn load8(&self, frame: Mfn, offset: usize) -> u8 {
                atomic!(AtomicU8, frame, offset).load(Ordering::Relaxed)
            }
            #[inline]
            fn store8(&self, frame: Mfn, offset: usize, value: u8) {
                atomic!(AtomicU8, frame, offset).store(value, Ordering::Relaxed);
            }
            #[inline]
            fn load16(&self, frame: Mfn, offset: usize) -> u16 {
                atomic!(AtomicU16, frame, offset).load(Ordering::Relaxed)
            }
            #[inline]
            fn store16(&self, frame: Mfn, offset: usize, value: u16) {
                atomic!(AtomicU16, frame, offset).store(value, Ordering::Relaxed);
            }
            fn cas16(&self, frame: Mfn, offset: usize, old: u16, new: u16) -> u16 {
                let word = atomic!(AtomicU16, frame, offset);
                word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                    // Ok and Err both carry what was there.
                    .unwrap_or_else(|v| v)
            }
            #[inline]
            fn load32(&self, frame: Mfn, offset: usize) -> u32 {
                atomic!(AtomicU32, frame, offset).load(Ordering::Relaxed)
            }
            #[inline]
            fn store32(&self, frame: Mfn, offset: usize, value: u32) {
                atomic!(AtomicU32, frame, offset).store(value, Ordering::Relaxed);
            }
            #[inline]
            fn load64(&self, frame: Mfn, offset: usize) -> u64 {
                atomic!(AtomicU64, frame, offset).load(Ordering::Relaxed)
            }
            #[inline]
            fn store64(&self, frame: Mfn, offset: usize, value: u64) {
                atomic!(AtomicU64, frame, offset).store(value, Ordering::Relaxed);
            }
            #[inline]
            fn cas64(&self, frame: Mfn, offset: usize, old: u64, new: u64) -> u64 {
                let word = atomic!(AtomicU64, frame, offset);
                word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                    .unwrap_or_else(|v| v)
            }
            #[inline]
            fn fetch_or64(&self, frame: Mfn, offset: usize, bits: u64) -> u64 {
                atomic!(AtomicU64, frame, offset).fetch_or(bits, Ordering::SeqCst)
            }
            #[inline]
            fn fetch_and64(&self, frame: Mfn, offset: usize, bits: u64) -> u64 {
                atomic!(AtomicU64, frame, offset).fetch_and(bits, Ordering::SeqCst)
            }
            fn read(&self, frame: Mfn, offset: usize, buf: &mut [u8]) {
                let from = place(frame, offset, buf.len());
                // SAFETY: both ends are valid for the length.  The bytes may change while they are copied;
                // the copy is made by an assembly function, so no assumption of the compiler is broken.
                unsafe { guest_copy(buf.as_mut_ptr(), from, buf.len()) };
            }
            fn write(&self, frame: Mfn, offset: usize, buf: &[u8]) {
                let to = place(frame, offset, buf.len());
                // SAFETY: as for `read`.
                unsafe { guest_copy(to, buf.as_ptr(), buf.len()) };
            }
            fn clear(&self, frame: Mfn) {
                // SAFETY: `place` checked that the whole frame is mapped; a guest that looks at the same
                // time sees any mixture of old bytes and zeroes, which it is free to do.
                unsafe { place(frame, 0, PAGE_SIZE).write_bytes(0, PAGE_SIZE) };
            }
        }
    };
}
frames!(Bare);
frames!(Direct);

/// Whether all of a range lies outside the hypervisor's part of the address space and is canonical.
#[inline]
fn is_guest_range(va: GuestVa, len: usize) -> bool {
    const LOW_END: u64 = 0x0000_8000_0000_0000;
    const HIGH_START: u64 = 0xffff_8800_0000_0000;
    let Some(end) = va.0.checked_add(len as u64) else {
        return false;
    };
    // Not across both: everything in between is the shim's or not canonical.
    end <= LOW_END || va.0 >= HIGH_START
}

fn copy(dst: *mut u8, src: *const u8, len: usize) -> Result<(), BadAddress> {
    // SAFETY: one of the two is a Rust buffer of `len` bytes; the other was checked to lie in the
    // guest's part of the address space, where a fault is fixed up and reported.
    let fault = unsafe {
        // Two functions instead of a test inside: STAC is an invalid opcode where there is no SMAP.
        if globals::has_smap() {
            guest_copy_smap(dst, src, len)
        } else {
            guest_copy(dst, src, len)
        }
    };
    if fault == 0 { Ok(()) } else { Err(BadAddress) }
}

impl GuestMemory for Bare {
    fn read_guest(&self, va: GuestVa, buf: &mut [u8]) -> Result<(), BadAddress> {
        if !is_guest_range(va, buf.len()) {
            return Err(BadAddress);
        }
        // The kernel's table, if the guest has just changed over to it.
        self.settle();
        copy(buf.as_mut_ptr(), va.0 as *const u8, buf.len())
    }

    fn write_guest(&self, va: GuestVa, buf: &[u8]) -> Result<(), BadAddress> {
        if !is_guest_range(va, buf.len()) {
            return Err(BadAddress);
        }
        self.settle();
        copy(va.0 as *mut u8, buf.as_ptr(), buf.len())
    }
}
