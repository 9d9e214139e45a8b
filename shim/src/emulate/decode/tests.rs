//! The decoder against `iced-x86`, an independent one.

use std::vec::Vec;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::{collection::vec, prop_assert_eq, proptest, sample::select};

use super::super::address::{SegmentBases, effective, ins_target, string_source};
use super::super::insn::{
    Alu, BitOp, Gpr, Insn, IoPort, Refused, Source, Store, StoreOp, Strings, Unary, Width,
};
use super::super::test_support::TestRegs;
use super::{CodeSize, DecodeError, Decoded, decode};

const RIP: u64 = 0xffff_ffff_8123_4560;
const BASES: SegmentBases = SegmentBases {
    fs: 0x7f00_0000_1000,
    gs: 0xffff_8880_0000_0000,
};

fn registers() -> TestRegs {
    let gprs = core::array::from_fn(|n| (n as u64 + 1).wrapping_mul(0x0123_4567_89ab_cdef));
    TestRegs {
        gprs,
        rip: RIP,
        rflags: 2,
    }
}

fn iced(bytes: &[u8], size: CodeSize) -> Instruction {
    let bits = if size == CodeSize::Bits64 { 64 } else { 32 };
    Decoder::with_ip(bits, bytes, RIP, DecoderOptions::NONE).decode()
}

/// The linear address of a memory operand according to the other decoder.
fn address(of: &Instruction, operand: u32) -> u64 {
    let regs = registers();
    of.virtual_address(operand, 0, |register, _, _| {
        Some(match register {
            Register::FS => BASES.fs,
            Register::GS => BASES.gs,
            _ if register.is_segment_register() => 0,
            _ if register.size() == 4 => regs.gprs[register.number()] & 0xffff_ffff,
            _ => regs.gprs[register.number()],
        })
    })
    .expect("a memory operand")
}

fn width(bytes: usize) -> Width {
    match bytes {
        1 => Width::W8,
        2 => Width::W16,
        4 => Width::W32,
        8 => Width::W64,
        _ => panic!("{bytes} bytes wide"),
    }
}

fn gpr(register: Register) -> Gpr {
    let high = matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    );
    Gpr {
        n: register.full_register().number() as u8,
        high,
    }
}

fn source(of: &Instruction, operand: u32) -> Source {
    match of.op_kind(operand) {
        OpKind::Register => Source::Reg(gpr(of.op_register(operand))),
        OpKind::Immediate8 => Source::Imm(of.immediate8() as i8 as u64),
        OpKind::Immediate16 => Source::Imm(of.immediate16() as i16 as u64),
        OpKind::Immediate32 => Source::Imm(of.immediate32() as i32 as u64),
        _ => Source::Imm(of.immediate(operand)),
    }
}

fn register(of: &Instruction, operand: u32) -> u8 {
    of.op_register(operand).number() as u8
}

fn strings(of: &Instruction) -> Strings {
    let addr32 = (0..2).any(|n| {
        matches!(
            of.op_kind(n),
            OpKind::MemoryESEDI | OpKind::MemorySegESI | OpKind::MemorySegEDI
        )
    });
    Strings {
        width: width(of.memory_size().size()),
        rep: of.has_rep_prefix() || of.has_repne_prefix(),
        addr32,
        segment: None,
    }
}

/// The store, apart from its address, that the other decoder sees.
fn store_op(of: &Instruction) -> Option<StoreOp> {
    let reg = || gpr(of.op_register(1));
    let alu = |op| Some(StoreOp::Alu(op, source(of, 1)));
    match of.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => Some(StoreOp::Mov(source(of, 1))),
        // The memory operand comes second in one spelling.
        Mnemonic::Xchg => Some(StoreOp::Xchg(reg())),
        Mnemonic::Cmpxchg => Some(StoreOp::Cmpxchg(reg())),
        Mnemonic::Xadd => Some(StoreOp::Xadd(reg())),
        Mnemonic::Add => alu(Alu::Add),
        Mnemonic::Or => alu(Alu::Or),
        Mnemonic::Adc => alu(Alu::Adc),
        Mnemonic::Sbb => alu(Alu::Sbb),
        Mnemonic::And => alu(Alu::And),
        Mnemonic::Sub => alu(Alu::Sub),
        Mnemonic::Xor => alu(Alu::Xor),
        Mnemonic::Inc => Some(StoreOp::Unary(Unary::Inc)),
        Mnemonic::Dec => Some(StoreOp::Unary(Unary::Dec)),
        Mnemonic::Not => Some(StoreOp::Unary(Unary::Not)),
        Mnemonic::Neg => Some(StoreOp::Unary(Unary::Neg)),
        Mnemonic::Bts => Some(StoreOp::Bit(BitOp::Set, source(of, 1))),
        Mnemonic::Btr => Some(StoreOp::Bit(BitOp::Reset, source(of, 1))),
        Mnemonic::Btc => Some(StoreOp::Bit(BitOp::Complement, source(of, 1))),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            Some(StoreOp::Stos(strings(of)))
        }
        // One mnemonic is shared with SSE.
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq
            if of.op_kind(1) != OpKind::Register =>
        {
            Some(StoreOp::Movs(strings(of)))
        }
        _ => None,
    }
}

fn check_store(decoded: Decoded, store: Store, other: &Instruction) {
    assert_eq!(width(other.memory_size().size()), store.width);
    assert_eq!(
        effective(&store.mem, decoded.len, &registers(), BASES),
        address(other, 0)
    );
    let op = match store.op {
        StoreOp::Movs(strings) => {
            let from = string_source(&decoded, &registers(), BASES);
            assert_eq!(from, Some(address(other, 1)));
            StoreOp::Movs(Strings {
                segment: None,
                ..strings
            })
        }
        StoreOp::Stos(strings) => StoreOp::Stos(Strings {
            segment: None,
            ..strings
        }),
        op => op,
    };
    assert_eq!(Some(op), store_op(other));
}

fn refused(mnemonic: Mnemonic) -> Option<Refused> {
    Some(match mnemonic {
        Mnemonic::Hlt => Refused::Hlt,
        Mnemonic::Invd => Refused::Invd,
        Mnemonic::Invlpg => Refused::Invlpg,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => Refused::Iret,
        Mnemonic::Lgdt => Refused::Lgdt,
        Mnemonic::Lidt => Refused::Lidt,
        Mnemonic::Lldt => Refused::Lldt,
        Mnemonic::Lmsw => Refused::Lmsw,
        Mnemonic::Ltr => Refused::Ltr,
        Mnemonic::Monitor => Refused::Monitor,
        Mnemonic::Mwait => Refused::Mwait,
        Mnemonic::Rdpmc => Refused::Rdpmc,
        Mnemonic::Swapgs => Refused::Swapgs,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => Refused::Sysexit,
        Mnemonic::Sysret | Mnemonic::Sysretq => Refused::Sysret,
        Mnemonic::Vmcall => Refused::Vmcall,
        Mnemonic::Vmmcall => Refused::Vmmcall,
        _ => return None,
    })
}

/// Everything but stores, as the other decoder sees it.
fn other_insn(of: &Instruction) -> Option<Insn> {
    let port = |n| match of.op_kind(n) {
        OpKind::Immediate8 => IoPort::Imm(of.immediate8()),
        _ => IoPort::Dx,
    };
    let size = |n| width(of.op_register(n).size());
    let special = |n: u32| register(of, n);
    let from = (special(1), special(0));
    let control =
        |n| matches!(of.op_register(n), r if (Register::CR0..=Register::CR15).contains(&r));
    let debug = |n| matches!(of.op_register(n), r if (Register::DR0..=Register::DR15).contains(&r));
    Some(match of.mnemonic() {
        Mnemonic::In => Insn::In(size(0), port(1)),
        Mnemonic::Out => Insn::Out(size(1), port(0)),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Insn::Ins(strings(of)),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => Insn::Outs(strings(of)),
        Mnemonic::Cli => Insn::Cli,
        Mnemonic::Sti => Insn::Sti,
        Mnemonic::Clts => Insn::Clts,
        Mnemonic::Mov if control(1) => Insn::ReadCr {
            cr: from.0,
            gpr: from.1,
        },
        Mnemonic::Mov if control(0) => Insn::WriteCr {
            cr: from.1,
            gpr: from.0,
        },
        Mnemonic::Mov if debug(1) => Insn::ReadDr {
            dr: from.0,
            gpr: from.1,
        },
        Mnemonic::Mov if debug(0) => Insn::WriteDr {
            dr: from.1,
            gpr: from.0,
        },
        Mnemonic::Rdmsr => Insn::Rdmsr,
        Mnemonic::Wrmsr => Insn::Wrmsr,
        Mnemonic::Cpuid => Insn::Cpuid,
        Mnemonic::Rdtsc => Insn::Rdtsc,
        Mnemonic::Rdtscp => Insn::Rdtscp,
        Mnemonic::Xsetbv => Insn::Xsetbv,
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Insn::Wbinvd,
        Mnemonic::Int => Insn::Int(of.immediate8()),
        mnemonic => Insn::Refused(refused(mnemonic)?),
    })
}

/// Checks a claim of ours in every detail, and a store or control-register move that we missed.
fn compare(bytes: &[u8], size: CodeSize) {
    let other = iced(bytes, size);
    let decoded = match decode(bytes, size) {
        Ok(decoded) => decoded,
        Err(error) => {
            assert!(
                !expected(&other, size),
                "missed {other:?} in {bytes:02x?}: {error:?}"
            );
            return;
        }
    };
    if decoded.insn == Insn::ForcedCpuid {
        assert_eq!((other.mnemonic(), decoded.len), (Mnemonic::Ud2, 7));
        return;
    }
    assert!(
        !other.is_invalid(),
        "{bytes:02x?} is no instruction, not {decoded:?}"
    );
    assert_eq!(
        usize::from(decoded.len),
        other.len(),
        "length of {bytes:02x?}"
    );
    match decoded.insn {
        Insn::Store(store) => check_store(decoded, store, &other),
        Insn::Ins(strings) => {
            assert_eq!(ins_target(&registers(), strings.addr32), address(&other, 0));
            let plain = Insn::Ins(Strings {
                segment: None,
                ..strings
            });
            assert_eq!(Some(plain), other_insn(&other));
        }
        Insn::Outs(strings) => {
            let from = string_source(&decoded, &registers(), BASES);
            assert_eq!(from, Some(address(&other, 1)));
            let plain = Insn::Outs(Strings {
                segment: None,
                ..strings
            });
            assert_eq!(Some(plain), other_insn(&other));
        }
        insn => assert_eq!(Some(insn), other_insn(&other), "{bytes:02x?}"),
    }
    for end in 0..usize::from(decoded.len) {
        assert_eq!(
            decode(&bytes[..end], size),
            Err(DecodeError::Incomplete),
            "{bytes:02x?}"
        );
    }
}

/// Whether the decoder has to know an instruction of the other one's.
fn expected(other: &Instruction, size: CodeSize) -> bool {
    if other.is_invalid() || other.code() == Code::INVALID || size == CodeSize::Bits32 {
        return false;
    }
    let repeated = other.has_rep_prefix() || other.has_repne_prefix();
    let to_memory = matches!(
        other.op_kind(0),
        OpKind::Memory | OpKind::MemoryESRDI | OpKind::MemoryESEDI
    );
    let segment = |r: Register| r.is_segment_register();
    if to_memory && store_op(other).is_some() {
        return !segment(other.op_register(1));
    }
    let special = [0, 1]
        .map(|n| other.op_register(n))
        .iter()
        .any(|r| r.is_cr() && r.number() <= 8);
    !repeated && (special || matches!(other.mnemonic(), Mnemonic::Rdmsr | Mnemonic::Cpuid))
}

fn prefix() -> impl Strategy<Value = u8> {
    select(
        &[
            0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x64, 0x65, 0x2e, 0x3e, 0x26, 0x40, 0x41, 0x48, 0x4c,
        ][..],
    )
}

/// Bytes in which instructions that the decoder knows are frequent.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    const ONE: &[u8] = &[
        0x00, 0x01, 0x09, 0x11, 0x19, 0x20, 0x21, 0x29, 0x31, 0x39, 0x6c, 0x6d, 0x6e, 0x6f, 0x80,
        0x81, 0x83, 0x86, 0x87, 0x88, 0x89, 0xa2, 0xa3, 0xa4, 0xa5, 0xaa, 0xab, 0xc6, 0xc7, 0xcd,
        0xcf, 0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef, 0xf4, 0xf6, 0xf7, 0xfa, 0xfb, 0xfe,
        0xff,
    ];
    let opcode = prop_oneof![
        select(ONE).prop_map(|opcode| Vec::from([opcode])),
        any::<u8>().prop_map(|opcode| Vec::from([0x0f, opcode])),
        select(
            &[
                0x00, 0x01, 0x09, 0x20, 0x22, 0x23, 0xab, 0xb1, 0xb3, 0xba, 0xc1, 0xc3
            ][..]
        )
        .prop_map(|opcode| Vec::from([0x0f, opcode])),
    ];
    (vec(prefix(), 0..5), opcode, vec(any::<u8>(), 0..16))
        .prop_map(|(prefixes, opcode, tail)| [prefixes, opcode, tail].concat())
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 60_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn likely_bytes_decode_as_an_independent_decoder_says(bytes in likely()) {
        compare(&bytes, CodeSize::Bits64);
        compare(&bytes, CodeSize::Bits32);
    }

    #[test]
    fn arbitrary_bytes_decode_as_an_independent_decoder_says(bytes in vec(any::<u8>(), 0..20)) {
        compare(&bytes, CodeSize::Bits64);
        compare(&bytes, CodeSize::Bits32);
    }

    #[test]
    fn bytes_behind_the_fifteenth_do_not_matter(bytes in vec(prefix(), 15..18)) {
        prop_assert_eq!(decode(&bytes, CodeSize::Bits64), Err(DecodeError::Unknown));
    }
}

#[test]
fn forced_emulation_is_cpuid_only() {
    let whole = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2];
    let decoded = decode(&whole, CodeSize::Bits64);
    assert_eq!(
        decoded,
        Ok(Decoded {
            insn: Insn::ForcedCpuid,
            len: 7
        })
    );
    for end in 0..whole.len() {
        assert_eq!(
            decode(&whole[..end], CodeSize::Bits64),
            Err(DecodeError::Incomplete)
        );
    }
    let rdtsc = [0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0x31];
    assert_eq!(decode(&rdtsc, CodeSize::Bits64), Err(DecodeError::Unknown));
    assert_eq!(
        decode(&[0x0f, 0x0b, 0x90], CodeSize::Bits64),
        Err(DecodeError::Unknown)
    );
}

#[test]
fn compatibility_mode_has_no_rex_and_no_stores() {
    let cpuid = decode(&[0x0f, 0xa2], CodeSize::Bits32);
    assert_eq!(
        cpuid,
        Ok(Decoded {
            insn: Insn::Cpuid,
            len: 2
        })
    );
    assert_eq!(
        decode(&[0x48, 0x0f, 0xa2], CodeSize::Bits32),
        Err(DecodeError::Unknown)
    );
    assert_eq!(
        decode(&[0x89, 0x07], CodeSize::Bits32),
        Err(DecodeError::Unknown)
    );
}
