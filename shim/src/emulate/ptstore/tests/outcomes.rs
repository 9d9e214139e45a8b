//! How an emulated store ends when it is not simply done: the entry changes meanwhile, is not what
//! was compared with, or is another one.

use std::vec::Vec;

use super::super::{Outcome, execute};
use super::Word;
use crate::cpu::Regs;
use crate::emulate::address::SegmentBases;
use crate::emulate::regs::{After, CF, RF, TF, ZF};
use crate::emulate::{CodeSize, decode};

/// `lock cmpxchg %rdx, (%rdi)`
const CMPXCHG: [u8; 5] = [0xf0, 0x48, 0x0f, 0xb1, 0x17];

fn run(bytes: &[u8], regs: &mut Regs, entry: &mut Word<'_>) -> Outcome<()> {
    let decoded = decode(bytes, CodeSize::Bits64).expect("a store");
    let fault = regs.gpr(7);
    execute(&decoded, regs, SegmentBases::default(), fault, 0, entry)
}

#[test]
fn a_changing_entry_is_read_again() {
    let mut entry = 5;
    let mut regs = Regs {
        rflags: RF | 2,
        ..Default::default()
    };
    regs.set_gpr(7, 0x8000);
    let mut word = Word {
        at: &mut entry,
        interference: Vec::from([0x67]),
    };
    // lock btrq $6, (%rdi): the CPU set the dirty bit after we looked.
    let outcome = run(&[0xf0, 0x48, 0x0f, 0xba, 0x37, 0x06], &mut regs, &mut word);
    assert_eq!(outcome, Outcome::Done(After::Continue));
    assert_eq!((entry, regs.rflags, regs.rip), (0x27, CF | 2, 6));
}

#[test]
fn a_failed_comparison_loads_the_accumulator_and_stores_nothing() {
    let mut entry = 0x77;
    let mut regs = Regs {
        rflags: TF | ZF | 2,
        ..Default::default()
    };
    regs.set_gpr(7, 0x8000);
    regs.set_gpr(2, 1);
    let mut word = Word {
        at: &mut entry,
        interference: Vec::new(),
    };
    assert_eq!(
        run(&CMPXCHG, &mut regs, &mut word),
        Outcome::Done(After::DebugTrap)
    );
    assert_eq!((entry, regs.gpr(0), regs.rflags & ZF), (0x77, 0x77, 0));
}

#[test]
fn an_entry_that_never_rests_gives_up_without_effect() {
    let mut entry = 0;
    let mut regs = Regs {
        rflags: RF | 2,
        ..Default::default()
    };
    regs.set_gpr(7, 0x8000);
    let before = regs;
    let mut word = Word {
        at: &mut entry,
        interference: (1..100).collect(),
    };
    // xchg %rax, (%rdi)
    assert_eq!(
        run(&[0x48, 0x87, 0x07], &mut regs, &mut word),
        Outcome::Again
    );
    assert_eq!(regs, before);
}

#[test]
fn a_store_elsewhere_is_not_ours() {
    let mut entry = 0;
    let mut regs = Regs::default();
    let decoded = decode(&CMPXCHG, CodeSize::Bits64).expect("a store");
    let mut word = Word {
        at: &mut entry,
        interference: Vec::new(),
    };
    let outcome = execute(
        &decoded,
        &mut regs,
        SegmentBases::default(),
        8,
        0,
        &mut word,
    );
    assert_eq!(outcome, Outcome::NotHandled);
}
