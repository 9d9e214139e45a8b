//! Digests of a guest as they travel: the content of two kinds of data frames.
//!
//! Of a chunk of memory, 56 bytes: its first frame's number (8, little-endian), a bitmap of the frames that are
//! counted (32; a byte's lowest bit first), the digest (16).  Of the state, 48 bytes: the digests of
//! X86_TSC_INFO, HVM_CONTEXT and HVM_PARAMS.

use crate::job::{Chunk, StateDigests};

/// Bytes of a chunk.
pub(super) const CHUNK: usize = 56;
/// Most chunks in a frame.
pub(super) const CHUNKS_MOST: usize = 1 << 14;
/// Bytes of the state's.
pub(super) const STATE: usize = 48;

pub(super) fn encode(chunks: &[Chunk]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(chunks.len() * CHUNK);
    for chunk in chunks {
        bytes.extend(chunk.first.to_le_bytes());
        bytes.extend(chunk.counted.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(chunk.digest);
    }
    bytes
}

/// The chunks of a frame; whether they can be is for who takes them to say.
pub(super) fn decode(bytes: &[u8]) -> Vec<Chunk> {
    let (chunks, _) = bytes.as_chunks::<CHUNK>();
    let chunk = |bytes: &[u8; CHUNK]| {
        let (words, digest) = bytes.split_at(CHUNK - 16);
        let mut numbers = [0; 5];
        for (number, word) in numbers.iter_mut().zip(words.as_chunks().0) {
            *number = u64::from_le_bytes(*word);
        }
        let [first, counted @ ..] = numbers;
        let mut chunk = Chunk {
            first,
            counted,
            ..Chunk::default()
        };
        chunk.digest.copy_from_slice(digest);
        chunk
    };
    chunks.iter().map(chunk).collect()
}

pub(super) fn encode_state(state: &StateDigests) -> [u8; STATE] {
    let mut bytes = [0; STATE];
    bytes[..16].copy_from_slice(&state.tsc);
    bytes[16..32].copy_from_slice(&state.context);
    bytes[32..].copy_from_slice(&state.params);
    bytes
}

pub(super) fn decode_state(bytes: &[u8]) -> Option<StateDigests> {
    let (digests, []) = bytes.as_chunks() else {
        return None;
    };
    match *digests {
        [tsc, context, params] => Some(StateDigests {
            tsc,
            context,
            params,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, STATE, decode, decode_state, encode, encode_state};
    use crate::job::{Chunk, StateDigests};

    #[test]
    fn digests_are_read_as_they_are_written() {
        let chunk = Chunk {
            first: 0x0102_0304_0500,
            counted: [1, 2, 3, u64::MAX],
            digest: *b"0123456789abcdef",
        };
        let bytes = encode(&[chunk, Chunk::default()]);
        assert_eq!(bytes.len(), 2 * CHUNK);
        assert_eq!(bytes[..9], [0, 5, 4, 3, 2, 1, 0, 0, 1]);
        assert_eq!(bytes[32..42], *b"\xff\xff\xff\xff\xff\xff\xff\xff01");
        assert_eq!(decode(&bytes), [chunk, Chunk::default()]);
        let state = StateDigests {
            tsc: [1; 16],
            context: [2; 16],
            params: [3; 16],
        };
        let bytes = encode_state(&state);
        assert_eq!(
            (bytes[0], bytes[16], bytes[STATE - 1]),
            (1, 2, 3),
            "in the order of the stream"
        );
        assert_eq!(decode_state(&bytes), Some(state));
        assert_eq!(decode_state(&bytes[1..]), None);
        assert_eq!(decode_state(&bytes[16..]), None);
    }
}
