//! Finite state entropy: the tables that codes and Huffman weights are written with.

use super::bits::{Backward, Forward};

/// Largest accuracy of any table, and so log2 of the entries there is room for.
const MAX_ACCURACY: u32 = 9;
const MAX_ENTRIES: usize = 1 << MAX_ACCURACY;
/// More symbols than any table has.
const MAX_SYMBOLS: usize = 256;

/// A state: what it stands for, and how the next one is found.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// The next state is this plus the bits read.
    base: u16,
    bits: u8,
    symbol: u8,
}

/// A decoding table.
#[derive(Clone, Debug)]
pub(super) struct Table {
    entries: [Entry; MAX_ENTRIES],
    /// log2 of the entries in use; zero is a table with one symbol.
    accuracy: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            entries: [Entry::default(); MAX_ENTRIES],
            accuracy: 0,
        }
    }
}

impl Table {
    /// Reads a description off the front of `data`.
    ///
    /// `None` if it is damaged, more accurate than `max_accuracy` or has a symbol that is not below
    /// `symbols`.
    pub(super) fn read(
        &mut self,
        data: &mut &[u8],
        max_accuracy: u32,
        symbols: usize,
    ) -> Option<()> {
        let mut bits = Forward::new(data);
        let accuracy = bits.peek(4) + 5;
        bits.skip(4);
        if accuracy > max_accuracy {
            return None;
        }
        let mut shares = [0; MAX_SYMBOLS];
        let shares = shares.get_mut(..symbols)?;
        let mut next = shares.iter_mut();
        let mut left = 1 << accuracy;
        while left > 0 {
            let share = read_share(&mut bits, left);
            *next.next()? = share;
            left -= i32::from(share).abs();
            if share == 0 {
                // Runs of further zeroes follow, two bits at a time.
                loop {
                    let zeroes = bits.peek(2);
                    bits.skip(2);
                    for _ in 0..zeroes {
                        next.next()?;
                    }
                    if zeroes != 3 {
                        break;
                    }
                }
            }
        }
        *data = bits.rest()?;
        self.build(shares, accuracy)
    }

    /// Makes the table for symbols that have `shares` of its entries.
    ///
    /// A share of -1 stands for less than one entry.  `None` if the shares do not fill the table.
    pub(super) fn build(&mut self, shares: &[i16], accuracy: u32) -> Option<()> {
        let size = 1usize << accuracy;
        let entries = self.entries.get_mut(..size)?;
        let sum: usize = shares
            .iter()
            .map(|share| usize::from(share.unsigned_abs()))
            .sum();
        if sum != size {
            return None;
        }
        // The rarest symbols get the last entries, the others are spread over the rest.
        let mut end = size;
        for (symbol, _) in (0u8..).zip(shares).filter(|(_, share)| **share == -1) {
            end -= 1;
            entries[end].symbol = symbol;
        }
        let step = (size >> 1) + (size >> 3) + 3;
        let mut at = 0;
        for (symbol, &share) in (0u8..).zip(shares) {
            for _ in 0..share.max(0) {
                entries[at].symbol = symbol;
                at = (at + step) % size;
                while at >= end && end > 0 {
                    at = (at + step) % size;
                }
            }
        }
        let mut count = [0u16; MAX_SYMBOLS];
        for (count, share) in count.iter_mut().zip(shares) {
            *count = share.unsigned_abs();
        }
        for entry in entries {
            let state = &mut count[usize::from(entry.symbol)];
            let bits = accuracy - state.ilog2();
            entry.bits = bits.to_le_bytes()[0];
            entry.base = (*state << bits) - (1 << accuracy);
            *state += 1;
        }
        self.accuracy = accuracy;
        Some(())
    }

    /// Makes the table that knows just `symbol`.
    pub(super) const fn only(&mut self, symbol: u8) {
        self.accuracy = 0;
        self.entries[0] = Entry {
            base: 0,
            bits: 0,
            symbol,
        };
    }

    /// Reads the first state.
    pub(super) fn start(&self, bits: &mut Backward<'_>) -> State {
        State(bits.read(self.accuracy) as u16)
    }

    /// Returns what `state` stands for.
    #[inline]
    pub(super) fn symbol(&self, state: State) -> u8 {
        self.entry(state).symbol
    }

    /// Reads the state after `state`.
    #[inline]
    pub(super) fn next(&self, state: State, bits: &mut Backward<'_>) -> State {
        let entry = self.entry(state);
        State(entry.base + bits.read(u32::from(entry.bits)) as u16)
    }

    #[inline]
    fn entry(&self, state: State) -> Entry {
        // States are within the table; the mask spares the check.
        self.entries[usize::from(state.0) % MAX_ENTRIES]
    }
}

/// An index into a [`Table`].
#[derive(Clone, Copy, Debug)]
pub(super) struct State(u16);

/// Reads a symbol's share when `left` entries are.
///
/// Values go from 0 to `left` + 1, one more than the share; as many as possible of the small ones
/// are a bit shorter.
fn read_share(bits: &mut Forward<'_>, left: i32) -> i16 {
    let values = left.unsigned_abs() + 2;
    let width = (values - 1).ilog2() + 1;
    let short = (1 << width) - values;
    let low_mask = (1 << (width - 1)) - 1;
    let value = bits.peek(width);
    let value = if value & low_mask < short {
        bits.skip(width - 1);
        value & low_mask
    } else {
        bits.skip(width);
        if value > low_mask {
            value - short
        } else {
            value
        }
    };
    value as i16 - 1
}
