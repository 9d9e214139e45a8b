//! The domain's memory as it is divided at boot: what is free, what is taken.

use xen_abi::Mfn;

/// Frames below 4 GiB, all that the boot page tables map.
const LOW: u64 = 1 << 20;

/// Ranges of free frames, ascending, as `[start, end)`.
///
/// Its storage is an array, since the heap is made from what it hands out.
#[derive(Clone, Copy, Debug, Default)]
pub struct FreeMemory {
    ranges: [(u64, u64); 32],
    len: usize,
}

impl FreeMemory {
    /// Adds a range of RAM.
    pub fn add(&mut self, start: u64, end: u64) {
        if start < end && self.len < self.ranges.len() {
            self.ranges[self.len] = (start, end);
            self.len += 1;
        }
    }

    /// Adds a frame that was taken before, to a range that it touches if there is one.
    pub fn add_frame(&mut self, frame: u64) {
        let touching = self.ranges[..self.len]
            .iter_mut()
            .find(|range| range.1 == frame);
        match touching {
            Some(range) => range.1 = frame + 1,
            None => self.add(frame, frame + 1),
        }
    }

    /// Takes a range out.
    pub fn reserve(&mut self, start: u64, end: u64) {
        let old = *self;
        self.len = 0;
        for &(from, to) in &old.ranges[..old.len] {
            self.add(from, to.min(start));
            self.add(from.max(end), to);
        }
    }

    /// Takes `count` adjacent frames below 4 GiB.
    pub fn take_low(&mut self, count: u64) -> Option<Mfn> {
        let low = |&(start, end): &(u64, u64)| (start, end.min(LOW));
        self.take_from(count, low)
    }

    /// Takes `count` adjacent frames, above 4 GiB if there are as many: what lies below is for what
    /// is needed before there are the shim's own page tables.
    pub fn take(&mut self, count: u64) -> Option<Mfn> {
        let high = |&(start, end): &(u64, u64)| (start.max(LOW), end);
        self.take_from(count, high).or_else(|| self.take_low(count))
    }

    fn take_from(&mut self, count: u64, part: fn(&(u64, u64)) -> (u64, u64)) -> Option<Mfn> {
        let fits = |&(start, end): &(u64, u64)| end.saturating_sub(start) >= count;
        let (start, _) = self.ranges().iter().map(part).find(fits)?;
        self.reserve(start, start + count);
        Some(Mfn(start))
    }

    /// Takes the highest `count` frames, or all if there are fewer.
    pub fn take_last(&mut self, mut count: u64) -> Self {
        let mut taken = Self::default();
        while count > 0
            && let Some(&(start, end)) = self.ranges().iter().max_by_key(|range| range.1)
        {
            let from = end.saturating_sub(count).max(start);
            self.reserve(from, end);
            taken.add(from, end);
            count -= end - from;
        }
        taken
    }

    /// The ranges.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges[..self.len]
    }

    /// The number of frames.
    pub fn frames(&self) -> u64 {
        self.ranges().iter().map(|&(start, end)| end - start).sum()
    }

    /// The longest range below 4 GiB.
    pub fn longest(&self) -> (u64, u64) {
        let below = self
            .ranges()
            .iter()
            .map(|&(start, end)| (start, end.min(LOW)));
        below
            .max_by_key(|&(start, end)| end.saturating_sub(start))
            .unwrap_or((0, 0))
    }
}

#[cfg(test)]
mod tests {
    use xen_abi::Mfn;

    use super::FreeMemory;

    fn memory(ranges: &[(u64, u64)]) -> FreeMemory {
        let mut memory = FreeMemory::default();
        ranges
            .iter()
            .for_each(|&(start, end)| memory.add(start, end));
        memory
    }

    #[test]
    fn what_needs_no_place_below_4_gib_gets_none_there_if_it_can() {
        let mut split = memory(&[(1, 0xf_0000), (1 << 20, 3 << 20)]);
        assert_eq!(split.take_low(0x8_0000), Some(Mfn(1)));
        assert_eq!(split.take(0x8_0000), Some(Mfn(1 << 20)));
        assert_eq!(split.take(2 << 20), None);
        assert_eq!(split.take_low(0x8_0000), None, "it is not all below");
        let mut low = memory(&[(1, 0x1_0000)]);
        assert_eq!(low.take(16), Some(Mfn(1)));
        assert_eq!(low.frames(), 0xffff - 16);
    }

    #[test]
    fn the_last_frames_are_taken_from_the_end() {
        let mut split = memory(&[(1, 100), (200, 300)]);
        let taken = split.take_last(150);
        assert_eq!(taken.ranges(), [(200, 300), (50, 100)]);
        assert_eq!(split.ranges(), [(1, 50)]);
        assert_eq!(split.take_last(1000).frames(), 49);
        assert_eq!(split.take_last(1).frames(), 0);
    }
}
