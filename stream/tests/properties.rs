//! Streams of any shape survive a round trip; any damage to them is an error with a place, never a panic.

use std::io::Cursor;

use proptest::collection::vec;
use proptest::prelude::*;
use unmoved_stream::legacy::{Options, Target, Width, convert};
use unmoved_stream::libxc::{
    Content, DomainHeader, DomainType, HvmParam, ImageHeader, PageEntry, PageType, PvInfo,
    RecordType, TscInfo, Writer,
};
use unmoved_stream::testing::{Guest, LegacySample, Sample, noise};
use unmoved_stream::{Event, Format, Input, Kind, Reader, Reserved, verify};

/// Frames of one page record.
fn batch() -> impl Strategy<Value = Vec<PageEntry>> {
    let kind = (0u8..16).prop_filter_map("types that exist", PageType::new);
    let entry =
        (0u64..1 << 52, kind).prop_filter_map("52 bits", |(pfn, kind)| PageEntry::new(pfn, kind));
    vec(entry, 1..40)
}

fn guest() -> impl Strategy<Value = Guest> {
    prop_oneof![
        Just(Guest::Pv(PvInfo::Bits64)),
        Just(Guest::Pv(PvInfo::Bits32)),
        Just(Guest::Hvm),
    ]
}

fn sample() -> impl Strategy<Value = Sample> {
    (2u32..4, guest(), 1u64..40, 1usize..20, 1u32..5).prop_map(
        |(version, guest, pages, batch, vcpus)| Sample {
            version,
            guest,
            pages,
            batch,
            vcpus,
        },
    )
}

fn legacy() -> impl Strategy<Value = LegacySample> {
    let width = prop_oneof![Just(Width::Bits32), Just(Width::Bits64)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let xsave = prop_oneof![Just(0), Just(16), 32u32..4000];
    (
        width,
        guest(),
        1u64..40,
        1usize..20,
        1u32..140,
        xsave,
        flags,
    )
        .prop_map(
            |(width, guest, pages, batch, vcpus, xsave, (extended, xl, odd, empty_batch))| {
                LegacySample {
                    width,
                    guest,
                    pages,
                    batch,
                    vcpus,
                    extended,
                    xsave,
                    xl,
                    odd,
                    empty_batch,
                }
            },
        )
}

/// One change to a stream.
#[derive(Clone, Debug)]
enum Damage {
    Byte(usize, u8),
    Cut(usize),
    Word(usize, u32),
    Remove(usize, usize),
    Repeat(usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), any::<u32>()).prop_map(|(at, word)| Damage::Word(at, word)),
        (any::<usize>(), 0usize..50).prop_map(|(at, count)| Damage::Remove(at, count)),
        (any::<usize>(), 0usize..50).prop_map(|(at, count)| Damage::Repeat(at, count)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    match *damage {
        Damage::Byte(at, byte) => bytes[at % length] = byte,
        Damage::Cut(at) => bytes.truncate(at % length),
        Damage::Word(at, word) => {
            let at = at % length / 4 * 4;
            let end = length.min(at + 4);
            bytes[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
        }
        Damage::Remove(at, count) => {
            drop(bytes.drain(at % length..length.min(at % length + count)));
        }
        Damage::Repeat(at, count) => {
            let at = at % length;
            let again = bytes[at..length.min(at + count)].to_vec();
            bytes.splice(at..at, again);
        }
    }
}

proptest! {
    #[test]
    fn batches_of_any_pages_come_back(
        batches in vec(batch(), 1..6),
        tsc in (any::<u32>(), any::<u32>(), any::<u64>(), any::<u32>()),
        params in vec((any::<u64>(), any::<u64>()), 0..9),
        context in vec(any::<u8>(), 1..99),
        optional in (any::<u32>(), vec(any::<u8>(), 0..99)),
    ) {
        let domain = DomainHeader { kind: DomainType::Hvm, xen_major: 4, xen_minor: 20 };
        let mut out = Writer::new(Vec::new(), ImageHeader { version: 3 }, domain).unwrap();
        out.static_data_end().unwrap();
        for entries in &batches {
            let count = entries.iter().filter(|e| e.has_contents()).count();
            let contents = noise(count * 4096);
            let (first, rest) = contents.split_at(contents.len() / 2);
            out.page_data(entries, &[first, rest]).unwrap();
        }
        let info = TscInfo { mode: tsc.0, khz: tsc.1, elapsed_ns: tsc.2, incarnation: tsc.3 };
        out.tsc_info(info).unwrap();
        let params: Vec<HvmParam> =
            params.into_iter().map(|(index, value)| HvmParam { index, value }).collect();
        out.hvm_params(&params).unwrap();
        let kind = RecordType(optional.0 | 1 << 31);
        out.record(kind, &[&optional.1]).unwrap();
        out.hvm_context(&context).unwrap();
        out.end().unwrap();
        let written = out.offset();
        let bytes = out.into_inner();
        prop_assert_eq!(written, bytes.len() as u64);

        let mut reader = Reader::new(Input::new(&bytes[..]), Format::Libxc, Reserved::Refuse);
        let mut found = Vec::new();
        let mut kinds = Vec::new();
        while let Some(event) = reader.next_event().unwrap() {
            let Event::Record(mut record) = event else { continue };
            let Kind::Libxc(content) = record.kind() else { panic!("no libxl here") };
            match content {
                Content::PageData { .. } => {
                    let pages = record.pages().unwrap().unwrap();
                    prop_assert!(pages.contents == noise(pages.contents.len()));
                    found.push(pages.entries.to_vec());
                }
                Content::Optional => prop_assert_eq!(record.bytes().unwrap(), &optional.1[..]),
                Content::HvmContext => prop_assert_eq!(record.bytes().unwrap(), &context[..]),
                other => kinds.push(other),
            }
        }
        prop_assert_eq!(found, batches);
        prop_assert!(kinds.contains(&Content::TscInfo(info)));
        let count = u32::try_from(params.len()).unwrap();
        prop_assert_eq!(kinds.contains(&Content::HvmParams { count }), count > 0);
    }

    #[test]
    fn samples_of_any_shape_are_valid(sample in sample(), checkpoints in 1u32..4) {
        for bytes in [
            sample.libxc(Vec::new()).unwrap(),
            sample.libxl(Vec::new()).unwrap(),
            sample.xl(Vec::new()).unwrap(),
            sample.remus(Vec::new(), checkpoints).unwrap(),
        ] {
            let read = verify(Input::new(&bytes[..]), Format::Detect).unwrap();
            let jumped = verify(Input::seekable(Cursor::new(&bytes)), Format::Detect).unwrap();
            prop_assert_eq!(read.bytes, bytes.len() as u64);
            prop_assert_eq!(read, jumped);
        }
    }

    #[test]
    fn legacy_streams_of_any_shape_become_valid(sample in legacy()) {
        let bytes = sample.write(Vec::new()).unwrap();
        for target in [Target::Libxc, Target::Libxl] {
            let options = Options { target, expect_end: true, ..Options::default() };
            let mut out = Vec::new();
            let converted = convert(Input::new(&bytes[..]), &mut out, &options).unwrap();
            prop_assert_eq!(converted.width, sample.width.bits());
            prop_assert_eq!(converted.xl_header, sample.xl);
            let report = verify(Input::new(&out[..]), Format::Detect).unwrap();
            prop_assert_eq!(report.pages, sample.pages);
        }
    }

    #[test]
    fn damage_is_an_error_with_a_place_or_does_not_matter(
        sample in sample(),
        checkpoints in 0u32..3,
        damages in vec(damage(), 1..4),
    ) {
        let mut bytes = match checkpoints {
            0 => sample.xl(Vec::new()).unwrap(),
            _ => sample.remus(Vec::new(), checkpoints).unwrap(),
        };
        damages.iter().for_each(|damage| apply(&mut bytes, damage));
        let read = verify(Input::new(&bytes[..]), Format::Detect);
        let jumped = verify(Input::seekable(Cursor::new(&bytes)), Format::Detect);
        prop_assert_eq!(format!("{read:?}"), format!("{jumped:?}"));
        if let Err(error) = read {
            prop_assert!(error.offset <= bytes.len() as u64);
            let text = error.to_string();
            prop_assert!(text.starts_with("at byte ") && text.lines().count() == 1, "{}", text);
        }
    }

    #[test]
    fn damage_to_a_legacy_stream_is_an_error_or_gives_a_valid_stream(
        sample in legacy(),
        damages in vec(damage(), 1..4),
    ) {
        let mut bytes = sample.write(Vec::new()).unwrap();
        damages.iter().for_each(|damage| apply(&mut bytes, damage));
        let mut out = Vec::new();
        match convert(Input::new(&bytes[..]), &mut out, &Options::default()) {
            Ok(_) => drop(verify(Input::new(&out[..]), Format::Detect).unwrap()),
            Err(error) => {
                let text = error.to_string();
                prop_assert!(text.starts_with("at byte ") && text.lines().count() == 1, "{}", text);
            }
        }
    }
}
