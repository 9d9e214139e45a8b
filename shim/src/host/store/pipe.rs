//! One direction of a ring page that carries bytes: the producer and consumer side of a buffer
//! with two free-running indexes.
//!
//! The other side can write anything into the page at any moment.  Both indexes are read once and
//! checked before use, so that a lie costs the liar its connection, and costs nobody else anything.  The
//! guest's xenstore ring, the real one, and rings of the same kind use this.

use core::sync::atomic::{Ordering, fence};

use xen_abi::Mfn;

use crate::mem::Frames;

/// The indexes are further apart than the buffer is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadIndex;

/// Where one direction lies in its page.
#[derive(Clone, Copy, Debug)]
pub struct Pipe {
    /// Byte offset of the buffer.
    pub buffer: usize,
    /// Bytes in the buffer, a power of two.
    pub size: u32,
    /// Byte offset of the consumer's index.
    pub consumer: usize,
    /// Byte offset of the producer's index.
    pub producer: usize,
}

impl Pipe {
    /// Consumer and producer index, checked.
    fn indexes(&self, frames: &dyn Frames, page: Mfn) -> Result<(u32, u32), BadIndex> {
        // Each once. The other end may change its index, or ours, at any time: what is worked with
        // is what was checked.
        let consumer = frames.load32(page, self.consumer);
        let producer = frames.load32(page, self.producer);
        // The buffer is looked at, or overwritten, only after the other side's index was read.
        fence(Ordering::SeqCst);
        // The indexes run freely and wrap at 2^32, a multiple of the size, so their distance is
        // right across the wrap.
        if producer.wrapping_sub(consumer) > self.size {
            return Err(BadIndex);
        }
        Ok((consumer, producer))
    }

    /// Bytes that wait for the consumer.
    pub fn pending(&self, frames: &dyn Frames, page: Mfn) -> Result<u32, BadIndex> {
        self.indexes(frames, page)
            .map(|(consumer, producer)| producer.wrapping_sub(consumer))
    }

    /// Takes up to `out.len()` bytes and returns how many.
    pub fn read(&self, frames: &dyn Frames, page: Mfn, out: &mut [u8]) -> Result<usize, BadIndex> {
        let (consumer, producer) = self.indexes(frames, page)?;
        let count = out.len().min(producer.wrapping_sub(consumer) as usize);
        // At most two pieces: up to the end of the buffer, and from its beginning.
        let (first, second) = out[..count].split_at_mut(count.min(self.until_end(consumer)));
        frames.read(page, self.at(consumer), first);
        frames.read(page, self.buffer, second);
        // An index that stays as it is is not stored, so that its cache line stays with the other
        // end.
        if count > 0 {
            // The bytes are copied before their place is given back.
            fence(Ordering::SeqCst);
            frames.store32(page, self.consumer, advance(consumer, count));
        }
        Ok(count)
    }

    /// Puts as many of `bytes` as fit and returns how many.
    pub fn write(&self, frames: &dyn Frames, page: Mfn, bytes: &[u8]) -> Result<usize, BadIndex> {
        let (consumer, producer) = self.indexes(frames, page)?;
        // Does not underflow: `indexes` has bounded the distance.
        let free = self.size - producer.wrapping_sub(consumer);
        let count = bytes.len().min(free as usize);
        let (first, second) = bytes[..count].split_at(count.min(self.until_end(producer)));
        frames.write(page, self.at(producer), first);
        frames.write(page, self.buffer, second);
        if count > 0 {
            // The bytes are there before the other side is told of them.
            fence(Ordering::SeqCst);
            frames.store32(page, self.producer, advance(producer, count));
        }
        Ok(count)
    }

    fn at(&self, index: u32) -> usize {
        self.buffer + (index & (self.size - 1)) as usize
    }

    fn until_end(&self, index: u32) -> usize {
        (self.size - (index & (self.size - 1))) as usize
    }
}

fn advance(index: u32, count: usize) -> u32 {
    index.wrapping_add(u32::try_from(count).expect("at most the buffer's size"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use xen_abi::Mfn;

    use super::{BadIndex, Pipe};
    use crate::mem::Frames;
    use crate::testing::FakeFrames;

    const PIPE: Pipe = Pipe {
        buffer: 1024,
        size: 1024,
        consumer: 2056,
        producer: 2060,
    };

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(start: u32, chunks in proptest::collection::vec((0usize..1500, 0usize..1500), 1..20)) {
            let frames = FakeFrames::new(1);
            frames.store32(Mfn(0), PIPE.consumer, start);
            frames.store32(Mfn(0), PIPE.producer, start);
            let (mut sent, mut got, mut next) = (Vec::new(), Vec::new(), 0u8);
            for (put, take) in chunks {
                let bytes: Vec<u8> = (0..put).map(|_| { next = next.wrapping_add(1); next }).collect();
                let count = PIPE.write(&frames, Mfn(0), &bytes).expect("own indexes");
                next = next.wrapping_sub((put - count) as u8);
                sent.extend_from_slice(&bytes[..count]);
                let mut out = vec![0; take];
                let count = PIPE.read(&frames, Mfn(0), &mut out).expect("own indexes");
                got.extend_from_slice(&out[..count]);
                assert_eq!(got[..], sent[..got.len()]);
                assert_eq!(PIPE.pending(&frames, Mfn(0)), Ok((sent.len() - got.len()) as u32));
            }
        }

        #[test]
        fn a_bad_index_touches_nothing(consumer: u32, producer: u32, fill in any::<u8>()) {
            let frames = FakeFrames::new(1);
            frames.write(Mfn(0), 0, &[fill; 4096]);
            frames.store32(Mfn(0), PIPE.consumer, consumer);
            frames.store32(Mfn(0), PIPE.producer, producer);
            let mut out = [0; 2000];
            let bad = producer.wrapping_sub(consumer) > 1024;
            assert_eq!(PIPE.write(&frames, Mfn(0), &[!fill; 2000]) == Err(BadIndex), bad);
            let mut page = [0; 4096];
            frames.read(Mfn(0), 0, &mut page);
            assert!(page[..1024].iter().chain(&page[2064..]).all(|byte| *byte == fill));
            assert_eq!(bad, PIPE.read(&frames, Mfn(0), &mut out) == Err(BadIndex));
        }
    }
}
