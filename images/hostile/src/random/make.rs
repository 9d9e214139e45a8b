//! Carrying hypercalls out, one by one or in batches, and looking at what came back.

use xen_abi::{Mfn, hypercall as nr};

use super::{Call, LOOKED, MARK, Random};
use crate::memory::{self, RW, SCRATCH, VICTIMS};
use crate::trap::{self, End, Regs, observed};
use crate::verdict::Verdicts;

impl Random {
    /// Makes the call and looks at what came back.
    pub(super) fn make(&mut self, call: Call, verdicts: &mut Verdicts) {
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
    pub(super) fn look(&self, word: u64, call: Call, verdicts: &mut Verdicts) {
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
    pub(super) fn put_back(&mut self) {
        if self.below(8) == 0 {
            let n = self.below(31) as usize;
            let frame = VICTIMS.mfn(n);
            let window = memory::window(4 + self.below(4) as usize);
            memory::map(window, Mfn(0), 0);
            memory::map(VICTIMS.va(n), frame, RW);
        }
    }

    /// Several calls at once.
    pub(super) fn batch(&mut self, verdicts: &mut Verdicts) {
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
}
