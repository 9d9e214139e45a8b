//! A machine that is ordinary memory; [`walk`] translates the guest's addresses.

mod walk;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use xen_abi::mmu::{INVALID_M2P_ENTRY, is_canonical};
use xen_abi::{GuestVa, Mfn};

use super::heap::SmallHeap;
use super::host::Clock;
use super::translations::Translations;
use crate::cpu::{HostTraps, Machine, first};
use crate::mem::Frames;
use crate::mm::{Ledger, M2p};
use crate::testing::FakeFrames;

/// A flush that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// One page.
    Page(u64),
    /// Everything.
    All,
}

/// The machine; what is public was loaded by the guest's owner or is the CPU's state to set.
pub struct FakeMachine {
    /// All memory.
    pub frames: Rc<FakeFrames>,
    /// Its time stamp counter.
    pub clock: Clock,
    /// The page table in use.
    pub root: Mfn,
    /// How often a page table was loaded.
    pub loads: usize,
    /// The flushes, in order.
    pub flushes: RefCell<Vec<Flushed>>,
    /// CR2.
    pub fault_address: u64,
    /// Selector in GS.
    pub gs: u16,
    /// The active GS base.
    pub gs_base: u64,
    /// The FS base.
    pub fs_base: u64,
    /// Frames in the GDT window.
    pub gdt: Vec<Mfn>,
    /// Frames in the LDT window.
    pub ldt: Vec<Mfn>,
    /// Descriptors in the LDT.
    pub ldt_entries: u32,
    /// Debug registers.
    pub debug: [u64; 8],
    /// What the host has raised.
    pub host_traps: Cell<HostTraps>,
    /// How many hosts it has come to.
    pub hosts: usize,
    /// Whether FPU instructions trap.
    pub task_switched: bool,
    /// Guest-visible bits of CR4.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// Model-specific registers; one that is not there faults.
    pub msrs: BTreeMap<u32, u64>,
    m2p: RefCell<Vec<u64>>,
    cpu: Rc<Translations>,
}

impl FakeMachine {
    /// Makes a machine with the given memory and machine-to-physical table, whose CPU is watched to
    /// reach nothing but what `ledger` allows.
    pub fn new(frames: Rc<FakeFrames>, clock: Clock, m2p: Vec<u64>, ledger: &Ledger) -> Self {
        let cpu = Rc::new(Translations::new(ledger));
        let judge = cpu.clone();
        frames.on_store(move |frame| judge.judge_store(frame));
        Self {
            frames,
            clock,
            root: Mfn(0),
            loads: 0,
            flushes: RefCell::default(),
            fault_address: 0,
            gs: !0,
            gs_base: !0,
            fs_base: !0,
            gdt: Vec::new(),
            ldt: Vec::new(),
            ldt_entries: 0,
            // What a CPU holds before anybody loads it is not what a guest begins with.
            debug: [!0, !0, !0, !0, 0, 0, !0, !0],
            host_traps: Cell::default(),
            hosts: 0,
            task_switched: true,
            cr4: !0,
            xcr0: 1,
            msrs: BTreeMap::new(),
            m2p: RefCell::new(m2p),
            cpu,
        }
    }

    /// Returns an entry of the machine-to-physical table.
    pub fn m2p(&self, mfn: Mfn) -> u64 {
        let table = self.m2p.borrow();
        table
            .get(mfn.0 as usize)
            .copied()
            .unwrap_or(INVALID_M2P_ENTRY)
    }

    /// Takes the flushes since the last call.
    pub fn take_flushes(&self) -> Vec<Flushed> {
        self.flushes.take()
    }
}

impl M2p for FakeMachine {
    fn set(&self, mfn: Mfn, value: u64) {
        let mut table = self.m2p.borrow_mut();
        let entry = table.get_mut(mfn.0 as usize);
        *entry.expect("only frames that exist have an entry") = value;
    }
}

impl Machine for FakeMachine {
    fn load_page_table(&mut self, l4: Mfn) {
        self.root = l4;
        self.loads += 1;
        SmallHeap::outside(|| self.cpu.forget());
        self.speculate();
    }
    fn switch_page_table(&mut self, l4: Mfn) {
        self.load_page_table(l4);
    }
    fn fault_address(&self) -> u64 {
        self.fault_address
    }
    fn flush_page(&self, va: u64) {
        self.flushes.borrow_mut().push(Flushed::Page(va));
        SmallHeap::outside(|| self.cpu.forget_page(va));
    }
    fn gs_base(&self) -> u64 {
        self.gs_base
    }
    fn exchange_gs_base(&mut self, base: u64) -> u64 {
        assert!(is_canonical(GuestVa(base)), "GS base {base:#x} faults");
        std::mem::replace(&mut self.gs_base, base)
    }
    fn fs_base(&self) -> u64 {
        self.fs_base
    }
    fn set_fs_base(&mut self, base: u64) {
        assert!(is_canonical(GuestVa(base)), "FS base {base:#x} faults");
        self.fs_base = base;
    }
    fn load_gs_selector(&mut self, selector: u16) -> Option<u64> {
        let is_null = selector & !3 == 0;
        assert!(is_null || selector & 3 == 3, "privilege of {selector:#x}");
        self.gs = if is_null { selector } else { 0 };
        if is_null {
            return None;
        }
        let window = if selector & 4 == 0 {
            &self.gdt
        } else {
            &self.ldt
        };
        let index = usize::from(selector >> 3);
        let &frame = window.get(index / 512)?;
        let raw = self.frames.load64(frame, index % 512 * 8);
        // A present data segment; its base is scattered over three fields.
        if raw >> 44 & 0x9 != 0x9 {
            return None;
        }
        self.gs = selector;
        Some(raw >> 16 & 0xff_ffff | raw >> 56 << 24)
    }
    fn load_gdt(&mut self, frames: &[Mfn]) {
        self.gdt = frames.to_vec();
    }
    fn load_ldt(&mut self, frames: &[Mfn], entries: u32) {
        assert!(entries as usize <= frames.len() * 512, "more than is there");
        self.ldt = frames.to_vec();
        self.ldt_entries = entries;
    }
    fn set_debug_register(&mut self, index: u8, value: u64) {
        assert!(index < 4 || value >> 32 == 0, "DR{index} {value:#x} faults");
        self.debug[usize::from(index)] = value;
    }
    fn take_debug_status(&mut self) -> u64 {
        std::mem::replace(&mut self.debug[6], first::DR6)
    }
    fn take_host_traps(&self) -> HostTraps {
        self.host_traps.take()
    }
    fn host_changed(&mut self) {
        self.hosts += 1;
    }
    fn set_task_switched(&mut self, on: bool) {
        self.task_switched = on;
    }
    fn tsc(&self) -> u64 {
        self.clock.tsc()
    }
    fn set_guest_cr4(&mut self, bits: u64) {
        self.cr4 = bits;
    }
    fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }
    fn xcr0(&self) -> u64 {
        self.xcr0
    }
    fn read_msr(&self, index: u32) -> Option<u64> {
        self.msrs.get(&index).copied()
    }
    fn write_msr(&mut self, index: u32, value: u64) {
        if let Some(register) = self.msrs.get_mut(&index) {
            *register = value;
        }
    }
}

macro_rules! forward {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        impl Frames for FakeMachine {
            $(fn $name(&self, frame: Mfn, $($arg: $type),*) $(-> $result)? {
                self.frames.$name(frame, $($arg),*)
            })*
        }
    };
}

forward! {
    load8(offset: usize) -> u8;
    store8(offset: usize, value: u8);
    load16(offset: usize) -> u16;
    store16(offset: usize, value: u16);
    cas16(offset: usize, old: u16, new: u16) -> u16;
    load32(offset: usize) -> u32;
    store32(offset: usize, value: u32);
    load64(offset: usize) -> u64;
    store64(offset: usize, value: u64);
    cas64(offset: usize, old: u64, new: u64) -> u64;
    fetch_or64(offset: usize, bits: u64) -> u64;
    fetch_and64(offset: usize, bits: u64) -> u64;
    read(offset: usize, buf: &mut [u8]);
    write(offset: usize, buf: &[u8]);
    clear();
}
