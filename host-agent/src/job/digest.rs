//! Digests of a guest, which its two copies are compared by before one of them runs.
//!
//! A digest is 128 bits of XXH3, which every processor computes as fast as it reads memory.  It detects what
//! was lost, left out or corrupted.  It is no proof against an attacker; TLS and certificates are for that.

use xxhash_rust::xxh3::xxh3_128;

/// 128 bits of XXH3, little-endian.
pub type Digest = [u8; 16];

/// The digest of these bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> Digest {
    xxh3_128(bytes).to_le_bytes()
}

/// The digest of one MiB of a guest's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The first of its frames: a multiple of [`Chunk::FRAMES`].
    pub first: u64,
    /// One bit for each frame, the first in bit 0 of word 0: whether the digest covers it.
    pub counted: [u64; 4],
    /// The digest of the contents of those frames, in order.
    pub digest: Digest,
}
const _: () = assert!(size_of::<Chunk>() == 56);

impl Chunk {
    /// Number of frames in a chunk.
    pub const FRAMES: u64 = 256;

    /// The covered frames, in order.
    pub fn frames(&self) -> impl Iterator<Item = u64> + use<> {
        let (first, counted) = (self.first, self.counted);
        (0..Self::FRAMES)
            .filter(move |bit| counted[(bit / 64) as usize] >> (bit % 64) & 1 != 0)
            .map(move |bit| first + bit)
    }

    /// Marks a frame of this chunk as covered.
    pub const fn count(&mut self, frame: u64) {
        let bit = frame % Self::FRAMES;
        self.counted[(bit / 64) as usize] |= 1 << (bit % 64);
    }

    /// Whether no frame is covered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counted == [0; 4]
    }
}

/// Digests of a guest's last state: of the bodies of its records in the stream; all zero for a record that
/// never came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateDigests {
    /// X86_TSC_INFO.
    pub tsc: Digest,
    /// HVM_CONTEXT.
    pub context: Digest,
    /// HVM_PARAMS.
    pub params: Digest,
}

/// Digests of a guest, on their way to the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digests<'a> {
    /// Of memory, in ascending order of frames; more may follow.
    Memory(&'a [Chunk]),
    /// Of the state; nothing follows.
    State(StateDigests),
}

#[cfg(test)]
mod tests {
    use super::{Chunk, digest};

    #[test]
    fn a_digest_is_that_of_the_algorithms_specification() {
        // From its own description: of nothing, with the seed 0.
        assert_eq!(
            u128::from_le_bytes(digest(b"")),
            0x99aa_06d3_0147_98d8_6001_c324_468d_497f
        );
    }

    #[test]
    fn frames_of_a_chunk_are_given_as_they_were_counted() {
        let mut chunk = Chunk {
            first: 512,
            ..Chunk::default()
        };
        assert!(chunk.is_empty());
        for frame in [767, 512, 575, 576] {
            chunk.count(frame);
        }
        assert_eq!(chunk.frames().collect::<Vec<_>>(), [512, 575, 576, 767]);
    }
}
