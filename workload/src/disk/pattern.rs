//! One 4 KiB block: a stamp that says which run wrote it, where and when, and a body that follows
//! from the stamp, so that any wrong, old, torn or misplaced block is recognised.

use std::fmt;

/// Bytes in a block; the unit of all disk traffic.
pub const BLOCK: usize = 4096;

const MAGIC: u64 = 0x6b6c_426e_766f_6d55;
const HEADER: usize = 32;

/// Who wrote a block, where, and its number among the writes of the run (from 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The run's number, different for each run.
    pub run: u64,
    /// The block's place on the disk, in blocks.
    pub block: u64,
    /// The write's number.
    pub sequence: u64,
}

/// What is wrong with a block that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It has no stamp: never written, or overwritten by something else.
    Unstamped,
    /// It is whole, but another block than was expected here: stale, lost or misplaced.
    Other(Stamp),
    /// Its stamp is good but the body is not, from this byte on.
    Damaged {
        /// The first wrong byte's offset in the block (to 8 bytes).
        offset: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unstamped => out.write_str("no stamp"),
            Self::Other(stamp) => write!(
                out,
                "holds run {:x} block {} write {}",
                stamp.run, stamp.block, stamp.sequence
            ),
            Self::Damaged { offset } => write!(out, "damaged from byte {offset}"),
        }
    }
}

/// The body's 64-bit words: a linear congruential sequence seeded by the stamp.  One multiplication
/// a word, because the guest runs in an emulator.
struct Body(u64);

impl Body {
    fn of(stamp: Stamp) -> Self {
        let mut seed = stamp.run ^ stamp.block.rotate_left(24) ^ stamp.sequence.rotate_left(48);
        seed = (seed ^ (seed >> 31)).wrapping_mul(0x9fb2_1c65_1e98_df25);
        Self(seed ^ (seed >> 29))
    }
}

impl Iterator for Body {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self
            .0
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        Some(self.0)
    }
}

fn word(block: &[u8], index: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[index * 8..index * 8 + 8]);
    u64::from_le_bytes(bytes)
}

/// Fills a block (of [`BLOCK`] bytes) with what `stamp` implies.
pub fn fill(block: &mut [u8], stamp: Stamp) {
    let (header, body) = block.split_at_mut(HEADER);
    let fields = [MAGIC, stamp.run, stamp.block, stamp.sequence];
    for (to, field) in header.chunks_exact_mut(8).zip(fields) {
        to.copy_from_slice(&field.to_le_bytes());
    }
    for (to, value) in body.chunks_exact_mut(8).zip(Body::of(stamp)) {
        to.copy_from_slice(&value.to_le_bytes());
    }
}

/// Reads a block's stamp and checks that the body agrees with it.
///
/// # Errors
/// [`Fault::Unstamped`] or [`Fault::Damaged`].
pub fn identify(block: &[u8]) -> Result<Stamp, Fault> {
    if block.len() != BLOCK || word(block, 0) != MAGIC {
        return Err(Fault::Unstamped);
    }
    let stamp = Stamp {
        run: word(block, 1),
        block: word(block, 2),
        sequence: word(block, 3),
    };
    let wrong = block[HEADER..]
        .chunks_exact(8)
        .zip(Body::of(stamp))
        .position(|(found, value)| found != value.to_le_bytes());
    match wrong {
        None => Ok(stamp),
        Some(index) => Err(Fault::Damaged {
            offset: HEADER + index * 8,
        }),
    }
}

/// Checks that a block is exactly the one that `expected` names.
///
/// # Errors
/// What it is instead.
pub fn check(block: &[u8], expected: Stamp) -> Result<(), Fault> {
    let found = identify(block)?;
    if found == expected {
        Ok(())
    } else {
        Err(Fault::Other(found))
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Fault, HEADER, Stamp, check, fill, identify};
    use proptest::prelude::{any, proptest};

    const STAMP: Stamp = Stamp {
        run: 7,
        block: 1234,
        sequence: 99,
    };

    #[test]
    fn a_block_is_what_it_was_written_as() {
        let mut block = [0; BLOCK];
        fill(&mut block, STAMP);
        assert_eq!(check(&block, STAMP), Ok(()));
        let newer = Stamp {
            sequence: 100,
            ..STAMP
        };
        assert_eq!(check(&block, newer), Err(Fault::Other(STAMP)));
        assert_eq!(identify(&[0; BLOCK]), Err(Fault::Unstamped));
    }

    #[test]
    fn a_torn_block_is_recognised_where_it_tears() {
        let mut block = [0; BLOCK];
        fill(&mut block, STAMP);
        let mut newer = [0; BLOCK];
        fill(
            &mut newer,
            Stamp {
                sequence: 100,
                ..STAMP
            },
        );
        newer[512..].copy_from_slice(&block[512..]);
        assert_eq!(identify(&newer), Err(Fault::Damaged { offset: 512 }));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_found(at in HEADER..BLOCK, bit in 0..8_u32, run: u64, sequence in any::<u64>()) {
            let stamp = Stamp { run, block: 3, sequence };
            let mut block = [0; BLOCK];
            fill(&mut block, stamp);
            block[at] ^= 1 << bit;
            assert_eq!(check(&block, stamp), Err(Fault::Damaged { offset: at & !7 }));
        }

        #[test]
        fn any_flipped_header_bit_is_found(at in 0..HEADER, bit in 0..8_u32) {
            let mut block = [0; BLOCK];
            fill(&mut block, STAMP);
            block[at] ^= 1 << bit;
            assert!(check(&block, STAMP).is_err());
        }
    }
}
