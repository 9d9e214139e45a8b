//! The decoder against the library: what one packs or unpacks, the other must agree with.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};
use proptest::sample::Index;
use proptest::{prop_assert, prop_assert_eq};
use ruzstd::decoding::FrameDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::unpack;

fn library(data: &[u8], space: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; space];
    let len = FrameDecoder::new().decode_all(data, &mut out).ok()?;
    out.truncate(len);
    Some(out)
}

fn ours(data: &[u8], space: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; space];
    let len = unpack(data, &mut out)?;
    out.truncate(len);
    Some(out)
}

/// Text with repetitions near and far, and stretches of noise.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        vec(any::<u8>(), 0..300),
        (any::<u8>(), 1usize..2000).prop_map(|(byte, len)| vec![byte; len]),
        (vec(b'a'..b'h', 1..40), 1usize..60).prop_map(|(word, times)| word.repeat(times)),
        vec(0u8..4, 0..2000),
    ];
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn what_the_library_packs_unpacks(text in text(), fast in any::<bool>()) {
        let level = if fast { CompressionLevel::Fastest } else { CompressionLevel::Uncompressed };
        let packed = compress_to_vec(&text[..], level);
        prop_assert_eq!(ours(&packed, text.len()), Some(text.clone()));
        if !text.is_empty() {
            prop_assert_eq!(ours(&packed, text.len() - 1), None);
        }
    }

    #[test]
    fn damage_is_refused_or_read_as_the_library_reads_it(
        text in text(),
        changes in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let mut packed = compress_to_vec(&text[..], CompressionLevel::Fastest);
        for (at, value) in changes {
            let at = at.index(packed.len());
            packed[at] = value;
        }
        if let Some(ours) = ours(&packed, text.len() + 1000) {
            // The library refuses large windows, which do not matter here.
            if let Some(library) = library(&packed, text.len() + 1000) {
                prop_assert_eq!(ours, library);
            }
        }
    }

    #[test]
    fn random_frames_are_refused_or_bounded(body in vec(any::<u8>(), 0..400)) {
        let frame = [&[0x28, 0xb5, 0x2f, 0xfd][..], &body].concat();
        prop_assert!(ours(&frame, 1000).is_none_or(|out| out.len() <= 1000));
        // A compressed block with nothing wrong in front of it.
        let header = (body.len() as u32) << 3 | 2 << 1 | 1;
        let block = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0][..], &header.to_le_bytes()[..3], &body].concat();
        prop_assert!(ours(&block, 1000).is_none_or(|out| out.len() <= 1000));
    }
}
