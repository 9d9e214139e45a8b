//! A set of frames.

/// A set of frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bitmap(pub(crate) Vec<u64>);

impl Bitmap {
    /// The frames, in order.
    pub(crate) fn frames(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().zip(0_u64..).flat_map(|(word, index)| {
            let bits = (0..64).filter(move |bit| word >> bit & 1 == 1);
            bits.map(move |bit| index * 64 + bit)
        })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Adds the frames of another one.
    pub(crate) fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word |= other;
        }
    }

    /// Takes the frames of another one out.
    pub(crate) fn remove(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word &= !other;
        }
    }

    /// How many of them are in another one too.
    pub(crate) fn common(&self, other: &Self) -> u64 {
        let words = self.0.iter().zip(&other.0);
        words
            .map(|(one, other)| u64::from((one & other).count_ones()))
            .sum()
    }
}

impl FromIterator<u64> for Bitmap {
    fn from_iter<I: IntoIterator<Item = u64>>(frames: I) -> Self {
        let mut words = Vec::new();
        for frame in frames {
            // A frame number is at most 52 bits wide, and those of a guest far fewer.
            let index = usize::try_from(frame / 64).unwrap_or(usize::MAX);
            if words.len() <= index {
                words.resize(index + 1, 0);
            }
            words[index] |= 1 << (frame % 64);
        }
        Self(words)
    }
}

#[cfg(test)]
mod tests {
    use super::Bitmap;

    #[test]
    fn a_bitmap_gives_its_frames_in_order() {
        let one = Bitmap(vec![0b1001, 0, 1 << 63]);
        assert_eq!(one.frames().collect::<Vec<_>>(), [0, 3, 191]);
        assert_eq!(one.len(), 3);
        assert_eq!(one.common(&Bitmap(vec![0b1110, 7])), 1);
        let mut sum = Bitmap(vec![0b0010]);
        sum.add(&one);
        assert_eq!(sum.frames().collect::<Vec<_>>(), [0, 1, 3, 191]);
        sum.remove(&Bitmap::from_iter([3, 5]));
        assert_eq!(sum.frames().collect::<Vec<_>>(), [0, 1, 191]);
    }
}
