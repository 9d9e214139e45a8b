//! Any bytes as a legacy stream: refused, or converted to a stream that is valid.
//!
//! The first byte chooses what is told about the stream and what is to be written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unmoved_stream::legacy::{Options, Target, Width, convert};
use unmoved_stream::libxc::DomainType;
use unmoved_stream::{Format, Input, verify};

fuzz_target!(|input: &[u8]| {
    let [choice, legacy @ ..] = input else {
        return;
    };
    let options = Options {
        width: match choice & 3 {
            1 => Some(Width::Bits32),
            2 => Some(Width::Bits64),
            _ => None,
        },
        guest: match choice >> 2 & 3 {
            1 => Some(DomainType::Pv),
            2 => Some(DomainType::Hvm),
            _ => None,
        },
        target: match choice & 16 {
            0 => Target::Libxl,
            _ => Target::Libxc,
        },
        skip_device_model: choice & 32 != 0,
        expect_end: choice & 64 != 0,
    };
    let mut out = Vec::new();
    match convert(Input::new(legacy), &mut out, &options) {
        Ok(converted) => {
            assert!(converted.bytes <= legacy.len() as u64);
            let report = verify(Input::new(out.as_slice()), Format::Detect)
                .unwrap_or_else(|error| panic!("converted to an invalid stream: {error}"));
            assert_eq!(report.version, 3);
            assert_eq!(report.frames, converted.frames);
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
});
