//! The guest's kernel and ramdisk, and the frames that they lie in.

use unmoved_shim::boot::payload::Payload;
use unmoved_shim::boot::{FrameList, FrameRun, FreeMemory, GuestFrames, Kernel, check_ramdisk};
use xen_abi::pvh::ModlistEntry;
use xen_abi::{Mfn, PAGE_SIZE};

use super::handed::{frames_of, physical_bytes};
use super::refuse;
use crate::machine::memory::direct;
use crate::machine::{heap, layout};

/// Bytes of the heap for unpacking beyond a quarter more than was asked for.
const HEAP_SLACK: usize = 1 << 20;

/// Returns the frames of the kernel's ELF image, and the kernel.
pub(super) fn unpack(memory: &mut FreeMemory, module: &ModlistEntry) -> (FrameList, Kernel) {
    let file = physical_bytes(module.paddr, module.size);
    let payload = Payload::recognise(file).unwrap_or_else(|error| refuse("kernel", error));
    let (image, first, frames): (&[u8], u64, u64) = match payload {
        Payload::Elf(elf) => {
            let offset = elf.as_ptr() as u64 - layout::DIRECT;
            // The image's frames become the guest's, so it has to begin with a page; otherwise it
            // is moved once.
            if offset.is_multiple_of(PAGE_SIZE as u64) {
                let (from, to) = frames_of(offset, elf.len() as u64);
                (elf, from, to - from)
            } else {
                let (to, frames) = destination(memory, elf.len());
                to[..elf.len()].copy_from_slice(elf);
                (
                    &to[..elf.len()],
                    Mfn::of(to.as_ptr() as u64 - layout::DIRECT).0,
                    frames,
                )
            }
        }
        Payload::Packed(packed) => {
            // Taken before the heap, which gets the longest of what is left.
            let (to, frames) = destination(memory, packed.unpacked_len());
            let first = Mfn::of(to.as_ptr() as u64 - layout::DIRECT).0;
            let (from, end) = memory.longest();
            // The need is an estimate.
            let wanted = (packed.heap_needed() / 4 * 5 + HEAP_SLACK) & !(PAGE_SIZE - 1);
            // As much as is wanted, or as there is; whole pages, since they are cleared as such.
            let bytes = ((end.saturating_sub(from) << 12) as usize).min(wanted);
            if bytes < packed.heap_needed() {
                refuse(
                    "kernel",
                    "too little memory to unpack it; an unpacked one needs less",
                );
            }
            // SAFETY: the longest free range is mapped and nobody's; nothing allocated in there is
            // kept.
            let result = unsafe {
                heap::with_boot_heap(direct(Mfn(from)), bytes, || {
                    packed.unpack(to).map(|image| &*image)
                })
            };
            // SAFETY: as above; the guest gets it clear.
            unsafe { direct(Mfn(from)).write_bytes(0, bytes) };
            (
                result.unwrap_or_else(|error| refuse("kernel", error)),
                first,
                frames,
            )
        }
    };
    let kernel = Kernel::parse(image).unwrap_or_else(|error| refuse("kernel", error));
    // The packed file is no longer needed, nor is the part of a file that its image does not cover.
    let (from, to) = frames_of(module.paddr, module.size);
    // Cleared before they can be anybody's: the guest must not read what a toolstack's file had
    // around its kernel.
    for frame in from..to {
        // An image that was used in place lies inside of its module.
        if !(first..first + frames).contains(&frame) {
            // SAFETY: the file was read for the last time, and the image lies elsewhere.
            unsafe { direct(Mfn(frame)).write_bytes(0, PAGE_SIZE) };
            memory.add_frame(frame);
        }
    }
    let mut list = FrameList::new();
    list.push_run(FrameRun {
        first: Mfn(first),
        count: frames,
    });
    (list, kernel)
}

pub(super) fn destination(memory: &mut FreeMemory, len: usize) -> (&'static mut [u8], u64) {
    let frames = (len as u64).div_ceil(PAGE_SIZE as u64);
    let first = memory
        .take_low(frames)
        .unwrap_or_else(|| refuse("kernel", "too little memory to unpack it"));
    // SAFETY: the frames are free, now reserved, and mapped.
    let bytes =
        unsafe { core::slice::from_raw_parts_mut(direct(first), frames as usize * PAGE_SIZE) };
    (bytes, frames)
}

pub(super) fn guest_frames(
    memory: &FreeMemory,
    image: FrameList,
    ramdisk: Option<&ModlistEntry>,
) -> GuestFrames {
    let mut free = FrameList::new();
    for &(from, to) in memory.ranges() {
        free.push_run(FrameRun {
            first: Mfn(from),
            count: to - from,
        });
    }
    let mut list = FrameList::new();
    let mut ramdisk_len = 0;
    if let Some(module) = ramdisk {
        if let Err(error) = check_ramdisk(physical_bytes(module.paddr, module.size)) {
            refuse("ramdisk", error);
        }
        let (from, to) = frames_of(module.paddr, module.size);
        list.push_run(FrameRun {
            first: Mfn(from),
            count: to - from,
        });
        ramdisk_len = module.size;
    }
    GuestFrames {
        image,
        ramdisk: list,
        ramdisk_len,
        free,
    }
}
