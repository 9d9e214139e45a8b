//! Random attacks: hypercalls, privileged instructions and native page-table stores, with arguments
//! drawn from what is interesting.
//!
//! The kernel wants to live through all of them.  So what would merely kill itself is left out:
//! changing the mappings that it runs on, halting for good, closing its console.  Everything else of
//! its own is fair game: [`repair`](trap::repair) sets it right again.
//!
//! After each: registers that a hypercall must not touch are compared, and no word that comes back
//! may lie in the hypervisor's part of the address space.  The kernel's own addresses in there all
//! end in [`MARK`], so that others show.

use xen_abi::memory::op as mem;
use xen_abi::mmu::{Level, Pte, ext};
use xen_abi::start_info::StartInfo;
use xen_abi::{GuestVa, Mfn, Pfn, hypercall as nr};

use crate::attacks::{PRIVILEGED, first_foreign, is_deadly};
use crate::console::{self, say};
use crate::leak::first_word;
use crate::memory::{self, GDT, RO, RW, SCRATCH, VICTIMS};
use crate::oracle;
use crate::trap::{self, End, Regs, attempt, observed};
use crate::verdict::Verdicts;

/// Low bits of every address in the hypervisor's range that this kernel makes up.
const MARK: u64 = 0x5a5;
/// How many attacks are told of when something has gone wrong.
const LAST: usize = 8;
/// Words of scratch memory that are looked at after a call.
const LOOKED: usize = 40;
/// Attacks between two lines.
const REPORT: u64 = 10_000;
/// Frames at the end of memory that go out of and into the balloon.
const BALLOON: u64 = 128;

/// The state of the random attacks.
pub struct Random {
    state: u64,
    store_ring: u64,
    store_port: u32,
    foreign: u64,
    calls: u64,
    refused: u64,
    traps: u64,
    /// Attacks between two looks at the page tables.
    check: u64,
    /// The last attacks: kind and what they were about.
    last: [(&'static str, [u64; 8]); LAST],
    made: usize,
}

/// What an attack is.
#[derive(Clone, Copy)]
struct Call {
    number: u64,
    args: [u64; 5],
}

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64, check: u64, info: &StartInfo) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            store_ring: memory::va_of(Mfn(info.store_mfn)),
            store_port: info.store_evtchn,
            foreign: first_foreign(0x200),
            calls: 0,
            refused: 0,
            traps: 0,
            check,
            last: [("", [0; 8]); LAST],
            made: 0,
        }
    }

    /// Runs `count` attacks.
    pub fn run(&mut self, count: u64, verdicts: &mut Verdicts) {
        trap::repair();
        let mut wrong = verdicts.wrong();
        for n in 0..count {
            self.one(verdicts);
            if verdicts.wrong() != wrong {
                wrong = verdicts.wrong();
                self.tell(n);
            }
            if n % 16 == 0 {
                trap::repair();
            }
            if n % self.check == 0 {
                trap::arm();
                oracle::check(verdicts);
                self.balloon(verdicts);
            }
            if (n + 1) % REPORT == 0 || n + 1 == count {
                say!(
                    "hostile: {} of {count}, {} calls, {} refused, {} traps, {} events, {} wrong",
                    n + 1,
                    self.calls,
                    self.refused,
                    self.traps,
                    trap::events(),
                    verdicts.wrong()
                );
            }
        }
        trap::repair();
        memory::set_gdt();
    }

    /// Tells what came before something that is wrong.
    fn tell(&self, n: u64) {
        say!("hostile: at {n}; before that, the latest last:");
        for back in (0..LAST.min(self.made)).rev() {
            let (kind, words) = self.last[(self.made - 1 - back) % LAST];
            say!("hostile:   {kind} {words:x?}");
        }
    }

    fn remember(&mut self, kind: &'static str, words: [u64; 8]) {
        self.last[self.made % LAST] = (kind, words);
        self.made += 1;
    }

    fn one(&mut self, verdicts: &mut Verdicts) {
        match self.below(16) {
            0..=8 => {
                let call = self.call();
                self.make(call, verdicts);
            }
            9 => self.batch(verdicts),
            10..=12 => self.instruction(verdicts),
            13 => self.native_store(verdicts),
            14 => self.return_somewhere(),
            _ => self.scribble(),
        }
    }

    // --- numbers ---

    fn next(&mut self) -> u64 {
        // xorshift64*
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 33) % end
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        let index = self.below(list.len() as u64) as usize;
        list[index]
    }

    /// An address in the hypervisor's range.
    fn hypervisor(&mut self) -> u64 {
        let start = self.of(&[
            0xffff_8100_0000_0000u64,
            0xffff_8200_0000_0000,
            0xffff_82d0_4000_0000,
            0xffff_8300_0000_0000,
            0xffff_87ff_ffe0_0000,
        ]);
        (start + (self.below(512) << 12)) | MARK
    }

    fn non_canonical(&mut self) -> u64 {
        let low = self.next() & 0xffff_f000;
        self.of(&[0x8000_0000_0000u64, 0xffff_7fff_0000_0000, 1 << 62]) + low
    }

    /// An address that a call may write to without doing this kernel harm.
    fn pointer(&mut self) -> u64 {
        match self.below(16) {
            0..=9 => SCRATCH.va(0) + self.below(2000) * 8,
            10 => SCRATCH.va(3) + 4096 - self.below(64),
            11 => self.hypervisor(),
            12 => self.non_canonical(),
            13 => memory::text() + self.below(4096),
            14 => self.of(&[0, 8, 0x1000, !0, !7, 0xffff_8000_0000_0000]),
            _ => memory::va_of(memory::root()) + self.below(512) * 8,
        }
    }

    /// An address for a breakpoint: not in the text, where a handler could never get past it.
    fn watched(&mut self) -> u64 {
        match self.below(6) {
            0 => self.hypervisor(),
            1 => self.non_canonical(),
            2 => memory::stack_middle() - self.below(32) * 8,
            3 => VICTIMS.va(self.below(31) as usize),
            _ => SCRATCH.va(0) + self.below(64) * 8,
        }
    }

    /// Any frame number; of the kernel's own frames only victims and tables.
    fn frame(&mut self) -> Mfn {
        match self.below(16) {
            0..=7 => VICTIMS.mfn(self.below(31) as usize),
            8 => Mfn(self.foreign + self.below(64)),
            9 => memory::root(),
            10 => memory::table(Level::L1, SCRATCH.va(0)).unwrap_or(Mfn(0)),
            11 => memory::table(Level::L2, SCRATCH.va(0)).unwrap_or(Mfn(0)),
            12 => GDT.mfn(0),
            13 => Mfn(self.of(&[0, 1, 0xfe000, 0xfe100, 0xfeffc, 0xfefff, 0xfee00])),
            14 => Mfn(self.next() >> self.below(64)),
            _ => memory::table_entry(memory::root(), 256 + self.below(16) as usize).frame(),
        }
    }

    fn flags(&mut self) -> u64 {
        match self.below(8) {
            0..=2 => RW,
            3 | 4 => RO,
            5 => self.next() & 0xfff,
            6 => RW | self.next() & 0x7ff0_0000_0000_0000,
            _ => RW & !Pte::USER | self.next() & (Pte::NX | Pte::GLOBAL | Pte::AVAIL),
        }
    }

    fn pte(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => self.next() & !Pte::PRESENT,
            _ => {
                let flags = self.flags();
                self.frame().addr() | flags
            }
        }
    }

    /// Anything.
    fn word(&mut self) -> u64 {
        match self.below(12) {
            0..=3 => self.below(64),
            4 => 1 << self.below(64),
            5 => (1u64 << self.below(64)).wrapping_sub(1),
            6 => self.pointer(),
            7 => self.frame().0,
            8 => self.frame().addr(),
            9 => self.of(&[0x7ff0u64, 0x7ff1, 0x7ff2, 0x7ff4, 0x7fff, 0, 1]),
            10 => self.hypervisor(),
            _ => self.next(),
        }
    }

    // --- hypercalls ---

    /// A hypercall, with what it points to in scratch page 0.
    fn call(&mut self) -> Call {
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
    fn shape(&mut self, call: &mut Call) {
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
            nr::SET_CALLBACKS => *a |= 1,
            nr::CALLBACK_OP => {
                // Without any event callback the next event is the end, and rightly so.
                SCRATCH.set(0, self.below(9) | self.below(3) << 16);
                let address = self.word() | 1;
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
    fn spare_live(&mut self, address: &mut u64) {
        let frame = Mfn::of(*address);
        let is_victim = (0..31).any(|n| VICTIMS.mfn(n) == frame);
        if !is_victim && memory::is_own(frame) && frame != GDT.mfn(0) {
            *address = VICTIMS.mfn(0).addr() + (*address & 0xfff);
        }
    }

    /// A request of `mmu_update`.
    fn update(&mut self) -> (u64, u64) {
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
    fn extended(&mut self) -> (u64, u64, u64) {
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

    /// Makes the call and looks at what came back.
    fn make(&mut self, call: Call, verdicts: &mut Verdicts) {
        let mut regs = Regs::call(call.number, call.args);
        let before = regs;
        let [a, b, c, d, _] = call.args;
        let words = [0, 1, 2].map(|index| SCRATCH.get(index));
        self.remember(
            "call",
            [call.number, a, b, c, d, words[0], words[1], words[2]],
        );
        let uppers: [u64; LOOKED] = core::array::from_fn(|index| SCRATCH.get(index) >> 32);
        let end = observed(&mut regs);
        self.calls += 1;
        match end {
            End::Trap(..) => self.traps += 1,
            End::Done => {
                self.refused += u64::from((regs.rax as i64) < 0);
                self.look(regs.rax, call, verdicts);
                for arg in [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8] {
                    if !call.args.contains(&arg) {
                        self.look(arg, call, verdicts);
                    }
                }
                verdicts.quietly(
                    format_args!("random: call {} changed registers", call.number),
                    regs.kept(&before),
                );
            }
        }
        if matches!(
            call.number,
            nr::SET_TRAP_TABLE | nr::CALLBACK_OP | nr::SET_CALLBACKS | nr::NMI_OP | nr::MULTICALL
        ) {
            trap::repair();
        }
        for (index, upper) in uppers.into_iter().enumerate() {
            // A result of 32 bits leaves the other half as it was.
            let word = SCRATCH.get(index);
            if word >> 32 != upper {
                self.look(word, call, verdicts);
            }
        }
        self.put_back();
    }

    /// No word may be an address of the hypervisor's.
    fn look(&self, word: u64, call: Call, verdicts: &mut Verdicts) {
        let is_theirs = (0xffff_8100_0000_0000..0xffff_8800_0000_0000).contains(&word)
            && word & 0xfff != MARK
            && word & 0xfff != 0;
        verdicts.quietly(
            format_args!(
                "random: call {} {:x?} gave {word:#x}",
                call.number, call.args
            ),
            !is_theirs,
        );
    }

    /// A victim that is writable nowhere is made so again, if it is in no other use.
    fn put_back(&mut self) {
        if self.below(8) == 0 {
            let n = self.below(31) as usize;
            let frame = VICTIMS.mfn(n);
            let window = memory::window(4 + self.below(4) as usize);
            memory::map(window, Mfn(0), 0);
            memory::map(VICTIMS.va(n), frame, RW);
        }
    }

    /// Several calls at once.
    fn batch(&mut self, verdicts: &mut Verdicts) {
        // Each call would overwrite the arguments of the one before, so one with arguments of its
        // own and some without.
        let call = self.call();
        if matches!(
            call.number,
            nr::SET_TRAP_TABLE | nr::MULTICALL | nr::SCHED_OP
        ) {
            return;
        }
        let list = 1024;
        let entry = |n: usize, op: u64, args: [u64; 5]| {
            SCRATCH.set(list + n * 8, op);
            SCRATCH.set(list + n * 8 + 1, 0);
            for (index, arg) in args.into_iter().enumerate() {
                SCRATCH.set(list + n * 8 + 2 + index, arg);
            }
            SCRATCH.set(list + n * 8 + 7, 0);
        };
        entry(0, call.number, call.args);
        entry(1, nr::FPU_TASKSWITCH, [0; 5]);
        entry(2, nr::MULTICALL, [SCRATCH.va(2), 3, 0, 0, 0]);
        entry(3, nr::XEN_VERSION, [0; 5]);
        let count = self.of(&[1, 2, 3, 4]);
        self.make(
            Call {
                number: nr::MULTICALL,
                args: [SCRATCH.va(2), count, 0, 0, 0],
            },
            verdicts,
        );
        if matches!(
            call.number,
            nr::CALLBACK_OP | nr::SET_CALLBACKS | nr::NMI_OP
        ) {
            trap::repair();
        }
    }

    // --- instructions ---

    fn instruction(&mut self, verdicts: &mut Verdicts) {
        const EMULATED: [&[u8]; 30] = [
            &[0x0f, 0x32],
            &[0x0f, 0x30],
            &[0xec],
            &[0xee],
            &[0x66, 0xed],
            &[0xef],
            &[0xe4, 0x71],
            &[0xf3, 0x6e],
            &[0xf2, 0x66, 0x6d],
            &[0x6c],
            &[0x0f, 0x20, 0xc0],
            &[0x0f, 0x20, 0xd0],
            &[0x0f, 0x20, 0xd8],
            &[0x0f, 0x20, 0xe0],
            &[0x0f, 0x22, 0xc0],
            &[0x0f, 0x22, 0xe0],
            &[0x0f, 0x21, 0xf0],
            &[0x0f, 0x23, 0xf8],
            &[0x0f, 0x23, 0xc0],
            &[0x0f, 0x06],
            &[0x0f, 0x09],
            &[0x0f, 0xa2],
            &[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2],
            &[0x0f, 0x01, 0xd1],
            &[0x0f, 0x01, 0xd0],
            &[0xfa],
            &[0xfb],
            &[0xcd, 0x80],
            &[0x0f, 0x00, 0xc0],
            &[0x9d],
        ];
        let mut code = [0; 24];
        let mut len = 0;
        let mut put = |bytes: &[u8]| {
            code[len..len + bytes.len()].copy_from_slice(bytes);
            len += bytes.len();
        };
        // Prefixes that mean nothing, or something else.
        for _ in 0..self.below(3) {
            let prefix = self.of(&[0x66, 0x2e, 0x3e, 0x26, 0x64, 0x65, 0x48, 0x67]);
            put(&[prefix]);
        }
        match self.below(8) {
            0..=4 => {
                let insn = self.of(&EMULATED);
                put(insn);
            }
            5 | 6 => {
                let (_, insn) = self.of(&PRIVILEGED);
                put(insn);
            }
            _ => {
                // Selector loads.
                let modrm = self.of(&[0xc0, 0xd8, 0xe0, 0xe8]);
                put(&[0x8e, modrm]);
            }
        }
        let mut regs = Regs::marked();
        (regs.rax, regs.rdx) = (self.word(), self.word());
        (regs.rsi, regs.rdi) = (self.pointer(), self.pointer());
        regs.rcx = match self.below(4) {
            0 => self.of(&[
                0xc000_0080u64,
                0xc000_0082,
                0xc000_0100,
                0x4000_0000,
                0x1b,
                0x277,
                0x140,
            ]),
            1 => self.below(0x2000),
            2 => self.word(),
            _ => 2,
        };
        if regs.rcx == 0x4000_0000 {
            // The page is written where eax says: a victim.
            regs.rax = VICTIMS.mfn(5).addr();
            regs.rdx = 0;
        }
        if code[..len].ends_with(&[0x0f, 0x23, 0xc0]) {
            regs.rax = self.watched();
        }
        // A segment base moves what rsi and rdi say; writes go to scratch or fault all the same.
        let flags = 0x202 | self.of(&[0u64, 0x400, 0x4000, 0x40000, 0x3000]);
        memory::set_stack(0, flags);
        let bytes = |from: usize| u64::from_le_bytes(core::array::from_fn(|n| code[from + n]));
        self.remember(
            "code",
            [
                bytes(0),
                bytes(8),
                regs.rax,
                regs.rcx,
                regs.rdx,
                regs.rsi,
                regs.rdi,
                flags,
            ],
        );
        let before = regs;
        let end = attempt(&code[..len], &mut regs);
        self.traps += u64::from(end != End::Done);
        let call = Call {
            number: 1000,
            args: [
                u64::from_le_bytes([
                    code[0], code[1], code[2], code[3], code[4], code[5], code[6], code[7],
                ]),
                regs.rcx,
                0,
                0,
                0,
            ],
        };
        // CR2 says where the last fault was, which may have been anywhere.
        let shows_fault = code[..len].ends_with(&[0x0f, 0x20, 0xd0]);
        if end == End::Done && regs.rsp == memory::stack_middle() && !shows_fault {
            // A narrow result leaves the other part as it was.
            for (word, old) in [
                (regs.rax, before.rax),
                (regs.rbx, before.rbx),
                (regs.rdx, before.rdx),
            ] {
                if word >> 32 != old >> 32 {
                    self.look(word, call, verdicts);
                }
            }
        }
    }

    /// A store to a live table: of the lowest level to an entry that is free, of the others to any.
    fn native_store(&mut self, verdicts: &mut Verdicts) {
        const STORES: [&[u8]; 14] = [
            &[0x48, 0x89, 0x07],
            &[0x89, 0x07],
            &[0x66, 0x89, 0x07],
            &[0x88, 0x07],
            &[0x48, 0x87, 0x07],
            &[0xf0, 0x48, 0x0f, 0xb1, 0x0f],
            &[0xf0, 0x48, 0x21, 0x07],
            &[0xf0, 0x48, 0x09, 0x07],
            &[0xf0, 0x48, 0x31, 0x07],
            &[0xf0, 0x48, 0x0f, 0xc1, 0x07],
            &[0xf0, 0x48, 0x0f, 0xb3, 0x07],
            &[0xf0, 0x48, 0x0f, 0xab, 0x07],
            &[0x48, 0xab],
            &[0xf0, 0x48, 0xff, 0x07],
        ];
        let window = memory::window(4 + self.below(4) as usize);
        let level = self.of(&[
            Level::L1,
            Level::L1,
            Level::L1,
            Level::L2,
            Level::L3,
            Level::L4,
        ]);
        let table = memory::table(level, window).unwrap_or(Mfn(0));
        let index = if level == Level::L1 {
            Level::L1.index(GuestVa(window)) as u64
        } else {
            self.below(512)
        };
        let insn = self.of(&STORES);
        let mut regs = Regs::marked();
        regs.rdi = memory::va_of(table) + index * 8;
        let is_bit = matches!(insn, [0xf0, 0x48, 0x0f, 0xb3 | 0xab, ..]);
        regs.rax = if is_bit { self.below(64) } else { self.pte() };
        regs.rcx = self.pte();
        let name = insn
            .iter()
            .fold(0, |name, &byte| name << 8 | u64::from(byte));
        self.remember("store", [name, regs.rdi, regs.rax, regs.rcx, 0, 0, 0, 0]);
        let end = attempt(insn, &mut regs);
        self.traps += u64::from(end != End::Done);
        verdicts.quietly(
            format_args!("random: a store to a table of {level:?} went through"),
            level == Level::L1 || end != End::Done,
        );
    }

    /// `iret` with a frame that is partly wild.
    fn return_somewhere(&mut self) {
        trap::repair_callbacks();
        let rip = match self.below(4) {
            0 => self.pointer(),
            _ => trap::done_address(),
        };
        // Without a user page table a return to user mode is this kernel's own end.
        let cs = self.of(&[
            0xe030u64, 0xe008, 0xe010, 0, 8, 0x10, 0xe028, 0xe038, 0xfff8,
        ]) & !3;
        let ss = self.of(&[0xe02bu64, 0, 0xe010, 0xe033, 8, 0xffff]);
        let rflags = self.next() & self.of(&[0, 0x200, 0x3fffff, !0]);
        let flags = self.of(&[0u64, 0x100, !0]);
        let (rax, r11, rcx) = (self.word(), self.word(), self.word());
        let frame = [
            rax,
            r11,
            rcx,
            flags,
            rip,
            cs,
            rflags,
            memory::stack_middle(),
            ss,
        ];
        for (n, value) in frame.into_iter().enumerate() {
            memory::set_stack(n, value);
        }
        let mut regs = Regs::marked();
        regs.rax = nr::IRET;
        self.remember("iret", [rax, rcx, flags, rip, cs, rflags, ss, 0]);
        self.traps += u64::from(observed(&mut regs) != End::Done);
    }

    /// Nonsense in the ring that is shared with the store.
    fn scribble(&mut self) {
        for _ in 0..8 {
            let offset = self.of(&[0, 16, 2048, 2052, 2056, 2060, 2064, 2068]) + self.below(8) * 4;
            let value = match self.below(3) {
                0 => self.below(2048),
                1 => self.below(24),
                _ => self.next(),
            } as u32;
            // SAFETY: inside the ring's page, which is mapped for good; its other end reads it
            // as it comes.
            unsafe { ((self.store_ring + offset) as *mut u32).write_volatile(value) };
        }
        let port = self.store_port;
        trap::hypercall(nr::EVENT_CHANNEL_OP, [4, &raw const port as u64, 0, 0, 0]);
    }

    /// Some frames out and in again: what comes must be clear.
    fn balloon(&mut self, verdicts: &mut Verdicts) {
        let first = memory::nr_pages() - BALLOON;
        let count = 1 + self.below(16);
        let window = memory::window(3);
        for n in 0..count {
            let frame = memory::mfn(Pfn(first + n));
            memory::map(window, frame, RW);
            // SAFETY: a frame of this kernel's, mapped above.
            unsafe { (window as *mut u64).write_volatile(!0) };
            memory::map(window, Mfn(0), 0);
            SCRATCH.set(512 + n as usize, frame.0);
        }
        let args = |list: u64| {
            SCRATCH.set(0, list);
            SCRATCH.set(1, count);
            SCRATCH.set(2, 0);
            SCRATCH.set(3, 0x7ff0);
        };
        args(SCRATCH.va(1));
        self.remember("balloon", [count, 0, 0, 0, 0, 0, 0, 0]);
        let out = trap::hypercall(
            nr::MEMORY_OP,
            [mem::DECREASE_RESERVATION, SCRATCH.va(0), 0, 0, 0],
        );
        (0..count).for_each(|n| SCRATCH.set(512 + n as usize, first + n));
        let back = trap::hypercall(
            nr::MEMORY_OP,
            [mem::POPULATE_PHYSMAP, SCRATCH.va(0), 0, 0, 0],
        );
        verdicts.quietly(
            format_args!("random: {out} of {count} frames out, {back} back"),
            out == count && back == count,
        );
        for n in 0..back.min(count) {
            let frame = Mfn(SCRATCH.get(512 + n as usize));
            memory::set_mfn(Pfn(first + n), frame);
            let mapped = memory::map(window, frame, RO) == 0;
            verdicts.quietly(
                format_args!("random: frame {frame:?} came back unclear"),
                mapped && first_word(window, 0).is_none(),
            );
            memory::map(window, Mfn(0), 0);
        }
    }
}
