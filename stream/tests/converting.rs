//! Legacy streams become streams of version 3 that are valid, or are refused by name.

use std::io::Cursor;

use unmoved_stream::legacy::{Options, Target, Width, convert};
use unmoved_stream::libxc::{DomainType, PvInfo};
use unmoved_stream::testing::{Guest, LegacySample};
use unmoved_stream::{Error, Format, Input, Run, entries, inspect, verify};

const GUESTS: [Guest; 3] = [
    Guest::Pv(PvInfo::Bits64),
    Guest::Pv(PvInfo::Bits32),
    Guest::Hvm,
];

fn samples() -> Vec<LegacySample> {
    let mut all = Vec::new();
    for width in [Width::Bits32, Width::Bits64] {
        for guest in GUESTS {
            for (extended, xsave, xl, odd) in [
                (true, 852, false, true),
                (false, 0, true, false),
                (true, 16, true, true),
            ] {
                all.push(LegacySample {
                    extended,
                    xsave,
                    xl,
                    odd,
                    empty_batch: odd && xl,
                    ..LegacySample::new(width, guest)
                });
            }
        }
    }
    all
}

fn converted(bytes: &[u8], target: Target) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let options = Options {
        target,
        expect_end: true,
        ..Options::default()
    };
    convert(Input::new(bytes), &mut out, &options)?;
    Ok(out)
}

#[test]
fn every_width_and_type_becomes_a_valid_stream() {
    for sample in samples() {
        let bytes = sample.write(Vec::new()).unwrap();
        for (target, format) in [
            (Target::Libxc, Format::Libxc),
            (
                Target::Libxl,
                if sample.xl { Format::Xl } else { Format::Libxl },
            ),
        ] {
            let out = converted(&bytes, target).unwrap_or_else(|e| panic!("{sample:?}: {e}"));
            let report = verify(Input::new(out.as_slice()), format)
                .unwrap_or_else(|e| panic!("{sample:?}: {e}"));
            assert_eq!(report.pages, sample.pages, "{sample:?}");
            assert_eq!(report.xen, None);
            assert_eq!(report.version, 3);
            let has = |name: &str| report.records.get(name).copied().unwrap_or_default();
            if let Guest::Pv(_) = sample.guest {
                assert_eq!(has("X86_PV_VCPU_BASIC"), 4);
                assert_eq!(
                    has("X86_PV_VCPU_EXTENDED"),
                    if sample.extended { 4 } else { 0 }
                );
                assert_eq!(
                    has("X86_PV_VCPU_XSAVE"),
                    if sample.xsave > 16 { 4 } else { 0 }
                );
            } else if target == Target::Libxl {
                assert_eq!(has("libxl EMULATOR_CONTEXT"), 1);
                assert_eq!(has("libxl EMULATOR_XENSTORE_DATA"), 1);
            }
        }
    }
}

#[test]
fn what_is_known_need_not_be_detected() {
    for sample in samples() {
        let bytes = sample.write(Vec::new()).unwrap();
        let told = Options {
            width: Some(sample.width),
            guest: Some(match sample.guest {
                Guest::Pv(_) => DomainType::Pv,
                Guest::Hvm => DomainType::Hvm,
            }),
            ..Options::default()
        };
        let mut out = Vec::new();
        let report = convert(Input::new(bytes.as_slice()), &mut out, &told).unwrap();
        assert_eq!(report.width, sample.width.bits());
        assert_eq!(report.bytes, bytes.len() as u64);
        assert!(out == converted(&bytes, Target::Libxl).unwrap());
        let wrong = Options {
            width: Some(match sample.width {
                Width::Bits32 => Width::Bits64,
                Width::Bits64 => Width::Bits32,
            }),
            ..told
        };
        convert(Input::new(bytes.as_slice()), std::io::sink(), &wrong).unwrap_err();
    }
}

#[test]
fn every_truncation_is_an_error_that_says_where() {
    for sample in samples() {
        let bytes = sample.write(Vec::new()).unwrap();
        let cuts = (0..700).chain((700..bytes.len()).step_by(61));
        for length in cuts.chain(bytes.len() - 700..bytes.len()) {
            let error = converted(&bytes[..length], Target::Libxl)
                .unwrap_err()
                .to_string();
            assert!(error.contains("truncated"), "{sample:?}, {length}: {error}");
            assert!(error.starts_with("at byte "), "{error}");
        }
    }
}

/// The complaint about a sample of an HVM guest whose last chunk is replaced by this.
#[expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
fn complaint(chunk: &[u8]) -> String {
    let sample = LegacySample::new(Width::Bits64, Guest::Hvm);
    let mut bytes = sample.write(Vec::new()).unwrap();
    let last = [-9i32, 0].map(i32::to_le_bytes).concat();
    let at = bytes.windows(8).rposition(|w| w == last).unwrap();
    bytes.splice(at..at + 4, chunk.iter().copied());
    converted(&bytes, Target::Libxl).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_converted_is_named() {
    let chunk = |number: i32| complaint(&number.to_le_bytes());
    assert!(chunk(-5).contains("TMEM") && chunk(-5).contains("tmem"));
    assert!(chunk(-6).contains("TMEM_EXTRA"));
    assert!(chunk(-12).contains("COMPRESSED_DATA") && chunk(-12).contains("compressed"));
    assert!(chunk(-13).contains("ENABLE_COMPRESSION"));
    assert!(chunk(-21).contains("unknown"));
    assert!(chunk(1025).contains("at most 1024"));
    let twice = [&2i32.to_le_bytes()[..], &[1, 0, 0, 0, 0, 0, 0, 0].repeat(2)].concat();
    assert!(complaint(&twice).contains("pfn 0x1 is twice"));
    let reserved = [&1i32.to_le_bytes()[..], &(5u64 << 28).to_le_bytes()].concat();
    assert!(complaint(&reserved).contains("page type 0x5"));
}

#[test]
fn a_length_near_the_end_of_numbers_is_refused() {
    let sample = LegacySample::new(Width::Bits32, Guest::Pv(PvInfo::Bits64));
    let mut bytes = sample.write(Vec::new()).unwrap();
    // The XSAVE state's mask and size.
    let head = [7u64, 836].map(u64::to_le_bytes).concat();
    let at = bytes.windows(16).position(|w| w == head).unwrap();
    bytes[at + 8..at + 16].copy_from_slice(&[0xff; 8]);
    let error = converted(&bytes, Target::Libxl).unwrap_err().to_string();
    assert!(
        error.contains("XSAVE") && error.contains("must be 836"),
        "{error}"
    );
}

#[test]
fn a_stream_of_a_newer_version_is_not_converted() {
    let sample = unmoved_stream::testing::Sample::new(Guest::Hvm);
    for bytes in [
        sample.libxc(Vec::new()).unwrap(),
        sample.libxl(Vec::new()).unwrap(),
        sample.xl(Vec::new()).unwrap(),
    ] {
        let error = converted(&bytes, Target::Libxl).unwrap_err().to_string();
        assert!(error.contains("not a legacy stream"), "{error}");
    }
    let legacy = LegacySample {
        xl: true,
        ..LegacySample::new(Width::Bits64, Guest::Hvm)
    };
    let bytes = legacy.write(Vec::new()).unwrap();
    for input in [&bytes[..], &bytes[48 + 20..]] {
        let error = verify(Input::new(input), Format::Detect).unwrap_err();
        assert!(
            error.to_string().contains("must be converted first"),
            "{error}"
        );
    }
}

#[test]
fn what_follows_is_refused_only_when_asked() {
    let sample = LegacySample::new(Width::Bits32, Guest::Pv(PvInfo::Bits32));
    let mut bytes = sample.write(Vec::new()).unwrap();
    bytes.extend(b"more");
    let error = converted(&bytes, Target::Libxl).unwrap_err();
    assert!(error.to_string().contains("bytes follow"), "{error}");
    convert(
        Input::new(bytes.as_slice()),
        std::io::sink(),
        &Options::default(),
    )
    .unwrap();
}

#[test]
fn an_inspection_lists_each_record() {
    let sample = LegacySample {
        xl: true,
        ..LegacySample::new(Width::Bits64, Guest::Hvm)
    };
    let bytes = sample.write(Vec::new()).unwrap();
    let out = converted(&bytes, Target::Libxl).unwrap();
    let mut text = Vec::new();
    inspect(Input::seekable(Cursor::new(out)), Format::Detect, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    for part in [
        r"xl header: name = \'sample\'\n",
        "libxl header, converted",
        "libxc version 3, x86 HVM, converted",
        "libxc PAGE_DATA, 3 records, 12 frames, 9 pages",
        "libxc X86_TSC_INFO, 24 bytes: mode 1, 2500000 kHz, 123456789 ns, incarnation 3",
        "libxc HVM_PARAMS, 56 bytes: 5=0xfeffe, 6=0xfefff, 1=0xfeffc",
        "physmap/f0000000/name = \"vga.vram\"",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn entries_say_in_fields_what_the_listing_says() {
    let sample = LegacySample {
        xl: true,
        ..LegacySample::new(Width::Bits64, Guest::Hvm)
    };
    let bytes = sample.write(Vec::new()).unwrap();
    let out = converted(&bytes, Target::Libxl).unwrap();
    let mut found = Vec::new();
    entries(Input::new(out.as_slice()), Format::Detect, |entry| {
        found.push(entry.clone());
        Ok(())
    })
    .unwrap();
    let mut text = Vec::new();
    inspect(Input::new(out.as_slice()), Format::Detect, &mut text).unwrap();
    let lines: Vec<_> = found
        .iter()
        .map(|entry| format!("{:>12}  {entry}\n", entry.offset))
        .collect();
    assert_eq!(lines.concat().as_bytes(), text);

    assert_eq!((found[0].layer, found[0].offset), ("xl", 0));
    assert_eq!(found[1].layer, "libxl");
    assert_eq!(found[1].offset, found[0].length);
    assert_eq!((found[0].number, found[0].record.as_deref()), (None, None));
    let of = |name: &str| {
        let is_it = |entry: &&unmoved_stream::Entry| entry.record.as_deref() == Some(name);
        found.iter().find(is_it).unwrap()
    };
    let tsc = of("X86_TSC_INFO");
    assert_eq!((tsc.layer, tsc.number, tsc.length), ("libxc", Some(8), 24));
    assert!(tsc.about.starts_with("mode 1, 2500000 kHz"));
    let pages = of("PAGE_DATA");
    let run = Run {
        records: 3,
        frames: 12,
        pages: 9,
    };
    assert_eq!(pages.pages, Some(run));
    // Eight bytes of header in each, eight for each frame, and the pages.
    assert_eq!(pages.length, 3 * 8 + 12 * 8 + 9 * 4096);
}

#[test]
fn entries_end_when_they_cannot_be_written() {
    let sample = LegacySample::new(Width::Bits64, Guest::Hvm);
    let out = converted(&sample.write(Vec::new()).unwrap(), Target::Libxl).unwrap();
    let mut count = 0;
    let error = entries(Input::new(out.as_slice()), Format::Detect, |_| {
        count += 1;
        Err(std::io::ErrorKind::BrokenPipe.into())
    });
    assert_eq!(count, 1);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("cannot write"), "{error}");
}
