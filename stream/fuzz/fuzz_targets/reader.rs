//! Any bytes as a stream of any layer: read and skipped, verified and listed, with the same result.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use unmoved_stream::{Event, Format, Input, MAX_HELD, Reader, Reserved, inspect, verify};

fuzz_target!(|bytes: &[u8]| {
    let read = verify(Input::new(bytes), Format::Detect);
    let jumped = verify(Input::seekable(Cursor::new(bytes)), Format::Detect);
    match (&read, &jumped) {
        (Ok(one), Ok(other)) => assert_eq!(one, other),
        (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string()),
        _ => panic!("reading and jumping disagree: {read:?}, {jumped:?}"),
    }
    if read.is_ok() {
        assert_eq!(forward(bytes).unwrap(), bytes);
        inspect(Input::new(bytes), Format::Detect, &mut Vec::new()).unwrap();
    }
});

/// Takes the stream apart and puts it together again; what follows the end is put there as it is.
fn forward(bytes: &[u8]) -> Result<Vec<u8>, unmoved_stream::Error> {
    let mut reader = Reader::new(Input::new(bytes), Format::Detect, Reserved::Refuse);
    let mut out = Vec::new();
    while let Some(event) = reader.next_event()? {
        match event {
            Event::Save(header) => out.extend(header.encode()),
            Event::Libxl(header) => out.extend(header.encode()),
            Event::Libxc(image, domain) => {
                out.extend(image.encode());
                out.extend(domain.encode());
            }
            Event::Record(mut record) => {
                assert!(record.header().length as usize <= MAX_HELD);
                record.forward(&mut out)?;
            }
        }
    }
    let (rest, ahead) = reader.into_input().into_parts();
    out.extend(ahead);
    out.extend(rest);
    Ok(out)
}
