//! zstd (RFC 8878), unpacked straight into the output.
//!
//! This one decoder is our own.  The kernel build asks for a window as large as the kernel, and
//! the library there is for a bare machine keeps that window beside the output: at its peak it
//! took 100 MiB of heap for a distribution's kernel, which a small guest does not have.  Here the
//! output is the window.  The library serves as the reference in the tests.

mod bits;
mod fse;
mod huffman;
mod literals;
mod sequences;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;

use literals::Literals;
use sequences::Sequences;
use xxhash_rust::xxh64::xxh64;

const FRAME: u32 = 0xfd2f_b528;
/// Frames to be skipped have any of the sixteen numbers from here on.
const SKIPPABLE: u32 = 0x184d_2a50;
/// Largest block, and so the most literals of one.
const MAX_BLOCK: usize = 128 << 10;

/// Unpacks the frames of `data`; `None` if they are damaged.
pub(super) fn unpack(data: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut input = data;
    let mut written = 0usize;
    while !input.is_empty() {
        let magic = u32::from_le_bytes(take(&mut input)?);
        if magic & !0xf == SKIPPABLE {
            let len = u32::from_le_bytes(take(&mut input)?);
            take_slice(&mut input, usize::try_from(len).ok()?)?;
        } else if magic == FRAME {
            written += frame(&mut input, out.get_mut(written..)?)?;
        } else {
            return None;
        }
    }
    Some(written)
}

/// Returns roughly the bytes of heap that [`unpack`] takes.
pub(super) const fn heap_needed() -> usize {
    size_of::<Decoder>() + MAX_BLOCK
}

/// What one block leaves for the next of its frame.
#[derive(Default)]
struct Decoder {
    literals: Literals,
    sequences: Sequences,
}

/// Unpacks the rest of a frame to the start of `out`.
fn frame(input: &mut &[u8], out: &mut [u8]) -> Option<usize> {
    const RESERVED: u8 = 1 << 3;
    let [descriptor] = take(input)?;
    let single_segment = descriptor & 1 << 5 != 0;
    let has_checksum = descriptor & 1 << 2 != 0;
    if descriptor & RESERVED != 0 {
        return None;
    }
    // The window's size does not matter: all of the output is at hand.
    if !single_segment {
        take::<1>(input)?;
    }
    let dictionary = take_slice(input, [0, 1, 2, 4][usize::from(descriptor & 3)])?;
    if dictionary.iter().any(|&byte| byte != 0) {
        return None;
    }
    let announced = match (descriptor >> 6, single_segment) {
        (0, false) => None,
        (0, true) => Some(u64::from(u8::from_le_bytes(take(input)?))),
        (1, _) => Some(u64::from(u16::from_le_bytes(take(input)?)) + 256),
        (2, _) => Some(u64::from(u32::from_le_bytes(take(input)?))),
        _ => Some(u64::from_le_bytes(take(input)?)),
    };
    let mut decoder = Box::<Decoder>::default();
    let mut written = 0usize;
    loop {
        let [low, middle, high] = take(input)?;
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let size = (header >> 3) as usize;
        written += match header >> 1 & 3 {
            0 => {
                let raw = take_slice(input, size)?;
                out.get_mut(written..written.checked_add(size)?)?
                    .copy_from_slice(raw);
                size
            }
            1 => {
                let [byte] = take(input)?;
                out.get_mut(written..written.checked_add(size)?)?.fill(byte);
                size
            }
            2 => decoder.block(take_slice(input, size)?, out, written)?,
            _ => return None,
        };
        if header & 1 == 1 {
            break;
        }
    }
    if has_checksum {
        let checksum = u32::from_le_bytes(take(input)?);
        let [hash, _] = split(xxh64(out.get(..written)?, 0));
        if hash != checksum {
            return None;
        }
    }
    let complete = announced.is_none_or(|len| len == written as u64);
    complete.then_some(written)
}

impl Decoder {
    /// Unpacks a compressed block behind the first `written` bytes of `out`; returns its length.
    fn block<'a>(
        &'a mut self,
        mut data: &'a [u8],
        out: &mut [u8],
        written: usize,
    ) -> Option<usize> {
        let literals = self.literals.decode(&mut data)?;
        let end = self.sequences.execute(data, literals, out, written)?;
        Some(end - written)
    }
}

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = input.split_first_chunk()?;
    *input = rest;
    Some(*head)
}

fn take_slice<'a>(input: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(head)
}

/// Splits into the low and the high half.
#[expect(clippy::cast_possible_truncation, reason = "that is what halves are")]
const fn split(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}
