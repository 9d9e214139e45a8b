//! What the toolstack hands over: the PVH start info (`xen/include/public/arch-x86/hvm/start_info.h`).

use unmoved_shim::boot::FreeMemory;
use xen_abi::pvh::{HvmStartInfo, MemmapEntry, ModlistEntry, e820};
use xen_abi::{Mfn, PAGE_SIZE};
use zerocopy::FromBytes;

use super::refuse;
use crate::machine::{layout, paging};

/// Copies a structure from physical memory below 4 GiB.
pub(super) fn physical<T: FromBytes>(address: u64) -> T {
    let end = address.checked_add(size_of::<T>() as u64);
    // The boot tables map no more, and a fault now would be a triple fault: there is no IDT yet.
    if end.is_none_or(|end| end > 1 << 32) {
        refuse("start info", "above 4 GiB");
    }
    // SAFETY: the boot tables map the low 4 GiB, and any bytes make a `T`.
    unsafe { ((layout::DIRECT + address) as *const T).read_unaligned() }
}

/// Borrows bytes of physical memory below 4 GiB, which nobody changes while the shim starts.
pub(super) fn physical_bytes(address: u64, len: u64) -> &'static [u8] {
    if address.checked_add(len).is_none_or(|end| end > 1 << 32) {
        refuse("start info", "above 4 GiB");
    }
    // SAFETY: mapped, and reserved against reuse until the guest is built.
    unsafe { core::slice::from_raw_parts((layout::DIRECT + address) as *const u8, len as usize) }
}

/// Borrows a NUL-terminated string of the start info.
pub(super) fn physical_string(address: u64) -> &'static [u8] {
    const LONGEST: u64 = 4096;
    if address == 0 {
        return &[];
    }
    let bytes = physical_bytes(address, LONGEST);
    // Without a NUL all of it: the toolstack's slots for command lines are shorter than this.
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    &bytes[..end]
}

/// What the toolstack handed over.
pub(super) struct Handed {
    /// All RAM.
    pub ram: FreeMemory,
    /// What of it nobody uses yet.
    pub memory: FreeMemory,
    /// The first frame behind it.
    pub end: u64,
    pub kernel: ModlistEntry,
    pub ramdisk: Option<ModlistEntry>,
    /// The shim's own command line.
    pub options: &'static [u8],
}

/// Where a range ends; what ends nowhere ends with the address space.
fn end_of(address: u64, len: u64) -> u64 {
    address.saturating_add(len)
}

pub(super) fn frames_of(address: u64, len: u64) -> (u64, u64) {
    (
        Mfn::of(address).0,
        Mfn::of(end_of(address, len).saturating_add(PAGE_SIZE as u64 - 1)).0,
    )
}

pub(super) fn read_start_info(address: u64) -> Handed {
    let info: HvmStartInfo = physical(address);
    if info.magic != xen_abi::pvh::MAGIC || info.version < 1 {
        refuse("start info", "not a PVH start info of version 1");
    }
    let mut memory = FreeMemory::default();
    let mut end = 0;
    for index in 0..u64::from(info.memmap_entries) {
        let entry: MemmapEntry = physical(end_of(
            info.memmap_paddr,
            index * size_of::<MemmapEntry>() as u64,
        ));
        if entry.kind == e820::RAM {
            // Rounded inwards at both ends: a frame that is RAM only in part is no RAM.
            let last = Mfn::of(end_of(entry.addr, entry.size)).0;
            let first = entry.addr.saturating_add(PAGE_SIZE as u64 - 1);
            memory.add(Mfn::of(first).0, last);
            end = end.max(last);
        }
    }
    // Before anything is reserved: the ledger knows the shim's frames and the modules' as well.
    let ram = memory;
    let modules: Vec2 = [0, 1].map(|index| {
        (index < u64::from(info.nr_modules)).then(|| {
            let offset = index * size_of::<ModlistEntry>() as u64;
            physical::<ModlistEntry>(end_of(info.modlist_paddr, offset))
        })
    });
    let Some(kernel) = modules[0] else {
        refuse("start info", "no kernel: is `kernel=` set?")
    };
    // Frame 0 is left alone, so that 0 can mean none.
    memory.reserve(0, 1);
    // All that is in use already, before anybody takes a frame and clears it.
    memory.reserve(layout::IMAGE_PHYSICAL >> 12, paging::image_end().0);
    let start_info_page = Mfn::of(address).0;
    // Start info, module list, map and command lines follow each other.
    memory.reserve(start_info_page, start_info_page + 4);
    for module in modules.iter().flatten() {
        let (from, to) = frames_of(module.paddr, module.size);
        memory.reserve(from, to);
    }
    Handed {
        ram,
        memory,
        end,
        kernel,
        ramdisk: modules[1].filter(|module| module.size > 0),
        options: physical_string(info.cmdline_paddr),
    }
}

type Vec2 = [Option<ModlistEntry>; 2];
