//! Any bytes as records behind headers that are right, read as a receiver reads them.
//!
//! The first byte chooses the headers, the second how much of each record is looked at.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unmoved_stream::libxc::{DomainHeader, DomainType, ImageHeader};
use unmoved_stream::xl::SaveHeader;
use unmoved_stream::{Event, Format, Input, Reader, Reserved, libxl};

fuzz_target!(|input: &[u8]| {
    let [headers, look, records @ ..] = input else {
        return;
    };
    let mut look = *look;
    let mut stream = Vec::new();
    if headers & 1 != 0 {
        stream.extend(SaveHeader::new("{}").encode());
    }
    if headers & 3 != 0 {
        stream.extend(libxl::Header::default().encode());
    }
    if headers & 4 == 0 {
        if headers & 3 != 0 {
            stream.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        }
        let version = 2 + u32::from(headers >> 3 & 1);
        stream.extend(ImageHeader { version }.encode());
        let domain = DomainHeader {
            kind: match headers & 16 {
                0 => DomainType::Pv,
                _ => DomainType::Hvm,
            },
            xen_major: 4,
            xen_minor: 17,
        };
        stream.extend(domain.encode());
    }
    stream.extend_from_slice(records);
    let reserved = match headers & 32 {
        0 => Reserved::Refuse,
        _ => Reserved::Ignore,
    };
    let mut reader = Reader::new(Input::new(stream.as_slice()), Format::Detect, reserved);
    loop {
        let event = match reader.next_event() {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err(error) => {
                assert!(error.offset <= stream.len() as u64, "{error}");
                assert!(reader.next_event().is_err());
                return;
            }
        };
        if let Event::Record(mut record) = event {
            look = look.rotate_left(1);
            let seen = match look & 3 {
                0 => Ok(()),
                1 => record.bytes().map(drop),
                2 => record.pages().map(|pages| {
                    let contents = pages
                        .iter()
                        .flat_map(|p| p.iter())
                        .filter(|p| p.1.is_some());
                    let count = contents.count() * 4096;
                    assert_eq!(pages.map_or(0, |pages| pages.contents.len()), count);
                }),
                _ => record.forward(&mut std::io::sink()),
            };
            if let Err(error) = seen {
                assert!(!error.to_string().contains('\n'));
            }
        }
    }
    let _ = reader.expect_end();
});
