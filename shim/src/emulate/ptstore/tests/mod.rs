//! Emulated stores against the CPU that runs the test: the same bytes on the same registers.

#![expect(
    unsafe_code,
    reason = "decoded stores are compared with what the processor does"
)]

mod outcomes;

use std::vec::Vec;

use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest, sample::select};

use super::super::address::{SegmentBases, store_target, string_source};
use super::super::flags::ARITHMETIC;
use super::super::insn::Gpr;
use super::super::regs::{After, DF, RAX, RCX, RDI, RDX, RSI};
use super::super::{CodeSize, Decoded, decode};
use super::{Entry, Insn, NotAnEntry, Outcome, Source, StoreOp, execute, plan};
use crate::cpu::Regs;

/// Registers that the machine code under test may use; the compiler keeps the others.
const USABLE: [u8; 7] = [RAX, RCX, RDX, RSI, RDI, 8, 9];
const WORDS: usize = 64;

/// Executable memory for one instruction and a return.
struct Code(*mut u8);

impl Code {
    fn new(bytes: &[u8]) -> Self {
        // SAFETY: a fresh anonymous mapping touches no memory of anybody else.
        let page = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(core::ptr::null_mut(), 4096, protection, flags, -1, 0)
        };
        assert_ne!(page, libc::MAP_FAILED);
        let page = page.cast::<u8>();
        // SAFETY: the page is ours and `bytes` is far shorter than it.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), page, bytes.len());
            page.add(bytes.len()).write(0xc3);
        }
        Self(page)
    }

    /// Runs the instruction with these registers and arithmetic flags.
    fn run(&self, regs: &mut Regs) {
        let mut g = regs.gprs();
        let mut flags = regs.rflags;
        // SAFETY: the code is one decoded store that only uses registers listed here; its address
        // is within the test's own buffers.  The direction flag is cleared again, and the call
        // leaves the stack as it was.
        unsafe {
            core::arch::asm!(
                "push {flags}", "popfq", "call {code}", "pushfq", "pop {flags}", "cld",
                code = in(reg) self.0,
                flags = inout(reg) flags,
                inout("rax") g[0], inout("rcx") g[1], inout("rdx") g[2], inout("rsi") g[6],
                inout("rdi") g[7], inout("r8") g[8], inout("r9") g[9],
            );
        }
        *regs = regs.with_gprs(g);
        regs.rflags = flags;
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nothing points into it any more.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

/// Memory as the emulator reaches it: one entry of the buffer.
struct Word<'a> {
    at: &'a mut u64,
    /// Changes that others make before the next stores.
    interference: Vec<u64>,
}

impl Entry for Word<'_> {
    type Refused = ();

    fn load(&mut self) -> u64 {
        *self.at
    }

    fn store(&mut self, expected: Option<u64>, new: u64) -> Result<bool, ()> {
        if let Some(value) = self.interference.pop() {
            *self.at = value;
        }
        let matches = expected.is_none_or(|expected| expected == *self.at);
        if matches {
            *self.at = new;
        }
        Ok(matches)
    }
}

fn read_bytes(memory: &[u64], base: u64, address: u64, len: u8) -> u64 {
    (0..u64::from(len)).fold(0, |value, n| {
        let at = (address + n - base) as usize;
        value | (memory[at / 8] >> (8 * (at % 8)) & 0xff) << (8 * n)
    })
}

/// Emulates until the instruction is over, as the fault handler would.
fn emulate(decoded: &Decoded, regs: &mut Regs, memory: &mut [u64], base: u64) {
    let start = regs.rip;
    while regs.rip == start {
        let bases = SegmentBases::default();
        let target = store_target(decoded, regs, bases).expect("a store");
        let source =
            string_source(decoded, regs, bases).map_or(0, |from| read_bytes(memory, base, from, 8));
        // A repeat count of zero may leave the pointers anywhere.
        let slot = (target.wrapping_sub(base) / 8) as usize;
        let mut word = Word {
            at: &mut memory[slot],
            interference: Vec::new(),
        };
        let outcome = execute(decoded, regs, bases, target, source, &mut word);
        assert_eq!(outcome, Outcome::Done(After::Continue));
    }
}

/// The bytes of a store to `[rdi]`, or of a string instruction.
fn store() -> impl Strategy<Value = Vec<u8>> {
    let alu = select(&[0x00_u8, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30][..]);
    let immediate = proptest::array::uniform4(any::<u8>());
    let reg = select(&[0_u8, 1, 2, 4, 5, 6, 7][..]);
    let wide = 0_u8..2;
    // An opcode, its ModRM extension if it has one, and the number of immediate bytes.
    let one = prop_oneof![
        (alu.clone(), wide.clone()).prop_map(|(op, w)| (Vec::from([op | w]), None, 0)),
        (alu, wide.clone()).prop_map(|(op, w)| (Vec::from([0x80 | w]), Some(op >> 3), 1 + 3 * w)),
        select(&[0_u8, 8, 16, 24, 32, 40, 48][..]).prop_map(|op| (
            Vec::from([0x83]),
            Some(op >> 3),
            1
        )),
        (select(&[0x86_u8, 0x88][..]), wide.clone()).prop_map(|(op, w)| (
            Vec::from([op | w]),
            None,
            0
        )),
        wide.clone()
            .prop_map(|w| (Vec::from([0xc6 | w]), Some(0), 1 + 3 * w)),
        (select(&[0xf6_u8, 0xfe][..]), 0_u8..2, wide.clone()).prop_map(|(op, ext, w)| {
            (
                Vec::from([op | w]),
                Some(if op == 0xf6 { ext + 2 } else { ext }),
                0,
            )
        }),
        (select(&[0xb0_u8, 0xc0][..]), wide.clone()).prop_map(|(op, w)| (
            Vec::from([0x0f, op | w]),
            None,
            0
        )),
        select(&[0xab_u8, 0xb3, 0xbb, 0xc3][..]).prop_map(|op| (Vec::from([0x0f, op]), None, 0)),
        (5_u8..8).prop_map(|ext| (Vec::from([0x0f, 0xba]), Some(ext), 1)),
        (select(&[0xa4_u8, 0xaa][..]), wide).prop_map(|(op, w)| (Vec::from([op | w]), Some(99), 0)),
    ];
    const SIZES: &[&[u8]] = &[&[], &[0x66], &[0x48], &[0x40], &[0x4c], &[0x44]];
    const PREFIXES: &[&[u8]] = &[&[], &[0xf0], &[0xf3], &[0xf2]];
    (one, reg, immediate, select(SIZES), select(PREFIXES)).prop_map(
        |((opcode, extension, immediates), reg, immediate, size, prefix)| {
            let word = size == [0x66];
            let immediates = if word && immediates == 4 {
                2
            } else {
                immediates
            };
            let mut bytes = [prefix, size, &opcode].concat();
            if extension != Some(99) {
                bytes.push(extension.unwrap_or(reg) << 3 | 7);
                bytes.extend(&immediate[..usize::from(immediates)]);
            }
            bytes
        },
    )
}

/// The register operand of a store.
fn register(op: StoreOp) -> Option<Gpr> {
    match op {
        StoreOp::Mov(Source::Reg(reg))
        | StoreOp::Alu(_, Source::Reg(reg))
        | StoreOp::Bit(_, Source::Reg(reg))
        | StoreOp::Xchg(reg)
        | StoreOp::Cmpxchg(reg)
        | StoreOp::Xadd(reg) => Some(reg),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(10_000),
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn stores_do_what_the_cpu_does(
        bytes in store(),
        values in proptest::array::uniform7(any::<u64>()),
        contents in proptest::array::uniform4(any::<u64>()),
        same in any::<bool>(),
        offset in 0_u64..8,
        flags in any::<u64>(),
        count in 0_u64..4,
    ) {
        let Ok(decoded) = decode(&bytes, CodeSize::Bits64) else { return Ok(()) };
        prop_assert_eq!(usize::from(decoded.len), bytes.len());
        let mut memory: Vec<u64> = (0..WORDS).map(|n| contents[n % 4].rotate_left(n as u32)).collect();
        let base = memory.as_mut_ptr() as u64;
        let mut regs = Regs { rip: 0x1000, ..Default::default() };
        for (n, value) in USABLE.into_iter().zip(values) {
            regs.set_gpr(n, value);
        }
        let Insn::Store(store) = decoded.insn else { return Ok(()) };
        if register(store.op).is_some_and(|reg| !USABLE.contains(&reg.n)) {
            return Ok(());
        }
        let aligned = base + 8 * 32 + (offset & !u64::from(store.width.bytes() - 1));
        regs.set_gpr(RDI, aligned);
        let interrupts = 1 << 9 | 2;
        let mut wanted = ARITHMETIC;
        match store.op {
            StoreOp::Stos(_) | StoreOp::Movs(_) => {
                wanted |= DF;
                regs.set_gpr(RSI, base + 8 * 16);
                regs.set_gpr(RCX, count);
            }
            StoreOp::Bit(_, Source::Reg(reg)) if reg.n != RDI => {
                let near = regs.gpr(reg.n) as i8 as u64;
                regs.set_gpr(reg.n, near);
            }
            StoreOp::Bit(_, Source::Reg(_)) => return Ok(()),
            StoreOp::Cmpxchg(_) if same => {
                regs.set_gpr(RAX, read_bytes(&memory, base, aligned, store.width.bytes()));
            }
            _ => {}
        }
        regs.rflags = flags & wanted | interrupts;

        let (mut ours, before) = (regs, memory.clone());
        let mut emulated = before.clone();
        emulate(&decoded, &mut ours, &mut emulated, base);
        Code::new(&bytes).run(&mut regs);
        prop_assert_eq!(ours.rip, 0x1000 + bytes.len() as u64);
        regs.rip = ours.rip;
        let visible = ARITHMETIC | DF;
        prop_assert_eq!(ours.rflags & visible, regs.rflags & visible, "{:x?}", decoded);
        prop_assert_eq!(ours.gprs(), regs.gprs(), "{:x?}", decoded);
        prop_assert!(emulated == memory, "{decoded:x?}: {before:x?} {emulated:x?} {memory:x?}");
    }

    #[test]
    fn a_store_never_leaves_its_entry(
        bytes in store(),
        current in any::<u64>(),
        target in any::<u64>(),
        value in any::<u64>(),
    ) {
        let Ok(decoded) = decode(&bytes, CodeSize::Bits64) else { return Ok(()) };
        let Insn::Store(store) = decoded.insn else { return Ok(()) };
        let regs = Regs::default().with_gprs([value; 16]);
        let field = store.width.mask().checked_shl(8 * (target as u32 & 7)).unwrap_or(0);
        match plan(&decoded, &regs, target, current, value) {
            Ok(plan) => prop_assert_eq!((plan.new ^ current) & !field, 0),
            Err(NotAnEntry) => prop_assert!(target % 8 + u64::from(store.width.bytes()) > 8),
        }
    }
}
