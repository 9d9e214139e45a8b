//! Descriptor tables and the system-call registers of a vCPU.
//!
//! The GDT is a window of 16 pages: the first 14 show the guest's own frames, page 14 is the
//! shim's and holds the flat selectors of the PV ABI besides its own code, stack and TSS, page 15
//! does not exist (the limit excludes it).

use core::mem::offset_of;

use unmoved_shim::mem::FramePool;
use unmoved_shim::registers::msr;
use xen_abi::trap::{FLAT_RING3_CS32, FLAT_RING3_CS64};
use xen_abi::{Mfn, PAGE_SIZE};

use super::instructions;
use super::layout::{self, GDT_OFFSET, LDT_OFFSET, WINDOW_STRIDE, WINDOWS};
use super::memory::{Pool, direct};
use super::paging::{ShimSpace, patch, set_window};

/// First byte of the shim's GDT page, as a selector.
const PAGE14: u16 = 14 * PAGE_SIZE as u16;
/// The shim's code selector.
pub const SHIM_CS: u16 = PAGE14 + 0x40;
/// Its TSS selector (16 bytes).
const TSS: u16 = PAGE14 + 0x50;
/// The guest's LDT selector (16 bytes).
const LDT: u16 = PAGE14 + 0x60;

/// What the entry code finds at GS base.
#[repr(C)]
pub struct PerCpu {
    /// Top of the entry stack, where the registers of ring 3 are saved.
    pub entry_top: u64,
    /// Top of the stack that the shim's own code runs on.
    pub stack_top: u64,
    /// For the entry code only.
    pub scratch: u64,
    /// What is to be loaded into CR3 on the way out, if [`EXIT_SWITCH`] says so.
    pub next_table: u64,
    /// CR3 for the shim while ring 3 runs on another one ([`ENTRY_SPLIT`]).
    pub shim_table: u64,
    /// That other one.
    pub guest_table: u64,
    /// CR3 for last words: the shim's mappings and nothing else.
    pub fatal_table: u64,
    /// A selector for VERW to look at.
    pub selector: u16,
    /// Bits that send the entry code off its straight way: `ENTRY_*` and `EXIT_*`.
    pub entry_flags: u8,
    /// What the host has raised ([`HostTraps`](unmoved_shim::cpu::HostTraps)).
    pub host_traps: u8,
}
/// In [`PerCpu::entry_flags`]: the guest has CR0.TS set.
pub const ENTRY_TS: u8 = 1 << 0;
/// In [`PerCpu::entry_flags`]: SMAP is on.
pub const ENTRY_SMAP: u8 = 1 << 1;
/// In [`PerCpu::entry_flags`]: another page table is to be loaded.
pub const EXIT_SWITCH: u8 = 1 << 2;
/// In [`PerCpu::entry_flags`]: ring 3 runs on page tables without the shim's memory.
pub const ENTRY_SPLIT: u8 = 1 << 3;
/// In [`PerCpu::entry_flags`]: the CPU's buffers are cleared on the way out.
pub const EXIT_CLEAR: u8 = 1 << 4;
/// Offsets for the entry code.
pub const PERCPU_ENTRY_TOP: usize = offset_of!(PerCpu, entry_top);
/// Offsets for the entry code.
pub const PERCPU_STACK_TOP: usize = offset_of!(PerCpu, stack_top);
/// Offsets for the entry code.
pub const PERCPU_SCRATCH: usize = offset_of!(PerCpu, scratch);
/// Offsets for the entry code.
pub const PERCPU_NEXT_TABLE: usize = offset_of!(PerCpu, next_table);
/// Offsets for the entry code.
pub const PERCPU_SHIM_TABLE: usize = offset_of!(PerCpu, shim_table);
/// Offsets for the entry code.
pub const PERCPU_GUEST_TABLE: usize = offset_of!(PerCpu, guest_table);
/// Offsets for the entry code.
pub const PERCPU_FATAL_TABLE: usize = offset_of!(PerCpu, fatal_table);
/// Offsets for the entry code.
pub const PERCPU_SELECTOR: usize = offset_of!(PerCpu, selector);
/// Offsets for the entry code.
pub const PERCPU_ENTRY_FLAGS: usize = offset_of!(PerCpu, entry_flags);
/// Offsets for the entry code.
pub const PERCPU_HOST_TRAPS: usize = offset_of!(PerCpu, host_traps);

/// 64-bit TSS (SDM Vol. 3A §8.7).
#[repr(C, packed(4))]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
}
const _: () = assert!(size_of::<Tss>() == 104);

#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    words: [u64; 2],
}

impl Gate {
    /// An interrupt gate (interrupts go off) to `handler`.
    fn new(handler: u64, ist: u8, dpl: u8) -> Self {
        let low = handler & 0xffff
            | u64::from(SHIM_CS) << 16
            | u64::from(ist) << 32
            | 0x8e << 40
            | u64::from(dpl) << 45
            | (handler >> 16 & 0xffff) << 48;
        Self {
            words: [low, handler >> 32],
        }
    }
}

unsafe extern "C" {
    static entry_stubs: u8;
    static fences_start: u64;
    static fences_end: u64;
    static boot_stack_top: u8;
    fn entry_syscall();
    fn entry_syscall32();
    fn entry_sysenter();
}

/// The window pages of one vCPU.
pub struct Windows {
    table: Mfn,
    base: u64,
    empty: Mfn,
}

fn descriptor(page: Mfn, selector: u16, value: u64) {
    let offset = usize::from(selector & !7) % PAGE_SIZE;
    // SAFETY: the page is the shim's GDT page and the offset lies in it.
    unsafe { direct(page).add(offset).cast::<u64>().write_volatile(value) };
}

/// Returns the two words of a 16-byte system descriptor.
fn system_descriptor(kind: u64, base: u64, limit: u64) -> [u64; 2] {
    let low = limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (0x80 | kind) << 40
        | (limit >> 16 & 15) << 48
        | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// Bytes at the top of an exception's own stack, which hold the address of the [`PerCpu`] block.
const STACK_TAIL: u64 = 16;
/// Where the [`PerCpu`] block lies in its page, behind the TSS.
const PERCPU_PLACE: usize = 2048;

/// Which of the stacks in a vCPU's window is whose.
#[derive(Clone, Copy)]
enum Stack {
    Entry,
    Debug,
    Nmi,
    MachineCheck,
    DoubleFault,
}

impl Stack {
    const ALL: [Self; 5] = [
        Self::Entry,
        Self::Debug,
        Self::Nmi,
        Self::MachineCheck,
        Self::DoubleFault,
    ];

    /// The first of its pages in the window; the one before does not exist.
    const fn first_page(self) -> usize {
        layout::STACKS_OFFSET as usize / PAGE_SIZE
            + self as usize * (layout::ENTRY_STACK_PAGES + 1)
            + 1
    }

    /// Its end, in a window at `base`.
    const fn end(self, base: u64) -> u64 {
        base + ((self.first_page() + layout::ENTRY_STACK_PAGES) * PAGE_SIZE) as u64
    }

    /// What the TSS calls it; 0 for the one that is not of an exception's own.
    const fn ist(self) -> u8 {
        self as u8
    }
}

/// Sets up everything that a vCPU needs before ring 3 can run on it.
///
/// Returns its windows and its [`PerCpu`] block, both of which live for ever.  Whatever the CPU or
/// the entry code touches before the shim's page tables are loaded lies in the window, at addresses
/// that are the same in every guest: SGDT, SIDT, SLDT and STR tell a program nothing.
pub fn start_vcpu(pool: &mut Pool, space: &ShimSpace, id: u32) -> (Windows, *mut PerCpu) {
    let take = |pool: &mut Pool| pool.take().expect("the pool holds the shim's own tables");
    let table = space.window_table(pool, id);
    let empty = take(pool);
    let base = WINDOWS + u64::from(id) * WINDOW_STRIDE;
    let (page14, state) = (take(pool), take(pool));

    // Zeroes instead of holes: a selector without a descriptor is #GP or #NP for the guest, and
    // never a page fault in the middle of a segment load.
    (0..14).for_each(|page| set_window(table, page, Some(empty)));
    set_window(table, 14, Some(page14));
    (16..32).for_each(|page| set_window(table, page, Some(empty)));
    set_window(
        table,
        layout::STATE_OFFSET as usize / PAGE_SIZE,
        Some(state),
    );
    let percpu_address = base + layout::STATE_OFFSET + PERCPU_PLACE as u64;
    for stack in Stack::ALL {
        for page in 0..layout::ENTRY_STACK_PAGES {
            set_window(table, stack.first_page() + page, Some(take(pool)));
        }
        let tail = (stack.end(base) - STACK_TAIL) as *mut u64;
        // SAFETY: the page was just mapped, and nobody else knows of it.
        unsafe { tail.write_volatile(percpu_address) };
    }

    let tss_address = base + layout::STATE_OFFSET;
    let entry_top = Stack::Entry.end(base) - STACK_TAIL;
    let ist = |stack: Stack| stack.end(base) - STACK_TAIL;
    let tss = Tss {
        reserved0: 0,
        rsp: [entry_top, 0, 0],
        reserved1: 0,
        ist: [
            ist(Stack::Debug),
            ist(Stack::Nmi),
            ist(Stack::MachineCheck),
            ist(Stack::DoubleFault),
            0,
            0,
            0,
        ],
        reserved2: 0,
        reserved3: 0,
        // Behind the limit: no port is open to ring 3.
        io_map_base: size_of::<Tss>() as u16,
    };
    // SAFETY: the frame is fresh and larger than the TSS.
    unsafe { direct(state).cast::<Tss>().write_unaligned(tss) };
    let percpu = percpu_address as *mut PerCpu;
    // SAFETY: the page was just mapped, the address is aligned, and nobody else knows it.
    unsafe {
        percpu.write(PerCpu {
            entry_top,
            // The boot's stack: nothing of the start is on it any more when ring 3 runs.
            stack_top: (&raw const boot_stack_top) as u64,
            scratch: 0,
            next_table: 0,
            // Until the first way out sets the guest's.
            shim_table: space.l4.addr(),
            guest_table: space.split(pool).addr(),
            fatal_table: space.l4.addr(),
            selector: SHIM_CS + 8,
            entry_flags: 0,
            host_traps: 0,
        });
    };

    descriptor(page14, FLAT_RING3_CS32, 0x00cf_fb00_0000_ffff);
    descriptor(page14, xen_abi::trap::FLAT_RING3_DS, 0x00cf_f300_0000_ffff);
    descriptor(page14, FLAT_RING3_CS64, 0x00af_fb00_0000_ffff);
    descriptor(page14, SHIM_CS, 0x00af_9b00_0000_ffff);
    descriptor(page14, SHIM_CS + 8, 0x00cf_9300_0000_ffff);
    let [low, high] = system_descriptor(9, tss_address, size_of::<Tss>() as u64 - 1);
    descriptor(page14, TSS, low);
    descriptor(page14, TSS + 8, high);

    load_idt(pool, table, base);
    // SAFETY: the tables above are complete and stay where they are.
    unsafe { load(base + GDT_OFFSET, percpu) };
    (Windows { table, base, empty }, percpu)
}

fn load_idt(pool: &mut Pool, table: Mfn, base: u64) {
    let idt = pool.take().expect("the pool holds the shim's own tables");
    set_window(table, layout::IDT_OFFSET as usize / PAGE_SIZE, Some(idt));
    for vector in 0..256u64 {
        let stub = (&raw const entry_stubs) as u64 + vector * 16;
        let stack = match vector {
            1 => Stack::Debug,
            2 => Stack::Nmi,
            18 => Stack::MachineCheck,
            8 => Stack::DoubleFault,
            // 0, no stack of its own: from ring 3 the CPU takes rsp0 of the TSS.
            _ => Stack::Entry,
        };
        // INT3 and INTO are unprivileged in a PV guest too, and INT 0x80 is its 32-bit system call.
        // Any other INT n is #GP, from which it is worked out who may raise it.
        let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
        // SAFETY: the table is a fresh frame, which holds exactly 256 gates.
        unsafe {
            direct(idt)
                .cast::<Gate>()
                .add(vector as usize)
                .write(Gate::new(stub, stack.ist(), dpl));
        };
    }
    let pointer = Pointer {
        limit: 4095,
        base: base + layout::IDT_OFFSET,
    };
    // SAFETY: the table is complete; its handlers are the entry stubs.
    unsafe { core::arch::asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack)) };
}

/// Makes the entry code wait for each SWAPGS that it may have mispredicted.
pub fn fence_swapgs() {
    const LFENCE: [u8; 3] = [0x0f, 0xae, 0xe8];
    let mut at = &raw const fences_start;
    while at != &raw const fences_end {
        // SAFETY: the entry code lists the places between the two symbols.
        let place = unsafe { *at };
        // SAFETY: a place for one instruction, which no interrupt can lead to meanwhile.
        unsafe { patch(place, LFENCE) };
        at = at.wrapping_add(1);
    }
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// # Safety
///
/// The GDT at `gdt` and the TSS it names must be complete, and `percpu` valid for ever.
unsafe fn load(gdt: u64, percpu: *mut PerCpu) {
    let pointer = Pointer {
        // Without the last page, which is not mapped: a selector up there is #GP and not a page
        // fault.
        limit: 15 * PAGE_SIZE as u16 - 1,
        base: gdt,
    };
    // SAFETY: the new GDT has a code descriptor at SHIM_CS equal to the running one.
    unsafe {
        core::arch::asm!(
            "lgdt [{pointer}]",
            "push {cs:r}",
            "lea {tmp}, [rip + 2f]",
            "push {tmp}",
            "retfq",
            "2:",
            "mov ss, {ss:e}",
            "ltr {tss:x}",
            pointer = in(reg) &raw const pointer,
            cs = in(reg) u64::from(SHIM_CS),
            ss = in(reg) u32::from(SHIM_CS + 8),
            tss = in(reg) TSS,
            tmp = out(reg) _,
        );
    }
    let star = u64::from(FLAT_RING3_CS32) << 48 | u64::from(SHIM_CS) << 32;
    // AC, VM, RF, NT, DF, IF, TF are cleared on the way in.
    const SFMASK: u64 = 0x0007_4700;
    let entry = |f: unsafe extern "C" fn()| f as usize as u64;
    // SAFETY: each value is what the entry code was written for.
    unsafe {
        instructions::write_msr(msr::GS_BASE, percpu as u64);
        instructions::write_msr(msr::KERNEL_GS_BASE, 0);
        instructions::write_msr(msr::FS_BASE, 0);
        instructions::write_msr(msr::STAR, star);
        instructions::write_msr(msr::LSTAR, entry(entry_syscall));
        instructions::write_msr(msr::CSTAR, entry(entry_syscall32));
        instructions::write_msr(msr::SFMASK, SFMASK);
    }
    if instructions::cpuid(0, 0)[1] != u32::from_le_bytes(*b"Auth") {
        // On AMD SYSENTER is undefined in long mode.
        // SAFETY: as above; the entry loads its stack itself.
        unsafe {
            instructions::write_msr(msr::SYSENTER_CS, SHIM_CS.into());
            instructions::write_msr(msr::SYSENTER_ESP, (*percpu).entry_top);
            instructions::write_msr(msr::SYSENTER_EIP, entry(entry_sysenter));
        }
    }
}

impl Windows {
    /// Shows `frames` as the first pages of the GDT.
    pub fn set_gdt(&self, frames: &[Mfn]) {
        for page in 0..14 {
            set_window(
                self.table,
                page,
                Some(frames.get(page).copied().unwrap_or(self.empty)),
            );
            // At once: the caller drops the old frames next, and through a stale translation the
            // CPU would load descriptors from what the guest writes there.
            instructions::invlpg(self.base + GDT_OFFSET + (page * PAGE_SIZE) as u64);
        }
    }

    /// Shows `frames` as the LDT and loads it with `entries` descriptors.
    pub fn set_ldt(&self, frames: &[Mfn], entries: u32) {
        for page in 0..16 {
            let frame = frames.get(page).copied().unwrap_or(self.empty);
            set_window(self.table, 16 + page, Some(frame));
            instructions::invlpg(self.base + LDT_OFFSET + (page * PAGE_SIZE) as u64);
        }
        // A null selector for an empty table: a limit has no value for no bytes.
        let mut selector = 0;
        if entries > 0 {
            let limit = u64::from(entries) * 8 - 1;
            let [low, high] = system_descriptor(2, self.base + LDT_OFFSET, limit);
            let page14 = self.base + GDT_OFFSET + 14 * PAGE_SIZE as u64;
            let slot = (page14 + u64::from(LDT % PAGE_SIZE as u16)) as *mut u64;
            // SAFETY: the slot lies in the shim's own GDT page, mapped writable in the window.
            unsafe { slot.write_volatile(low) };
            // SAFETY: as above, the descriptor's second half.
            unsafe { slot.add(1).write_volatile(high) };
            selector = LDT;
        }
        // Reloaded even where only the frames have changed: the CPU keeps base and limit by itself.
        // SAFETY: the descriptor is null or the valid one just written.
        unsafe { core::arch::asm!("lldt {:x}", in(reg) selector, options(nostack)) };
    }
}

// The stubs place the frame by these numbers.
const _: () = assert!(size_of::<unmoved_shim::cpu::Regs>() == 22 * 8);
const _: () = assert!(layout::STACK_SIZE >= 0x8000);
