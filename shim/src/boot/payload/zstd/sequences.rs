//! The second half of a block: where new bytes go and what is repeated between them.

use super::bits::Backward;
use super::fse::Table;
use super::take;

/// A code that stands for numbers from a base on, told apart by further bits.
type Code = (u32, u8);

const LITERAL_LENGTHS: [Code; 36] = codes(0, 16, 20);
const MATCH_LENGTHS: [Code; 53] = codes(3, 32, 21);
/// Offsets need no list: code `n` is 2^n and `n` bits.
const OFFSETS: usize = 32;

/// Both lists start with codes for one number each, go on with short ranges and end with one range
/// per power of two.
const fn codes<const N: usize>(first: u32, singles: usize, ranges: usize) -> [Code; N] {
    // The bits of the codes behind the singles.
    const LITERAL: [u8; 20] = [
        1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ];
    const MATCH: [u8; 21] = [
        1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    ];
    let mut codes = [(0, 0); N];
    let mut base = first;
    let mut code = 0;
    while code < singles + ranges {
        let bits = if code < singles {
            0
        } else if ranges == LITERAL.len() {
            LITERAL[code - singles]
        } else {
            MATCH[code - singles]
        };
        codes[code] = (base, bits);
        base += 1 << bits;
        code += 1;
    }
    codes
}

/// What one kind of code is decoded with.
struct Coding {
    table: Table,
    /// Whether there is a table that a block may use again.
    is_set: bool,
    default: &'static [i16],
    default_accuracy: u32,
    max_accuracy: u32,
    symbols: usize,
}

impl Coding {
    fn new(
        default: &'static [i16],
        default_accuracy: u32,
        max_accuracy: u32,
        symbols: usize,
    ) -> Self {
        Self {
            table: Table::default(),
            is_set: false,
            default,
            default_accuracy,
            max_accuracy,
            symbols,
        }
    }

    /// Prepares the table as the block says in the low two bits of `mode`.
    fn prepare(&mut self, mode: u8, data: &mut &[u8]) -> Option<()> {
        match mode & 3 {
            0 => self.table.build(self.default, self.default_accuracy)?,
            1 => {
                let [symbol] = take(data)?;
                if usize::from(symbol) >= self.symbols {
                    return None;
                }
                self.table.only(symbol);
            }
            2 => self.table.read(data, self.max_accuracy, self.symbols)?,
            _ if self.is_set => {}
            _ => return None,
        }
        self.is_set = true;
        Some(())
    }
}

/// What sequences of one block leave for those of the next.
pub(super) struct Sequences {
    literal_lengths: Coding,
    offsets: Coding,
    match_lengths: Coding,
    /// The last three distances, the newest first.
    recent: [usize; 3],
}

impl Default for Sequences {
    fn default() -> Self {
        const LITERAL_SHARES: [i16; 36] = [
            4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1,
            1, 1, 1, -1, -1, -1, -1,
        ];
        const MATCH_SHARES: [i16; 53] = [
            1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
            1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
        ];
        const OFFSET_SHARES: [i16; 29] = [
            1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1,
            -1,
        ];
        Self {
            literal_lengths: Coding::new(&LITERAL_SHARES, 6, 9, LITERAL_LENGTHS.len()),
            offsets: Coding::new(&OFFSET_SHARES, 5, 8, OFFSETS),
            match_lengths: Coding::new(&MATCH_SHARES, 6, 9, MATCH_LENGTHS.len()),
            recent: [1, 4, 8],
        }
    }
}

impl Sequences {
    /// Weaves `literals` and repetitions into `out` behind its first `written` bytes, as the
    /// sequences section `data` says; returns the end.  `None` if the section is damaged.
    pub(super) fn execute(
        &mut self,
        mut data: &[u8],
        mut literals: &[u8],
        out: &mut [u8],
        mut written: usize,
    ) -> Option<usize> {
        let count = count(&mut data)?;
        if count > 0 {
            let [modes] = take(&mut data)?;
            if modes & 3 != 0 {
                return None;
            }
            self.literal_lengths.prepare(modes >> 6, &mut data)?;
            self.offsets.prepare(modes >> 4, &mut data)?;
            self.match_lengths.prepare(modes >> 2, &mut data)?;
            let literal_table = &self.literal_lengths.table;
            let offset_table = &self.offsets.table;
            let match_table = &self.match_lengths.table;

            let mut bits = Backward::new(data)?;
            let mut literal_state = literal_table.start(&mut bits);
            let mut offset_state = offset_table.start(&mut bits);
            let mut match_state = match_table.start(&mut bits);
            for number in 0..count {
                let offset_code = u32::from(offset_table.symbol(offset_state));
                let offset = (1 << offset_code) + bits.read(offset_code) as usize;
                let match_len =
                    number_of(&MATCH_LENGTHS, match_table.symbol(match_state), &mut bits)?;
                let literal_len = number_of(
                    &LITERAL_LENGTHS,
                    literal_table.symbol(literal_state),
                    &mut bits,
                )?;
                if number + 1 < count {
                    literal_state = literal_table.next(literal_state, &mut bits);
                    match_state = match_table.next(match_state, &mut bits);
                    offset_state = offset_table.next(offset_state, &mut bits);
                }
                let (new, rest) = literals.split_at_checked(literal_len)?;
                literals = rest;
                written = append(out, written, new)?;
                let distance = distance(&mut self.recent, offset, literal_len)?;
                written = repeat(out, written, distance, match_len)?;
            }
            if bits.left() != 0 {
                return None;
            }
        }
        append(out, written, literals)
    }
}

/// Reads the number of sequences.
fn count(data: &mut &[u8]) -> Option<usize> {
    let [first] = take(data)?;
    Some(match first {
        0..128 => usize::from(first),
        128..255 => {
            let [second] = take(data)?;
            usize::from(first - 128) << 8 | usize::from(second)
        }
        255 => usize::from(u16::from_le_bytes(take(data)?)) + 0x7f00,
    })
}

#[inline]
fn number_of(codes: &[Code], code: u8, bits: &mut Backward<'_>) -> Option<usize> {
    let &(base, extra) = codes.get(usize::from(code))?;
    Some(base as usize + bits.read(u32::from(extra)) as usize)
}

/// Turns an offset's number into a distance: the smallest three name recent distances, shifted by
/// one if there were no literals.
#[inline]
fn distance(recent: &mut [usize; 3], offset: usize, literal_len: usize) -> Option<usize> {
    let [first, second, third] = *recent;
    let index = match offset {
        1..=3 if literal_len == 0 => offset,
        1..=3 => offset - 1,
        _ => {
            *recent = [offset - 3, first, second];
            return Some(offset - 3);
        }
    };
    *recent = match index {
        0 => return Some(first),
        1 => [second, first, third],
        2 => [third, first, second],
        // One less than the newest, which a damaged file may make zero.
        _ => [
            first.checked_sub(1).filter(|&distance| distance > 0)?,
            first,
            second,
        ],
    };
    Some(recent[0])
}

#[inline]
fn append(out: &mut [u8], at: usize, bytes: &[u8]) -> Option<usize> {
    let end = at.checked_add(bytes.len())?;
    out.get_mut(at..end)?.copy_from_slice(bytes);
    Some(end)
}

/// Repeats the `len` bytes that are `distance` before `at`, some of which it may itself write.
#[inline]
fn repeat(out: &mut [u8], at: usize, distance: usize, len: usize) -> Option<usize> {
    let start = at.checked_sub(distance)?;
    let end = at.checked_add(len)?;
    let out = out.get_mut(start..end)?;
    if distance >= len {
        out.copy_within(..len, distance);
    } else {
        // What was copied doubles what can be copied next.
        let mut done = distance;
        while done < out.len() {
            let step = done.min(out.len() - done);
            out.copy_within(..step, done);
            done += step;
        }
    }
    Some(end)
}
