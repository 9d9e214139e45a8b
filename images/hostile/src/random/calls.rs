//! Hypercalls and what they point to.

use xen_abi::memory::op as mem;
use xen_abi::mmu::{Level, Pte, ext};
use xen_abi::{Mfn, hypercall as nr};

use super::{Call, Random};
use crate::attacks::is_deadly;
use crate::console;
use crate::m2p;
use crate::memory::{self, GDT, RW, SCRATCH, VICTIMS};
use crate::trap;

impl Random {
    /// A hypercall, with what it points to in scratch page 0.
    pub(super) fn call(&mut self) -> Call {
        for index in 0..24 {
            let word = self.word();
            SCRATCH.set(index, word);
        }
        let number = match self.below(4) {
            0 => self.below(56),
            1 => self.of(&[nr::MMU_UPDATE, nr::UPDATE_VA_MAPPING, nr::MMUEXT_OP]),
            _ => self.of(&[
                nr::MEMORY_OP,
                nr::XEN_VERSION,
                nr::GRANT_TABLE_OP,
                nr::EVENT_CHANNEL_OP,
                nr::VCPU_OP,
                nr::SCHED_OP,
                nr::PHYSDEV_OP,
                nr::CALLBACK_OP,
                nr::SET_GDT,
                nr::UPDATE_DESCRIPTOR,
                nr::SET_SEGMENT_BASE,
                nr::SET_DEBUGREG,
                nr::GET_DEBUGREG,
                nr::SET_TRAP_TABLE,
                nr::VM_ASSIST,
                nr::CONSOLE_IO,
                nr::SET_TIMER_OP,
                nr::STACK_SWITCH,
                nr::FPU_TASKSWITCH,
                nr::NMI_OP,
                nr::SET_CALLBACKS,
            ]),
        };
        let mut args = [0; 5];
        args.iter_mut().for_each(|arg| *arg = self.word());
        if self.below(4) != 0 {
            args[1] = self.pointer();
        }
        let mut call = Call { number, args };
        self.shape(&mut call);
        call
    }

    /// Makes a call meaningful, and keeps it from being suicide.
    pub(super) fn shape(&mut self, call: &mut Call) {
        let [a, b, ..] = &mut call.args;
        match call.number {
            nr::MMU_UPDATE => {
                let count = 1 + self.below(4);
                for index in 0..count {
                    let (ptr, val) = self.update();
                    SCRATCH.set(index as usize * 2, ptr);
                    SCRATCH.set(index as usize * 2 + 1, val);
                }
                call.args = [SCRATCH.va(0), count, 0, 0x7ff0, 0];
                if self.below(8) == 0 {
                    call.args[2] = self.pointer();
                    call.args[3] = self.word();
                }
            }
            nr::UPDATE_VA_MAPPING => {
                *a = match self.below(8) {
                    0 => self.hypervisor() & !0xfff,
                    1 => self.non_canonical(),
                    2 => self.below(1 << 47),
                    3..=5 => memory::window(4 + self.below(4) as usize),
                    _ => VICTIMS.va(self.below(31) as usize),
                };
                *b = self.pte();
            }
            nr::UPDATE_VA_MAPPING_OTHERDOMAIN => *a = memory::window(4),
            nr::MMUEXT_OP => {
                let (command, arg1, arg2) = self.extended();
                SCRATCH.set(0, command);
                SCRATCH.set(1, arg1);
                SCRATCH.set(2, arg2);
                call.args = [SCRATCH.va(0), 1, 0, 0x7ff0, 0];
            }
            nr::UPDATE_DESCRIPTOR => {
                let index = self.below(512) * 8;
                *a = self.of(&[GDT.mfn(0), VICTIMS.mfn(3)]).addr() + index;
                if self.below(4) == 0 {
                    *a = self.frame().addr() + index;
                    self.spare_live(a);
                }
                *b = self.next();
            }
            nr::SET_GDT => {
                for index in 0..14 {
                    let frame = self.frame();
                    SCRATCH.set(index, frame.0);
                }
                *a = SCRATCH.va(0);
                *b = self.of(&[0, 1, 512, 513, 7168, 7169, !0]);
            }
            nr::MEMORY_OP => {
                *b = SCRATCH.va(0);
                let list = self.pointer();
                SCRATCH.set(0, list);
                let count = self.of(&[0u64, 1, 2, 1000, 1 << 40, !0]);
                SCRATCH.set(1, count);
                let order = self.of(&[0u64, 0, 0, 1, 9, 63]);
                SCRATCH.set(2, order);
                SCRATCH.set(3, 0x7ff0);
                // Frames that are given back for good would be missed: tables and strangers only.
                (512..2048).for_each(|index| SCRATCH.set(index, self.foreign));
                if *a & 63 == mem::DECREASE_RESERVATION {
                    SCRATCH.set(0, SCRATCH.va(1));
                    let frame = self.of(&[memory::root(), GDT.mfn(0), Mfn(self.foreign)]);
                    SCRATCH.set(512, frame.0);
                } else if *a & 63 == mem::POPULATE_PHYSMAP {
                    SCRATCH.set(1, 0);
                }
            }
            nr::EVENT_CHANNEL_OP | nr::EVENT_CHANNEL_OP_COMPAT => {
                *a = self.below(14);
                let port = self.of(&[0u64, 1, 3, 4, 5, 6, 100, 4095, 4096, 0xffff_ffff]);
                let second = self.word() << 32;
                SCRATCH.set(0, port | second);
                *b = SCRATCH.va(0);
                if port == u64::from(console::port()) {
                    SCRATCH.set(0, 0);
                }
            }
            nr::SCHED_OP => {
                if self.below(64) == 0 {
                    // Waits for the timer.
                    trap::arm();
                    *a = 1;
                    return;
                }
                SCRATCH.set(1, self.below(200));
                SCRATCH.set(2, 1);
            }
            nr::SET_TRAP_TABLE if *a == 0 => trap::repair_callbacks(),
            nr::SET_CALLBACKS => {
                (*a, *b) = (Self::outside(*a) | 1, Self::outside(*b));
            }
            nr::CALLBACK_OP => {
                // Without any event callback the next event is the end, and rightly so.
                SCRATCH.set(0, self.below(9) | self.below(3) << 16);
                let address = Self::outside(self.word()) | 1;
                SCRATCH.set(1, address);
                *a = self.below(3);
                *b = SCRATCH.va(0);
            }
            // A batch of nonsense would be many unshaped calls.
            nr::MULTICALL => {
                *a = match self.below(3) {
                    0 => self.hypervisor(),
                    1 => self.non_canonical(),
                    _ => memory::text() + self.below(4096),
                }
            }
            nr::SET_SEGMENT_BASE => *a = self.below(5),
            nr::SET_DEBUGREG => {
                *a = self.below(9);
                if *a < 4 {
                    *b = self.watched();
                }
            }
            _ => {}
        }
        if is_deadly(call.number, call.args[0]) {
            call.args[0] = 0;
            if call.number == nr::IRET {
                call.number = nr::XEN_VERSION;
            }
        }
        if call.number == nr::EVENT_CHANNEL_OP_COMPAT {
            // Its command lies in memory.
            call.number = nr::EVENT_CHANNEL_OP;
            call.args[0] = 99;
        }
    }

    /// An address in a live table becomes one in a victim.
    pub(super) fn spare_live(&mut self, address: &mut u64) {
        let frame = Mfn::of(*address);
        let is_victim = (0..31).any(|n| VICTIMS.mfn(n) == frame);
        if !is_victim && m2p::is_own(frame) && frame != GDT.mfn(0) {
            *address = VICTIMS.mfn(0).addr() + (*address & 0xfff);
        }
    }

    /// A request of `mmu_update`.
    pub(super) fn update(&mut self) -> (u64, u64) {
        let command = self.of(&[0, 0, 0, 2, 2, 3, 4, 5]);
        let index = self.below(512) * 8;
        let window = memory::window(4 + self.below(4) as usize);
        match self.below(8) {
            0 | 1 => (
                memory::entry_address(Level::L1, window) | command,
                self.pte(),
            ),
            // The live tables above, with what they must not take.
            2 => {
                let level = self.of(&[Level::L2, Level::L3, Level::L4]);
                let table = memory::table(level, window).unwrap_or(Mfn(0));
                let frame = self.of(&[
                    Mfn(self.foreign),
                    memory::root(),
                    Mfn(0xfee00),
                    Mfn(0x7_ffff_ffff),
                ]);
                let bad = if level == Level::L4 { 0 } else { Pte::PSE };
                let index = 300 + self.below(100);
                (table.addr() + index * 8, Pte::new(frame, RW | bad).0)
            }
            3 => {
                // The table of machine frames: with the truth where this kernel relies on it.
                if self.below(2) == 0 {
                    return (self.foreign << 12 | 1, self.word());
                }
                let frame = VICTIMS.mfn(self.below(31) as usize);
                (
                    frame.addr() | 1,
                    (memory::va_of(frame) - memory::VIRT_BASE) >> 12,
                )
            }
            _ => {
                let mut ptr = self.frame().addr() + index;
                self.spare_live(&mut ptr);
                (ptr | command, self.pte())
            }
        }
    }

    /// An operation of `mmuext_op`.
    pub(super) fn extended(&mut self) -> (u64, u64, u64) {
        let command = self.below(24);
        let mut arg1 = self.frame().0;
        let mut arg2 = self.frame().0;
        match command as u32 {
            ext::NEW_BASEPTR => {
                // Whatever became of a victim is not what this kernel could run on.
                arg1 = self.of(&[memory::root().0, self.foreign, 0xfe000, 0]);
            }
            ext::SET_LDT => {
                arg1 = self.pointer() & !0xfff;
                arg2 = self.of(&[0, 1, 512, 8192, 8193, !0]);
            }
            ext::CLEAR_PAGE | ext::COPY_PAGE => {
                let mut address = Mfn(arg1).addr();
                self.spare_live(&mut address);
                if Mfn(arg1).addr() >> 12 == arg1 {
                    arg1 = Mfn::of(address).0;
                }
            }
            ext::UNPIN_TABLE if arg1 == memory::root().0 => arg1 = 0,
            _ => {}
        }
        if self.below(16) == 0 {
            arg2 = self.word();
        }
        (command, arg1, arg2)
    }
}
