//! Readers of single bits: forwards for table descriptions, backwards for everything else.

/// Most bits that one read yields.
pub(super) const MAX_READ: u32 = 56;

/// Reads from the first byte on, least significant bit first.
#[derive(Clone, Debug)]
pub(super) struct Forward<'a> {
    data: &'a [u8],
    /// Bits read so far.
    at: usize,
}

impl<'a> Forward<'a> {
    pub(super) const fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    /// Looks at the next `count` bits, at most 16; bits behind the end are zero.
    pub(super) fn peek(&self, count: u32) -> u32 {
        let mut word = [0; 4];
        let rest = self.data.get(self.at / 8..).unwrap_or(&[]);
        rest.iter()
            .zip(&mut word)
            .for_each(|(from, to)| *to = *from);
        u32::from_le_bytes(word) >> (self.at % 8) & ((1 << count) - 1)
    }

    /// Moves on by `count` bits.
    pub(super) const fn skip(&mut self, count: u32) {
        self.at += count as usize;
    }

    /// Returns what follows the byte that was read from last; `None` if the end was overrun.
    pub(super) fn rest(&self) -> Option<&'a [u8]> {
        self.data.get(self.at.div_ceil(8)..)
    }
}

/// Reads from the last byte on, most significant bit first.
///
/// The topmost bit that is set only marks where the bits start.
#[derive(Clone, Debug)]
pub(super) struct Backward<'a> {
    data: &'a [u8],
    /// Bits that are left; below zero when more were read than there were.
    left: isize,
}

impl<'a> Backward<'a> {
    /// `None` if there is no mark.
    pub(super) fn new(data: &'a [u8]) -> Option<Self> {
        let mark = data.last()?.checked_ilog2()?;
        let left = (data.len() - 1) * 8 + mark as usize;
        Some(Self {
            data,
            left: isize::try_from(left).ok()?,
        })
    }

    /// Returns how many bits are left; below zero when more were read than there were.
    pub(super) const fn left(&self) -> isize {
        self.left
    }

    /// Looks at the next `count` bits, at most [`MAX_READ`]; bits beyond the end are zero.
    #[inline]
    pub(super) fn peek(&self, count: u32) -> u64 {
        let mask = (1 << count) - 1;
        let low = self.left - count as isize;
        if let Ok(low) = usize::try_from(low) {
            let word = match self.data.get(low / 8..).and_then(<[u8]>::first_chunk) {
                Some(word) => u64::from_le_bytes(*word),
                None => self.word_near_end(low / 8),
            };
            return word >> (low % 8) & mask;
        }
        // The lowest bits are missing.
        if self.left <= 0 {
            return 0;
        }
        let there = self.word_near_end(0) & ((1 << self.left) - 1);
        there << low.unsigned_abs() & mask
    }

    /// Moves on by `count` bits.
    #[inline]
    pub(super) const fn skip(&mut self, count: u32) {
        self.left -= count as isize;
    }

    /// Reads `count` bits, at most [`MAX_READ`].
    #[inline]
    pub(super) fn read(&mut self, count: u32) -> u64 {
        let bits = self.peek(count);
        self.skip(count);
        bits
    }

    #[cold]
    fn word_near_end(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        let rest = self.data.get(at..).unwrap_or(&[]);
        rest.iter()
            .zip(&mut word)
            .for_each(|(from, to)| *to = *from);
        u64::from_le_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, proptest};
    use proptest::prop_assert_eq;

    use super::{Backward, Forward, MAX_READ};

    fn bits_of(data: &[u8]) -> Vec<u64> {
        let bit = |index: usize| u64::from(data[index / 8] >> (index % 8) & 1);
        (0..data.len() * 8).map(bit).collect()
    }

    proptest! {
        #[test]
        fn both_readers_see_the_bits_in_their_order(
            data in vec(any::<u8>(), 1..40),
            counts in vec(0u32..=MAX_READ, 0..20),
        ) {
            let bits = bits_of(&data);
            let mut forward = Forward::new(&data);
            let mut at = 0;
            for count in counts.iter().map(|count| count % 17) {
                let bit = |n: usize| bits.get(at + n).copied().unwrap_or(0) << n;
                prop_assert_eq!(u64::from(forward.peek(count)), (0..count as usize).map(bit).sum());
                forward.skip(count);
                at += count as usize;
            }
            let Some(mut backward) = Backward::new(&data) else {
                prop_assert_eq!(data.last(), Some(&0));
                return Ok(());
            };
            let mark = bits.iter().rposition(|&bit| bit == 1).expect("a mark");
            let mut left = bits[..mark].to_vec();
            for count in counts {
                let expected = (0..count).fold(0, |sum, _| sum << 1 | left.pop().unwrap_or(0));
                prop_assert_eq!(backward.read(count), expected);
            }
        }
    }
}
