//! Huffman codes, which literals are written with.

use super::bits::{Backward, MAX_READ};
use super::fse::Table;
use super::{take, take_slice};

/// Longest code in bits.
const MAX_BITS: u32 = 11;
const MAX_ENTRIES: usize = 1 << MAX_BITS;
/// Symbols that have a weight of their own; that of the last follows from theirs.
const MAX_WEIGHTS: usize = 255;
/// Largest accuracy of the table that weights are compressed with, and one more than the largest.
const WEIGHT_ACCURACY: u32 = 6;
const WEIGHTS: usize = MAX_BITS as usize + 2;

/// A decoding table, indexed by the next [`bits`](Self::bits) bits.
#[derive(Clone, Debug)]
pub(super) struct Codes {
    entries: [Entry; MAX_ENTRIES],
    /// Length of the longest code; zero as long as there is no table.
    bits: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    symbol: u8,
    bits: u8,
}

impl Default for Codes {
    fn default() -> Self {
        Self {
            entries: [Entry::default(); MAX_ENTRIES],
            bits: 0,
        }
    }
}

impl Codes {
    /// Reads a description off the front of `data`; `None` if it is damaged.
    pub(super) fn read(&mut self, data: &mut &[u8]) -> Option<()> {
        let mut weights = [0; MAX_WEIGHTS];
        let [header] = take(data)?;
        let count = if header < 128 {
            compressed_weights(take_slice(data, usize::from(header))?, &mut weights)?
        } else {
            let count = usize::from(header) - 127;
            let packed = take_slice(data, count.div_ceil(2))?;
            for (pair, byte) in weights.chunks_mut(2).zip(packed) {
                pair.iter_mut()
                    .zip([byte >> 4, byte & 0xf])
                    .for_each(|(weight, value)| *weight = value);
            }
            count
        };
        self.build(weights.get(..count)?)
    }

    /// A symbol of weight `w` has 2^(w-1) entries, one of weight 0 has none.
    fn build(&mut self, weights: &[u8]) -> Option<()> {
        // A damaged description must not leave half a table behind.
        self.bits = 0;
        let share = |weight: u8| match u32::from(weight) {
            0 => Some(0),
            weight if weight <= MAX_BITS => Some(1usize << (weight - 1)),
            _ => None,
        };
        let mut sum = 0;
        for &weight in weights {
            sum += share(weight)?;
        }
        // The last symbol fills the table up to the next power of two.
        let bits = sum.checked_ilog2()? + 1;
        let missing = (1 << bits) - sum;
        if bits > MAX_BITS || !missing.is_power_of_two() {
            return None;
        }
        let last = missing.ilog2().to_le_bytes()[0] + 1;
        let mut rest = self.entries.get_mut(..1 << bits)?;
        for weight in 1..=bits.to_le_bytes()[0] {
            let all = weights.iter().chain([&last]);
            for (symbol, _) in (0u8..=255).zip(all).filter(|(_, of)| **of == weight) {
                let (entries, after) = rest.split_at_mut_checked(share(weight)?)?;
                entries.fill(Entry {
                    symbol,
                    bits: (bits + 1).to_le_bytes()[0] - weight,
                });
                rest = after;
            }
        }
        self.bits = bits;
        rest.is_empty().then_some(())
    }

    /// Decodes one stream, which must fill `out` exactly; `None` if it does not.
    pub(super) fn decode(&self, stream: &[u8], out: &mut [u8]) -> Option<()> {
        if self.bits == 0 {
            return None;
        }
        /// Codes that one read has for certain.
        const AT_ONCE: usize = (MAX_READ / MAX_BITS) as usize;
        let mut bits = Backward::new(stream)?;
        let (chunks, rest) = out.as_chunks_mut::<AT_ONCE>();
        for chunk in chunks {
            let word = bits.peek(MAX_READ);
            let mut left = MAX_READ;
            for symbol in chunk {
                let entry = self.entry(word >> (left - self.bits));
                *symbol = entry.symbol;
                left -= u32::from(entry.bits);
            }
            bits.skip(MAX_READ - left);
        }
        for symbol in rest {
            let entry = self.entry(bits.peek(self.bits));
            *symbol = entry.symbol;
            bits.skip(u32::from(entry.bits));
        }
        (bits.left() == 0).then_some(())
    }

    #[inline]
    fn entry(&self, bits: u64) -> Entry {
        self.entries[bits as usize & ((1 << self.bits) - 1) & (MAX_ENTRIES - 1)]
    }
}

/// Decodes weights that take turns between two states; returns how many there are.
fn compressed_weights(mut data: &[u8], weights: &mut [u8]) -> Option<usize> {
    let mut table = Table::default();
    table.read(&mut data, WEIGHT_ACCURACY, WEIGHTS)?;
    let mut bits = Backward::new(data)?;
    let mut states = [table.start(&mut bits), table.start(&mut bits)];
    if bits.left() < 0 {
        return None;
    }
    let mut count = 0;
    let mut push = |symbol| {
        *weights.get_mut(count)? = symbol;
        count += 1;
        Some(())
    };
    // When a state's successor is no longer there, the other state holds the last weight.
    for turn in (0..2).cycle() {
        push(table.symbol(states[turn]))?;
        states[turn] = table.next(states[turn], &mut bits);
        if bits.left() < 0 {
            push(table.symbol(states[1 - turn]))?;
            break;
        }
    }
    Some(count)
}
