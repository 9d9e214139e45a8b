//! The shim's own mappings, which every address space of the guest shares through its L4 slots.

use unmoved_shim::boot::share::LEAST_MAPPED;
use unmoved_shim::mem::FramePool;
use xen_abi::{Mfn, PAGE_SIZE};

use super::layout::{self, DIRECT, IMAGE, IMAGE_PHYSICAL, M2P, WINDOWS, index};
use super::memory::{Pool, direct};
use super::{globals, instructions};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED_DIRTY: u64 = 3 << 5;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Shim data: not for the guest, not code.
const DATA: u64 = PRESENT | WRITE | ACCESSED_DIRTY | GLOBAL | NO_EXECUTE;

unsafe extern "C" {
    static __image_start: u8;
    static __entry_start: u8;
    static __entry_end: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
    static boot_stack_guard: u8;
}

fn entry(table: Mfn, index: usize) -> *mut u64 {
    debug_assert!(index < 512);
    direct(table).cast::<u64>().wrapping_add(index)
}

fn load(table: Mfn, index: usize) -> u64 {
    // SAFETY: `table` is a table of the shim's own, and only this CPU runs.
    unsafe { entry(table, index).read_volatile() }
}

fn store(table: Mfn, index: usize, value: u64) {
    // SAFETY: as for `load`; what the new entry maps is argued by the callers.
    unsafe { entry(table, index).write_volatile(value) }
}

/// The tables that hold the shim's mappings.
pub struct ShimSpace {
    /// A top-level table with nothing but the shim in it.
    pub l4: Mfn,
}

impl ShimSpace {
    /// Builds the mappings and starts to use them: the image by its sections, the direct map, the
    /// machine-to-physical table at `m2p` and the window of vCPU 0.
    pub fn build(pool: &mut Pool, end: u64, m2p: Mfn, m2p_frames: u64) -> Self {
        let l4 = pool.take().expect("the pool holds the shim's own tables");
        let space = Self { l4 };
        space.map_image(pool);
        space.map_direct(pool, end);
        for page in 0..m2p_frames {
            // Not global: user mode may not see it, and must not find a translation of the kernel's.
            let flags = PRESENT | USER | ACCESSED_DIRTY | NO_EXECUTE;
            space.map(
                pool,
                M2P + page * PAGE_SIZE as u64,
                Mfn(m2p.0 + page),
                flags,
            );
        }
        // SAFETY: image, stack and direct map are mapped as before.
        unsafe { instructions::set_cr3(l4.addr()) };
        space
    }

    /// Returns the L4 entries that every address space of the guest must have.
    pub fn slots(&self) -> [u64; layout::SLOTS] {
        core::array::from_fn(|slot| load(self.l4, layout::FIRST_SLOT + slot))
    }

    /// Builds another top-level table, which in the shim's slots has only what ring 3 needs to get
    /// out: the windows and the entry code.  The machine-to-physical table comes with the guest's
    /// entries, if it is shown there.
    pub fn split(&self, pool: &mut Pool) -> Mfn {
        let l4 = pool.take().expect("the pool holds the shim's own tables");
        // The same L3 table, so that what a window shows changes in both at once.
        store(l4, index(WINDOWS, 4), load(self.l4, index(WINDOWS, 4)));
        // Its own tables for the image's slot: those of the other table map all of the image.
        let bare = Self { l4 };
        let addr = |symbol: *const u8| symbol as u64;
        for va in (addr(&raw const __entry_start)..addr(&raw const __entry_end)).step_by(PAGE_SIZE)
        {
            let frame = Mfn::of(va - IMAGE + IMAGE_PHYSICAL);
            bare.map(pool, va, frame, PRESENT | ACCESSED_DIRTY | GLOBAL);
        }
        l4
    }

    /// Makes room for window pages of a vCPU and returns the L1 table that maps them.
    pub fn window_table(&self, pool: &mut Pool, vcpu: u32) -> Mfn {
        let va = WINDOWS + u64::from(vcpu) * layout::WINDOW_STRIDE;
        self.table(pool, va, 1, 0)
    }

    fn map_image(&self, pool: &mut Pool) {
        let addr = |symbol: *const u8| symbol as u64;
        let text_end = addr(&raw const __text_end);
        let rodata_end = addr(&raw const __rodata_end);
        let end = addr(&raw const __image_end);
        debug_assert_eq!(addr(&raw const __image_start), IMAGE);
        for va in (IMAGE..end).step_by(PAGE_SIZE) {
            let flags = match va {
                // A stack that overflows faults here, and since the fault's frame does too it
                // becomes a #DF, which has a stack of its own. Without the hole it would overwrite
                // what lies below.
                _ if va == addr(&raw const boot_stack_guard) => continue,
                _ if va < text_end => PRESENT | ACCESSED_DIRTY | GLOBAL,
                _ if va < rodata_end => PRESENT | ACCESSED_DIRTY | GLOBAL | NO_EXECUTE,
                _ => DATA,
            };
            self.map(pool, va, Mfn::of(va - IMAGE + IMAGE_PHYSICAL), flags);
        }
    }

    /// Maps everything up to `end` (a frame number) in pages of 2 MiB; holes do no harm.
    fn map_direct(&self, pool: &mut Pool, end: u64) {
        // At least 4 GiB: the host's pages (shared info, grant table, rings) appear below that.
        for base in (0..end.max(LEAST_MAPPED)).step_by(512) {
            let va = DIRECT + (base << 12);
            let table = self.table(pool, va, 2, 0);
            // Not executable, and the accessed and dirty bits are set: no walk writes to these
            // tables.
            store(table, index(va, 2), base << 12 | DATA | LARGE);
        }
    }

    fn map(&self, pool: &mut Pool, va: u64, frame: Mfn, flags: u64) {
        let table = self.table(pool, va, 1, flags & USER);
        store(table, index(va, 1), frame.addr() | flags);
    }

    /// Returns the table of `level` that maps `va`, made as needed.
    fn table(&self, pool: &mut Pool, va: u64, level: u32, user: u64) -> Mfn {
        let mut table = self.l4;
        for upper in (level + 1..=4).rev() {
            let slot = index(va, upper);
            let mut link = load(table, slot);
            if link & PRESENT == 0 {
                let next = pool.take().expect("the pool holds the shim's own tables");
                // Writable and executable above, whatever the page is: the last entry alone
                // decides.
                link = next.addr() | PRESENT | WRITE | ACCESSED_DIRTY | user;
                store(table, slot, link);
            }
            table = Mfn::of(link & ADDRESS);
        }
        table
    }
}

/// Replaces one page of a vCPU's window; the caller drops the old translation.
pub fn set_window(table: Mfn, slot: usize, frame: Option<Mfn>) {
    assert!(
        frame.is_none_or(|frame| frame.0 < globals::frame_limit()),
        "no such frame"
    );
    // Writable for the CPU, which sets the accessed bit of a descriptor in it; ring 3 has no way
    // here.
    store(table, slot, frame.map_or(0, |frame| frame.addr() | DATA));
}

/// Returns the first frame after the image.
pub fn image_end() -> Mfn {
    Mfn::of((&raw const __image_end) as u64 - IMAGE + IMAGE_PHYSICAL)
}

/// Gives `to`, a table made by [`ShimSpace::split`], the guest's entries of `from`, a top-level table
/// of the guest's, and the machine-to-physical table if it is there.
pub fn copy_guest_slots(from: Mfn, to: Mfn) {
    let last = layout::FIRST_SLOT + layout::SLOTS;
    const _: () = assert!(index(M2P, 4) == layout::FIRST_SLOT);
    // With slot 256: it is the guest's M2P, or empty where the kernel hides it from user mode. The
    // others of the shim stay what `split` made them.
    for slots in [0..layout::FIRST_SLOT + 1, last..512] {
        let (source, target) = (entry(from, slots.start), entry(to, slots.start));
        // SAFETY: both are tables that the direct map covers, the ranges lie inside, and only this
        // CPU runs.
        unsafe { core::ptr::copy_nonoverlapping(source, target, slots.len()) };
    }
}

/// Writes over three bytes of the image's code.
///
/// # Safety
///
/// `va` must be where the entry code left room for one instruction of that length, and `code` one.
pub unsafe fn patch(va: u64, code: [u8; 3]) {
    let place = direct(Mfn::of(va - IMAGE + IMAGE_PHYSICAL));
    let offset = (va % PAGE_SIZE as u64) as usize;
    for (index, byte) in code.into_iter().enumerate() {
        // SAFETY: the direct map covers the image, and nothing executes the place now.
        unsafe { place.add(offset).add(index).write_volatile(byte) };
    }
}
