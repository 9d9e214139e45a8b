//! Privileged and odd instructions.

use super::{Call, Random};
use crate::attacks::PRIVILEGED;
use crate::memory::{self, SCRATCH, VICTIMS};
use crate::trap::{End, Regs, attempt};
use crate::verdict::Verdicts;

impl Random {
    pub(super) fn instruction(&mut self, verdicts: &mut Verdicts) {
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
        // A string from a port that is as long as its count says goes over all that this kernel has around
        // its scratch memory, the mask of its events included, and it would wait for its timer in vain.
        if matches!(code[..len], [.., 0x6c | 0x6d]) && SCRATCH.holds(regs.rdi) {
            regs.rdi = SCRATCH.va(1) + regs.rdi % 0x1000;
            regs.rcx = self.below(64);
        }
        // One to a port would go through all of its memory, a trap for each element: minutes, and nothing new.
        if matches!(code[..len], [.., 0x6e | 0x6f]) && regs.rsi >= memory::VIRT_BASE {
            regs.rcx = self.below(256);
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
}
