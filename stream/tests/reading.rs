//! What the writers write, the reader reads; and nothing else.

use std::io::Cursor;

use unmoved_stream::libxc::{self, Content, PvInfo, RecordType};
use unmoved_stream::testing::{Guest, Sample, noise};
use unmoved_stream::{Error, Event, Format, Input, Kind, Reader, Reserved, libxl};

const GUESTS: [Guest; 3] = [
    Guest::Pv(PvInfo::Bits64),
    Guest::Pv(PvInfo::Bits32),
    Guest::Hvm,
];

/// Each sample in each layer, with its name.
#[expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
fn samples() -> Vec<(String, Format, Vec<u8>)> {
    let mut all = Vec::new();
    for guest in GUESTS {
        for version in [2, 3] {
            let sample = Sample {
                version,
                ..Sample::new(guest)
            };
            let name = |layer: &str| format!("{layer} v{version} {guest:?}");
            let libxc = sample.libxc(Vec::new()).unwrap();
            all.push((name("libxc"), Format::Libxc, libxc));
            let libxl = sample.libxl(Vec::new()).unwrap();
            all.push((name("libxl"), Format::Libxl, libxl));
            all.push((name("xl"), Format::Xl, sample.xl(Vec::new()).unwrap()));
            let remus = sample.remus(Vec::new(), 3).unwrap();
            all.push((name("remus"), Format::Libxl, remus));
        }
    }
    all
}

/// Reads all of a stream and checks its end.
fn read(bytes: &[u8], format: Format, reserved: Reserved) -> Result<Vec<Kind>, Error> {
    let mut reader = Reader::new(Input::new(bytes), format, reserved);
    let mut kinds = Vec::new();
    while let Some(event) = reader.next_event()? {
        if let Event::Record(record) = event {
            kinds.push(record.kind());
        }
    }
    reader.expect_end()?;
    Ok(kinds)
}

#[test]
fn every_layer_is_read_and_recognised() {
    for (name, format, bytes) in samples() {
        let told = read(&bytes, format, Reserved::Refuse).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found = read(&bytes, Format::Detect, Reserved::Refuse).unwrap();
        assert_eq!(told, found, "{name}");
        let pages = told
            .iter()
            .filter(|kind| matches!(kind, Kind::Libxc(Content::PageData { pages: 5, .. })));
        let checkpoints = told
            .iter()
            .filter(|kind| matches!(kind, Kind::Libxl(libxl::Content::CheckpointEnd)));
        let expected = if name.starts_with("remus") { 3 } else { 0 };
        assert_eq!(checkpoints.count(), expected, "{name}");
        assert_eq!(pages.count(), expected.max(1), "{name}");
    }
}

#[test]
fn forwarding_every_record_gives_the_same_bytes() {
    for (name, format, bytes) in samples() {
        let mut reader = Reader::new(Input::new(bytes.as_slice()), format, Reserved::Refuse);
        let mut out = Vec::new();
        while let Some(event) = reader.next_event().unwrap() {
            match event {
                Event::Save(header) => out.extend(header.encode()),
                Event::Libxl(header) => out.extend(header.encode()),
                Event::Libxc(image, domain) => {
                    out.extend(image.encode());
                    out.extend(domain.encode());
                }
                Event::Record(mut record) => record.forward(&mut out).unwrap(),
            }
        }
        assert!(out == bytes, "{name}");
    }
}

#[test]
fn pages_come_with_their_contents() {
    let sample = Sample {
        pages: 2500,
        batch: 1000,
        ..Sample::new(Guest::Hvm)
    };
    let bytes = sample.libxl(Vec::new()).unwrap();
    let mut reader = Reader::new(
        Input::seekable(Cursor::new(bytes)),
        Format::Libxl,
        Reserved::Ignore,
    );
    let expected = noise(1000 * 4096);
    let mut pfns = Vec::new();
    while let Some(event) = reader.next_event().unwrap() {
        let Event::Record(mut record) = event else {
            continue;
        };
        if !matches!(record.kind(), Kind::Libxc(Content::PageData { .. })) {
            assert!(record.pages().unwrap().is_none());
            record.bytes().unwrap();
            continue;
        }
        while let Some(pages) = record.pages().unwrap() {
            for (index, (entry, contents)) in pages.iter().enumerate() {
                pfns.push(entry.pfn());
                assert_eq!(contents.is_some(), entry.has_contents());
                if let Some(contents) = contents {
                    assert!(contents[..] == expected[index * 4096..][..4096]);
                }
            }
        }
    }
    assert!(pfns.into_iter().eq(0..2503));
}

#[test]
fn contents_can_be_read_in_place() {
    let bytes = Sample::new(Guest::Hvm).libxc(Vec::new()).unwrap();
    let mut reader = Reader::new(
        Input::new(bytes.as_slice()),
        Format::Libxc,
        Reserved::Ignore,
    );
    let mut places = vec![0; 2 * 4096];
    while let Some(event) = reader.next_event().unwrap() {
        let Event::Record(mut record) = event else {
            continue;
        };
        if let Kind::Libxc(Content::PageData { pages: 5, .. }) = record.kind() {
            assert_eq!(record.entries().unwrap().len(), 5);
            assert!(record.read_contents(&mut places[..100]).is_err());
            record.read_contents(&mut places).unwrap();
            assert!(places == noise(2 * 4096));
            let mut much = vec![0; 4 * 4096];
            assert!(record.read_contents(&mut much).is_err());
        }
    }
    reader.expect_end().unwrap();
}

#[test]
fn every_truncation_is_an_error_that_says_where() {
    for (name, format, bytes) in samples() {
        for length in cuts(&bytes, format) {
            for cut in [
                read(&bytes[..length], format, Reserved::Refuse).map(drop),
                read_seeking(&bytes[..length], format),
            ] {
                let error = cut.expect_err(&name).to_string();
                assert!(error.contains("truncated"), "{name}, {length}: {error}");
                assert!(error.starts_with("at byte "), "{error}");
            }
        }
    }
}

/// Where to cut: about the beginnings of records, and here and there.
#[expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
fn cuts(bytes: &[u8], format: Format) -> Vec<usize> {
    let mut reader = Reader::new(Input::new(bytes), format, Reserved::Refuse);
    let mut cuts: Vec<usize> = (0..120).chain((0..bytes.len()).step_by(997)).collect();
    while let Some(event) = reader.next_event().unwrap() {
        if let Event::Record(record) = event {
            let start = usize::try_from(record.offset()).unwrap();
            cuts.extend(start.saturating_sub(9)..start + 33);
        }
    }
    cuts.retain(|cut| *cut < bytes.len());
    cuts
}

fn read_seeking(bytes: &[u8], format: Format) -> Result<(), Error> {
    let mut reader = Reader::new(
        Input::seekable(Cursor::new(bytes)),
        format,
        Reserved::Refuse,
    );
    while reader.next_event()?.is_some() {}
    Ok(())
}

#[test]
fn what_follows_the_end_is_noticed_and_left() {
    let mut bytes = Sample::new(Guest::Hvm).xl(Vec::new()).unwrap();
    let end = bytes.len();
    bytes.extend(b"domain is yours");
    let error = read(&bytes, Format::Xl, Reserved::Refuse).unwrap_err();
    assert_eq!(error.offset, end as u64);
    assert!(error.to_string().contains("bytes follow"));
    let mut reader = Reader::new(Input::new(bytes.as_slice()), Format::Xl, Reserved::Refuse);
    while reader.next_event().unwrap().is_some() {}
    let (rest, ahead) = reader.into_input().into_parts();
    assert_eq!([ahead.as_slice(), rest].concat(), b"domain is yours");
}

#[test]
fn optional_records_are_kept_and_mandatory_ones_refused() {
    let (image, domain) = (
        libxc::ImageHeader { version: 3 },
        libxc::DomainHeader {
            kind: libxc::DomainType::Hvm,
            xen_major: 4,
            xen_minor: 20,
        },
    );
    let mut out = libxc::Writer::new(Vec::new(), image, domain).unwrap();
    out.static_data_end().unwrap();
    let optional = RecordType(0x8000_0042);
    out.record(optional, &[b"kept ", b"as it is"]).unwrap();
    assert!(out.record(RecordType(0x42), &[]).is_err());
    out.hvm_context(&[1]).unwrap();
    out.end().unwrap();
    let mut bytes = out.into_inner();
    let mut reader = Reader::new(
        Input::new(bytes.as_slice()),
        Format::Libxc,
        Reserved::Refuse,
    );
    let mut found = None;
    while let Some(event) = reader.next_event().unwrap() {
        if let Event::Record(mut record) = event
            && record.kind() == Kind::Libxc(Content::Optional)
        {
            assert_eq!(record.header().kind, optional.0);
            found = Some(record.bytes().unwrap().to_vec());
        }
    }
    assert_eq!(found.unwrap(), b"kept as it is");
    // The same record without the bit.
    let at = bytes
        .windows(4)
        .position(|w| w == [0x42, 0, 0, 0x80])
        .unwrap();
    bytes[at + 3] = 0;
    let error = read(&bytes, Format::Libxc, Reserved::Ignore).unwrap_err();
    assert!(error.to_string().contains("type 0x00000042"), "{error}");
    assert_eq!(error.offset, at as u64);
}

#[test]
fn a_receiver_ignores_what_a_verifier_refuses() {
    let mut bytes = Sample::new(Guest::Hvm).libxc(Vec::new()).unwrap();
    // The context has 1003 bytes, so five of padding.
    let at = bytes.windows(4).rposition(|w| w == [5; 4]).unwrap() + 4;
    bytes[at] = 1;
    let error = read(&bytes, Format::Libxc, Reserved::Refuse).unwrap_err();
    assert!(error.to_string().contains("HVM_CONTEXT"), "{error}");
    assert!(error.to_string().contains("the padding"), "{error}");
    read(&bytes, Format::Libxc, Reserved::Ignore).unwrap();
}

#[test]
fn nothing_is_read_after_an_error() {
    let mut bytes = Sample::new(Guest::Hvm).libxc(Vec::new()).unwrap();
    bytes[40] = 0xff;
    let mut reader = Reader::new(
        Input::new(bytes.as_slice()),
        Format::Libxc,
        Reserved::Refuse,
    );
    reader.next_event().unwrap();
    assert!(reader.next_event().is_err());
    let again = reader.next_event().unwrap_err();
    assert!(again.to_string().contains("has failed before"), "{again}");
}

/// A header as libvirt writes it, from the description of its format: 64 bytes, then XML.
fn behind_libvirt(version: u32, stream: &[u8]) -> Vec<u8> {
    let xml = b"<domain type='xen'><name>g</name></domain>\0";
    let mut bytes = b"libvirt-xml\n \0 \r".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(u32::try_from(xml.len()).unwrap_or(0).to_le_bytes());
    bytes.resize(64, 0);
    [&bytes, &xml[..], stream].concat()
}

#[test]
fn a_stream_behind_libvirts_header_is_verified_and_listed() {
    let stream = Sample::new(Guest::Hvm).libxl(Vec::new()).unwrap();
    let bytes = behind_libvirt(2, &stream);
    let report = unmoved_stream::verify(Input::new(&bytes[..]), Format::Detect).unwrap();
    assert_eq!(report.layers, ["libxl", "libxc"]);
    assert!(report.notes[0].contains("libvirt"), "{:?}", report.notes);
    let mut out = Vec::new();
    unmoved_stream::inspect(Input::new(&bytes[..]), Format::Detect, &mut out).unwrap();
    let listing = String::from_utf8(out).unwrap();
    assert!(listing.contains("0  libvirt header"), "{listing}");
    assert!(listing.contains("107  libxl header"), "{listing}");
    // The other kind has a legacy stream behind it.
    let bytes = behind_libvirt(1, &stream);
    let error = unmoved_stream::verify(Input::new(&bytes[..]), Format::Detect).unwrap_err();
    assert!(
        error.to_string().contains("unmoved stream convert"),
        "{error}"
    );
}

#[test]
fn what_is_no_stream_is_named_with_what_to_do() {
    let packed = b"\x28\xb5\x2f\xfd\x64\x98\x38\x95\x86\0\x3c\x07";
    for format in [Format::Detect, Format::Xl] {
        let error = read(packed, format, Reserved::Ignore)
            .unwrap_err()
            .to_string();
        assert!(error.contains("zstd -dc"), "{error}");
    }
    // Where xl's configuration is needed, another's will not do.
    let stream = Sample::new(Guest::Hvm).libxl(Vec::new()).unwrap();
    let error = read(&behind_libvirt(2, &stream), Format::Xl, Reserved::Ignore).unwrap_err();
    assert!(error.to_string().contains("virsh restore"), "{error}");
}

#[test]
fn what_follows_on_a_device_is_not_the_streams() {
    fn verify(input: Input<&[u8]>) -> Result<unmoved_stream::Report, Error> {
        unmoved_stream::verify(input, Format::Detect)
    }

    let mut bytes = Sample::new(Guest::Hvm).xl(Vec::new()).unwrap();
    bytes.extend(noise(5000));
    let error = verify(Input::new(&bytes[..])).unwrap_err();
    assert!(
        error.to_string().contains("bytes follow the end"),
        "{error}"
    );
    let report = verify(Input::new(&bytes[..]).device()).unwrap();
    assert!(report.notes[0].contains("device"), "{:?}", report.notes);
    // But the end has to be there.
    bytes.truncate(bytes.len() - 5010);
    verify(Input::new(&bytes[..]).device()).unwrap_err();
}

/// Chains of errors are printed whole: whatever is part of a message must not be its source, too.
#[test]
fn an_error_says_what_is_wrong_once() {
    use std::error::Error as _;
    let mut bytes = Sample::new(Guest::Hvm).xl(Vec::new()).unwrap();
    bytes.truncate(100);
    let error = read(&bytes, Format::Detect, Reserved::Refuse).unwrap_err();
    assert!(error.to_string().contains("truncated"), "{error}");
    assert!(error.source().is_none());
    let io = || std::io::Error::other("the disk is gone");
    for defect in [
        unmoved_stream::Defect::from(io()),
        unmoved_stream::Defect::Output(io()),
    ] {
        let text = defect.to_string();
        let mut source = defect.source();
        while let Some(error) = source {
            assert!(!text.contains(&error.to_string()), "{text}");
            source = error.source();
        }
    }
}
