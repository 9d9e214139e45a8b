//! This kernel's memory: what the builder mapped, a few pages of its own to attack with, and its
//! page tables as data.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use xen_abi::mmu::{Level, M2P_VIRT_START, Pte, UvmFlags};
use xen_abi::shared_info::{EVTCHN_MASK, EVTCHN_PENDING, vcpu_info};
use xen_abi::start_info::StartInfo;
use xen_abi::{GuestVa, Mfn, PAGE_SIZE, Pfn, hypercall as nr};

use crate::call::hypercall;

/// Where the builder maps frame 0.
pub const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
/// Flags of an ordinary kernel mapping.
pub const RW: u64 = Pte::PRESENT | Pte::RW | Pte::USER | Pte::ACCESSED | Pte::DIRTY;
/// The same, read-only.
pub const RO: u64 = RW & !Pte::RW;

/// Pages of this kernel's own image.
#[repr(C, align(4096))]
pub struct Pages<const N: usize>(UnsafeCell<[[u64; 512]; N]>);
// SAFETY: one CPU; accesses are through raw pointers and volatile.
unsafe impl<const N: usize> Sync for Pages<N> {}

impl<const N: usize> Pages<N> {
    const fn new() -> Self {
        Self(UnsafeCell::new([[0; 512]; N]))
    }

    /// The address of page `n`.
    pub fn va(&self, n: usize) -> u64 {
        assert!(n < N, "no such page");
        self.0.get() as u64 + (n * PAGE_SIZE) as u64
    }

    /// The frame of page `n`.
    pub fn mfn(&self, n: usize) -> Mfn {
        mfn_of(self.va(n))
    }

    /// Whether an address lies in these pages.
    pub fn holds(&self, va: u64) -> bool {
        (self.va(0)..self.va(0) + (N * PAGE_SIZE) as u64).contains(&va)
    }

    /// Stores a word, which must be writable.
    pub fn set(&self, word: usize, value: u64) {
        assert!(word < N * 512, "no such word");
        // SAFETY: inside the pages.
        unsafe { self.0.get().cast::<u64>().add(word).write_volatile(value) };
    }

    /// Loads a word.
    pub fn get(&self, word: usize) -> u64 {
        assert!(word < N * 512, "no such word");
        // SAFETY: inside the pages, which are always readable.
        unsafe { self.0.get().cast::<u64>().add(word).read_volatile() }
    }

    /// Fills all words.
    pub fn fill(&self, value: u64) {
        (0..N * 512).for_each(|word| self.set(word, value));
    }
}

/// Arguments and results of hypercalls.
pub static SCRATCH: Pages<4> = Pages::new();
/// Frames that attacks turn into tables and back.
pub static VICTIMS: Pages<32> = Pages::new();
/// A stack for attempted code, which uses its middle.
static STACK: Pages<4> = Pages::new();
/// Addresses that other frames are mapped at.
static WINDOWS: Pages<8> = Pages::new();
/// The descriptor table in use.
pub static GDT: Pages<1> = Pages::new();

static P2M: AtomicU64 = AtomicU64::new(0);
static NR_PAGES: AtomicU64 = AtomicU64::new(0);
static ROOT: AtomicU64 = AtomicU64::new(0);
static NR_TABLES: AtomicU64 = AtomicU64::new(0);
static SHARED: AtomicU64 = AtomicU64::new(0);
static MAPPED_END: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
}

/// Reads what the builder left.
pub fn init(info: &StartInfo) {
    P2M.store(info.mfn_list, Ordering::Relaxed);
    NR_PAGES.store(info.nr_pages, Ordering::Relaxed);
    ROOT.store(info.pt_base, Ordering::Relaxed);
    NR_TABLES.store(info.nr_pt_frames, Ordering::Relaxed);
    SHARED.store(info.shared_info, Ordering::Relaxed);
    // What is mapped ends where the first level-1 entry is empty.
    let mut va = VIRT_BASE;
    while entry(Level::L1, va).is_some_and(Pte::is_present) {
        va += PAGE_SIZE as u64;
    }
    MAPPED_END.store(va, Ordering::Relaxed);
    map(WINDOWS.va(0), Mfn::of(info.shared_info), RW);
}

/// Makes the text read-only and sets a small descriptor table, so that there is something to break.
pub fn protect() {
    let (from, to) = (&raw const __text_start as u64, &raw const __text_end as u64);
    for va in (from..to).step_by(PAGE_SIZE) {
        map(va, mfn_of(va), RO);
    }
    // Entry 1: a data segment of privilege 3.
    GDT.set(1, 0x00cf_f300_0000_ffff);
    map(GDT.va(0), GDT.mfn(0), RO);
    set_gdt();
}

/// Sets the descriptor table; says whether that is in use now.
pub fn set_gdt() -> bool {
    let frame = GDT.mfn(0).0;
    hypercall(nr::SET_GDT, [&raw const frame as u64, 512, 0, 0, 0]) == 0
}

/// Number of frames.
pub fn nr_pages() -> u64 {
    NR_PAGES.load(Ordering::Relaxed)
}

/// First address behind what the builder mapped.
pub fn mapped_end() -> u64 {
    MAPPED_END.load(Ordering::Relaxed)
}

/// The shared info page, as a machine address.
pub fn shared_info() -> u64 {
    SHARED.load(Ordering::Relaxed)
}

/// The stack pointer of attempted code.
pub fn stack_middle() -> u64 {
    STACK.va(2)
}

/// Word `n` above [`stack_middle`].
pub fn set_stack(n: usize, value: u64) {
    STACK.set(1024 + n, value);
}

/// An address to map something at, 1 to 7.
pub fn window(n: usize) -> u64 {
    assert!(n > 0, "window 0 is the shared info page");
    WINDOWS.va(n)
}

/// The addresses of the event mask, of the info that it is in, and of the pending bits.
pub fn event_words() -> (u64, u64, u64) {
    let shared = WINDOWS.va(0);
    (
        shared + vcpu_info::UPCALL_MASK as u64,
        shared,
        shared + EVTCHN_PENDING as u64,
    )
}

/// Clears the mask of every port.
pub fn unmask_events() {
    for word in 0..64 {
        let at = WINDOWS.va(0) as usize + EVTCHN_MASK + word * 8;
        // SAFETY: inside the shared info page, which is mapped for good.
        unsafe { AtomicU64::from_ptr(at as *mut u64) }.store(0, Ordering::Relaxed);
    }
}

/// The machine frame of frame `pfn`.
pub fn mfn(pfn: Pfn) -> Mfn {
    assert!(pfn.0 < nr_pages(), "no such frame");
    let at = P2M.load(Ordering::Relaxed) + pfn.0 * 8;
    // SAFETY: the list has an entry for each frame, and is mapped.
    Mfn(unsafe { (at as *const u64).read_volatile() })
}

/// Notes that frame `pfn` is another one now.
pub fn set_mfn(pfn: Pfn, mfn: Mfn) {
    assert!(pfn.0 < nr_pages(), "no such frame");
    let at = P2M.load(Ordering::Relaxed) + pfn.0 * 8;
    // SAFETY: as in `mfn`.
    unsafe { (at as *mut u64).write_volatile(mfn.0) };
}

/// The frame at an address of the builder's mapping.
pub fn mfn_of(va: u64) -> Mfn {
    mfn(Pfn((va - VIRT_BASE) >> 12))
}

/// The address that the builder mapped a frame of this domain at.
pub fn va_of(frame: Mfn) -> u64 {
    let at = M2P_VIRT_START + frame.0 * 8;
    // SAFETY: the table covers every frame of this domain.
    VIRT_BASE + (unsafe { (at as *const u64).read_volatile() } << 12)
}

/// The first of the page tables that the builder made, and how many there are.
pub fn first_tables() -> (Pfn, u64) {
    let first = (ROOT.load(Ordering::Relaxed) - VIRT_BASE) >> 12;
    (Pfn(first), NR_TABLES.load(Ordering::Relaxed))
}

/// The root of the page tables.
pub fn root() -> Mfn {
    mfn_of(ROOT.load(Ordering::Relaxed))
}

/// An entry of a table that is mapped by the builder.
pub fn table_entry(table: Mfn, index: usize) -> Pte {
    let at = va_of(table) + (index as u64) * 8;
    // SAFETY: tables stay readable where the builder mapped them.
    Pte(unsafe { AtomicU64::from_ptr(at as *mut u64) }.load(Ordering::Relaxed))
}

/// The table of `level` that translates `va`, if there is one.
pub fn table(level: Level, va: u64) -> Option<Mfn> {
    let mut table = root();
    for upper in [Level::L4, Level::L3, Level::L2] {
        if upper == level {
            return Some(table);
        }
        let entry = table_entry(table, upper.index(GuestVa(va)));
        if !entry.is_present() {
            return None;
        }
        table = entry.frame();
    }
    Some(table)
}

/// The entry of `level` for `va`.
pub fn entry(level: Level, va: u64) -> Option<Pte> {
    table(level, va).map(|table| table_entry(table, level.index(GuestVa(va))))
}

/// The machine address of the entry of `level` for `va`.
pub fn entry_address(level: Level, va: u64) -> u64 {
    let table = table(level, va).unwrap_or(Mfn(0));
    table.addr() + level.index(GuestVa(va)) as u64 * 8
}

/// Maps a frame; returns what the hypercall did.
pub fn map(va: u64, frame: Mfn, flags: u64) -> u64 {
    hypercall(
        nr::UPDATE_VA_MAPPING,
        [va, Pte::new(frame, flags).0, UvmFlags::INVLPG.0, 0, 0],
    )
}

/// Puts a victim back where it was, writable, as far as that goes.
pub fn release_victim(n: usize) {
    map(VICTIMS.va(n), VICTIMS.mfn(n), RW);
}

/// A byte of the text, to see that nobody changed it.
pub fn text_sum() -> u64 {
    let (from, to) = (&raw const __text_start as u64, &raw const __text_end as u64);
    (from..to).fold(0u64, |sum, at| {
        // SAFETY: text is readable.
        let byte = unsafe { AtomicU8::from_ptr(at as *mut u8) }.load(Ordering::Relaxed);
        sum.rotate_left(5) ^ u64::from(byte)
    })
}

/// Where the text begins, an address that can be read and not written.
pub fn text() -> u64 {
    &raw const __text_start as u64
}

/// If an address is in the text.
pub fn is_text(address: u64) -> bool {
    (text()..&raw const __text_end as u64).contains(&address)
}
