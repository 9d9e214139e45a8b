//! The decoder against `iced-x86`, an independent one.

mod iced;

use std::vec::Vec;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof};
use proptest::{collection::vec, prop_assert_eq, proptest, sample::select};

use super::super::address::{effective, ins_target, string_source};
use super::super::insn::{Insn, Store, StoreOp, Strings};
use super::{CodeSize, DecodeError, Decoded, decode};
use iced::{BASES, address, iced, other_insn, registers, store_op, width};

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
            0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x64, 0x65, 0x2e, 0x3e, 0x26, 0x40, 0x41, 0x42, 0x48,
            0x4c, 0x4f,
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
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(10_000), failure_persistence: None, ..Default::default() })]

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
fn only_rsp_is_no_index() {
    // mov %rax, (%rax,%r12,1) and mov %rax, (%rax)
    for bytes in [[0x4a, 0x89, 0x04, 0x20], [0x48, 0x89, 0x04, 0x20]] {
        compare(&bytes, CodeSize::Bits64);
        assert!(decode(&bytes, CodeSize::Bits64).is_ok());
    }
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
