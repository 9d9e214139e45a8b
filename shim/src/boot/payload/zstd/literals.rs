//! The first half of a block: bytes that are new.

use alloc::vec::Vec;

use super::huffman::Codes;
use super::{MAX_BLOCK, take, take_slice};

/// Literals of the current block, and the codes that the next may use again.
#[derive(Default)]
pub(super) struct Literals {
    codes: Codes,
    buffer: Vec<u8>,
}

impl Literals {
    /// Decodes the literals section off the front of a block; `None` if it is damaged.
    pub(super) fn decode<'a>(&'a mut self, data: &mut &'a [u8]) -> Option<&'a [u8]> {
        let format = *data.first()? >> 2 & 3;
        let kind = *data.first()? & 3;
        if kind < 2 {
            // One, two or three bytes, of which the size has all bits behind the format.
            let (bytes, shift) = [(1, 3), (2, 4), (1, 3), (3, 4)][usize::from(format)];
            let len = (header(data, bytes)? >> shift) as usize;
            if kind == 0 {
                return take_slice(data, len);
            }
            let [byte] = take(data)?;
            self.resize(len)?.fill(byte);
            return Some(&self.buffer);
        }
        let (bytes, width) = [(3, 10), (3, 10), (4, 14), (5, 18)][usize::from(format)];
        let sizes = header(data, bytes)? >> 4;
        let len = (sizes & ((1 << width) - 1)) as usize;
        let mut packed = take_slice(data, (sizes >> width) as usize)?;
        if kind == 2 {
            self.codes.read(&mut packed)?;
        }
        self.resize(len)?;
        if format == 0 {
            self.codes.decode(packed, &mut self.buffer)?;
        } else {
            self.four_streams(packed)?;
        }
        Some(&self.buffer)
    }

    /// Three streams of equal length, with their sizes in front, and one for the rest.
    fn four_streams(&mut self, mut packed: &[u8]) -> Option<()> {
        let sizes: [[u8; 2]; 3] = [take(&mut packed)?, take(&mut packed)?, take(&mut packed)?];
        let quarter = self.buffer.len().div_ceil(4);
        let mut out = &mut self.buffer[..];
        for size in sizes {
            let stream = take_slice(&mut packed, usize::from(u16::from_le_bytes(size)))?;
            let (part, rest) = out.split_at_mut_checked(quarter)?;
            self.codes.decode(stream, part)?;
            out = rest;
        }
        self.codes.decode(packed, out)
    }

    fn resize(&mut self, len: usize) -> Option<&mut [u8]> {
        if len > MAX_BLOCK {
            return None;
        }
        self.buffer.resize(len, 0);
        Some(&mut self.buffer)
    }
}

/// Reads a header of `bytes` bytes.
fn header(data: &mut &[u8], bytes: usize) -> Option<u64> {
    let mut word = [0; 8];
    word.get_mut(..bytes)?
        .copy_from_slice(take_slice(data, bytes)?);
    Some(u64::from_le_bytes(word))
}
