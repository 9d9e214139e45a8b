//! Digests of a guest, by which its two copies are compared before one of them is let run.
//!
//! A digest is 128 bits of XXH3, which is as fast as memory is read, on every processor.  It finds what was
//! lost, left out or garbled.  It is no proof against somebody who wants to deceive: that is what TLS and
//! certificates are for.

use xxhash_rust::xxh3::xxh3_128;

/// 128 bits of XXH3, little-endian.
pub type Digest = [u8; 16];

/// The digest of these bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> Digest {
    xxh3_128(bytes).to_le_bytes()
}

/// What a MiB of a guest's frames is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The first of its frames: a multiple of [`Chunk::FRAMES`].
    pub first: u64,
    /// One bit for each frame, the first in bit 0 of word 0: whether it is counted.
    pub counted: [u64; 4],
    /// Of the contents of those, one after the other.
    pub digest: Digest,
}
const _: () = assert!(size_of::<Chunk>() == 56);

impl Chunk {
    /// Frames that it is about.
    pub const FRAMES: u64 = 256;

    /// The frames that are counted, in order.
    pub fn frames(&self) -> impl Iterator<Item = u64> + use<> {
        let (first, counted) = (self.first, self.counted);
        (0..Self::FRAMES)
            .filter(move |bit| counted[(bit / 64) as usize] >> (bit % 64) & 1 != 0)
            .map(move |bit| first + bit)
    }

    /// Counts a frame that is one of its.
    pub const fn count(&mut self, frame: u64) {
        let bit = frame % Self::FRAMES;
        self.counted[(bit / 64) as usize] |= 1 << (bit % 64);
    }

    /// If no frame is counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counted == [0; 4]
    }
}

/// What the last state of a guest is, as it stands in the stream: digests of the bodies of records, of one that
/// never came all zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateDigests {
    /// X86_TSC_INFO.
    pub tsc: Digest,
    /// HVM_CONTEXT.
    pub context: Digest,
    /// HVM_PARAMS.
    pub params: Digest,
}

/// Digests of a guest, on their way to where they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digests<'a> {
    /// Of memory, by growing frames; more may follow.
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
