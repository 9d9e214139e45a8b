//! A set of frames, with one bit for each, because a guest may have hundreds of millions.

/// A set of frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bitmap(pub(crate) Vec<u64>);

impl Bitmap {
    /// An empty set with space for all frames below `end`, an eighth of a byte for each, in one allocation.
    pub(crate) fn below(end: u64) -> Self {
        Self(vec![0; usize::try_from(end.div_ceil(64)).unwrap_or(0)])
    }

    /// Adds a frame; allocates only if the frame is beyond the space.
    pub(crate) fn insert(&mut self, frame: u64) {
        // A frame number has at most 52 bits, and a guest's numbers have far fewer.
        let index = usize::try_from(frame / 64).unwrap_or(usize::MAX);
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        self.0[index] |= 1 << (frame % 64);
    }

    /// Removes a frame.
    pub(crate) fn take_out(&mut self, frame: u64) {
        let word = usize::try_from(frame / 64).ok();
        if let Some(word) = word.and_then(|index| self.0.get_mut(index)) {
            *word &= !(1 << (frame % 64));
        }
    }

    /// The bits of 64 frames, starting with 64 times this number.
    pub(crate) fn word(&self, index: u64) -> u64 {
        let word = usize::try_from(index).ok();
        word.and_then(|index| self.0.get(index).copied())
            .unwrap_or(0)
    }

    /// The frames, in order.
    pub(crate) fn frames(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().zip(0_u64..).flat_map(|(word, index)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.checked_sub(1)?;
                Some(index * 64 + u64::from(bit))
            })
        })
    }

    /// Number of frames.
    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Adds the frames of another set.
    pub(crate) fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word |= other;
        }
    }

    /// Removes the frames of another set.
    pub(crate) fn remove(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word &= !other;
        }
    }

    /// Number of frames that are also in another set.
    pub(crate) fn common(&self, other: &Self) -> u64 {
        let words = self.0.iter().zip(&other.0);
        words
            .map(|(one, other)| u64::from((one & other).count_ones()))
            .sum()
    }
}

impl Extend<u64> for Bitmap {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, frames: I) {
        frames.into_iter().for_each(|frame| self.insert(frame));
    }
}

impl FromIterator<u64> for Bitmap {
    fn from_iter<I: IntoIterator<Item = u64>>(frames: I) -> Self {
        let mut set = Self::default();
        set.extend(frames);
        set
    }
}

#[cfg(test)]
mod tests {
    use super::Bitmap;

    #[test]
    fn a_bitmap_gives_its_frames_in_order() {
        let one = Bitmap(vec![0b1001, 0, 1 << 63, u64::MAX]);
        let all = [0, 3, 191].into_iter().chain(192..256);
        assert_eq!(one.frames().collect::<Vec<_>>(), all.collect::<Vec<_>>());
        let one = Bitmap(vec![0b1001, 0, 1 << 63]);
        assert_eq!(one.len(), 3);
        assert_eq!(one.common(&Bitmap(vec![0b1110, 7])), 1);
        let mut sum = Bitmap(vec![0b0010]);
        sum.add(&one);
        assert_eq!(sum.frames().collect::<Vec<_>>(), [0, 1, 3, 191]);
        assert_eq!(
            (sum.word(0), sum.word(2), sum.word(3)),
            (0b1011, 1 << 63, 0)
        );
        for frame in [3, 5, 64 * 1000] {
            sum.take_out(frame);
        }
        assert_eq!(sum.frames().collect::<Vec<_>>(), [0, 1, 191]);
    }

    #[test]
    fn the_room_for_frames_is_taken_once() {
        let mut set = Bitmap::below(130);
        assert_eq!((set.0.len(), set.0.capacity()), (3, 3));
        set.extend([0, 129]);
        assert_eq!(set.frames().collect::<Vec<_>>(), [0, 129]);
        assert_eq!(set.0.capacity(), 3);
        set.insert(64 * 5);
        assert_eq!(set.len(), 3);
    }
}
