//! Our verifier and converter beside Xen's own, on streams of all kinds, whole and damaged.
//!
//! Rule under test: what `verify-stream-v2` accepts and the format allows is accepted; what
//! `convert-legacy-stream` converts comes out as the same bytes.  Every exception is one of those that
//! `docs/stream.md` lists, and has to be of its kind here.

mod common;

use std::collections::BTreeMap;
use std::io::Cursor;

use common::{GUESTS, Mutator, XenTools, defect, legacy_samples};
use unmoved_stream::legacy::{Options, Target, convert};
use unmoved_stream::libxc::DomainType;
use unmoved_stream::testing::{Guest, LegacySample, Sample};
use unmoved_stream::{Error, Format, Input, Part, verify};

/// Damaged variants of each sample.
const VARIANTS: u64 = 250;

fn ours(bytes: &[u8], format: Format) -> Result<(), Error> {
    verify(Input::seekable(Cursor::new(bytes)), format).map(drop)
}

#[test]
fn whole_streams_are_accepted_by_both() {
    let mut xen = XenTools::start();
    let mut known_bugs = 0;
    for guest in GUESTS {
        for (version, pages, batch) in [(2, 5, 1024), (3, 5, 2), (3, 1100, 1024)] {
            let sample = Sample {
                version,
                pages,
                batch,
                ..Sample::new(guest)
            };
            let layers = [
                ("libxc", Format::Libxc, sample.libxc(Vec::new()).unwrap()),
                ("libxl", Format::Libxl, sample.libxl(Vec::new()).unwrap()),
                ("xl", Format::Xl, sample.xl(Vec::new()).unwrap()),
                ("libxl", Format::Libxl, sample.remus(Vec::new(), 2).unwrap()),
            ];
            for (index, (name, format, bytes)) in layers.iter().enumerate() {
                ours(bytes, *format).unwrap();
                let answer = xen.verify(name, bytes);
                // Xen's tool trips over xenstore strings, and loses its way after a checkpoint.
                let is_bug = (guest == Guest::Hvm && *name != "libxc") || index == 3;
                assert_eq!(answer == "ok", !is_bug, "{guest:?} {name}: {answer}");
                known_bugs += u32::from(is_bug);
            }
        }
    }
    println!("{known_bugs} valid streams refused by verify-stream-v2's known bugs");
}

#[test]
fn what_xens_verifier_accepts_is_accepted_or_not_allowed() {
    let mut xen = XenTools::start();
    let mut table = BTreeMap::<String, u64>::new();
    for guest in GUESTS {
        for (name, format) in [("libxc", Format::Libxc), ("xl", Format::Xl)] {
            let sample = Sample {
                pages: 3,
                batch: 2,
                ..Sample::new(guest)
            };
            let whole = match format {
                Format::Libxc => sample.libxc(Vec::new()).unwrap(),
                _ => sample.xl(Vec::new()).unwrap(),
            };
            let mut mutator = Mutator::new(&whole, format);
            for _ in 0..VARIANTS {
                let bytes = mutator.variant();
                let answer = xen.verify(name, &bytes);
                let found = ours(&bytes, format);
                let key = match (&found, answer.as_str()) {
                    (Ok(()), "ok") => "both accept".to_owned(),
                    (Err(error), "ok") => {
                        assert!(verifier_deviation(error), "{guest:?} {name}: {error}");
                        format!("only Xen's accepts: {}", defect(error))
                    }
                    (Err(_), _) => "both refuse".to_owned(),
                    (Ok(()), refusal) => {
                        // Strings of xenstore, or optional records: the tool's bugs.
                        assert!(accepts_more(&bytes, format), "{guest:?} {name}: {refusal}");
                        "only ours accepts: the tool's bugs".to_owned()
                    }
                };
                *table.entry(key).or_default() += 1;
            }
        }
    }
    print(&table);
    assert!(table.contains_key("both accept") && table.contains_key("both refuse"));
}

/// Whether we may refuse for this reason what Xen's tool accepts.
fn verifier_deviation(error: &Error) -> bool {
    match defect(error).as_str() {
        // Order, mandatory records and what follows the end are not looked at by the tool.
        "Order" | "Missing" | "Trailing" | "BeyondEnd" => true,
        // Nor are sizes of vCPU states and of the P2M, nor widths, nor xl's header.
        "Length" | "Value" => {
            let text = error.part.to_string();
            error.part == Part::XlHeader
                || text.contains("X86_PV_VCPU")
                || text.contains("X86_PV_P2M_FRAMES")
                || text.contains("X86_PV_INFO")
        }
        "Reserved" | "Unsupported" | "Magic" => error.part == Part::XlHeader,
        // A length of xl's optional data that reaches into the stream.
        _ => false,
    }
}

/// Whether the stream has something that Xen's tool refuses without a reason in the format.
fn accepts_more(bytes: &[u8], format: Format) -> bool {
    let Ok(report) = verify(Input::new(bytes), format) else {
        return false;
    };
    let has = |name: &str| report.records.keys().any(|key| key.contains(name));
    has("EMULATOR_XENSTORE_DATA") || has("type 0x8") || has("type 0x9") || !report.notes.is_empty()
}

#[test]
fn whole_legacy_streams_become_the_same_bytes() {
    let mut xen = XenTools::start();
    let mut count = 0;
    for sample in legacy_samples() {
        let bytes = sample.write(Vec::new()).unwrap();
        for (name, target) in [("libxc", Target::Libxc), ("libxl", Target::Libxl)] {
            let (answer, theirs) = xen.convert(&sample, name, &bytes);
            assert_eq!(answer, "ok", "{sample:?}");
            assert!(
                converted(&bytes, target).unwrap() == theirs,
                "{sample:?} {name}"
            );
            count += 1;
        }
    }
    println!("{count} conversions to the same bytes, width and guest detected by ours");
}

#[test]
fn records_without_contents_are_the_only_difference() {
    let mut xen = XenTools::start();
    for mut sample in legacy_samples() {
        sample.empty_batch = true;
        let bytes = sample.write(Vec::new()).unwrap();
        let (answer, theirs) = xen.convert(&sample, "libxc", &bytes);
        assert_eq!(answer, "ok");
        // A page record of no pages, which Xen's own verifier refuses.
        assert!(xen.verify("libxc", &theirs).starts_with("refused"));
        let empty = [1u32, 8, 0, 0].map(u32::to_le_bytes).concat();
        let at = theirs.windows(16).position(|w| w == empty).unwrap();
        let without = [&theirs[..at], &theirs[at + 16..]].concat();
        assert!(converted(&bytes, Target::Libxc).unwrap() == without);
    }
}

#[test]
fn damaged_legacy_streams_are_converted_alike_or_refused() {
    let mut xen = XenTools::start();
    let mut table = BTreeMap::<String, u64>::new();
    for sample in legacy_samples() {
        if sample.batch != 2 {
            continue;
        }
        let whole = sample.write(Vec::new()).unwrap();
        let mut mutator = Mutator::bytes(&whole);
        for _ in 0..VARIANTS {
            let bytes = mutator.variant();
            let (answer, theirs) = xen.convert(&sample, "libxl", &bytes);
            let key = match (told(&sample, &bytes), answer.as_str()) {
                (Ok(ours), "ok") if ours == theirs => "same bytes".to_owned(),
                (Ok(_), "ok") => {
                    // Then theirs has a record that nobody may write.
                    let error = verify(Input::new(&theirs[..]), Format::Libxl).unwrap_err();
                    format!("theirs is not valid: {}", defect(&error))
                }
                (Err(error), "ok") => {
                    assert!(converter_deviation(&error), "{sample:?}: {error}");
                    format!("only Xen's converts: {}", defect(&error))
                }
                (Ok(_), refusal) => panic!("{sample:?}: only ours converts: {refusal}"),
                (Err(_), _) => "both refuse".to_owned(),
            };
            *table.entry(key).or_default() += 1;
        }
    }
    print(&table);
    assert!(table.contains_key("same bytes") && table.contains_key("both refuse"));
}

/// Whether we may refuse for this reason what Xen's converter takes.
fn converter_deviation(error: &Error) -> bool {
    // What makes a stream that cannot be restored, or lengths beyond what any sender wrote.
    let kinds = [
        "Order",
        "Missing",
        "Trailing",
        "BeyondEnd",
        "PageType",
        "Reserved",
        "Value",
        "Length",
        "Text",
    ];
    kinds.contains(&defect(error).as_str())
}

/// Converts with everything told, as Xen's tool has to be.
fn told(sample: &LegacySample, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let options = Options {
        width: Some(sample.width),
        guest: Some(match sample.guest {
            Guest::Pv(_) => DomainType::Pv,
            Guest::Hvm => DomainType::Hvm,
        }),
        ..Options::default()
    };
    let mut out = Vec::new();
    convert(Input::new(bytes), &mut out, &options)?;
    Ok(out)
}

fn converted(bytes: &[u8], target: Target) -> Result<Vec<u8>, Error> {
    let options = Options {
        target,
        ..Options::default()
    };
    let mut out = Vec::new();
    convert(Input::new(bytes), &mut out, &options)?;
    Ok(out)
}

fn print(table: &BTreeMap<String, u64>) {
    for (key, count) in table {
        println!("{count:>6}  {key}");
    }
}
