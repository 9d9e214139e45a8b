//! The input of a conversion: fields of a legacy stream, and where in it they are.

use std::io::{Read, Write};

use crate::error::{Defect, Error, Part};
use crate::input::Input;
use crate::legacy::Width;
use crate::record::RecordHeader;

/// The input.
#[derive(Debug)]
pub(super) struct Source<R> {
    input: Input<R>,
    width: Width,
    /// Chunks that have been read.
    chunks: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(input: Input<R>, width: Width) -> Self {
        Self {
            input,
            width,
            chunks: 0,
        }
    }

    pub(super) fn width(&self) -> Width {
        self.width
    }

    pub(super) fn offset(&self) -> u64 {
        self.input.offset()
    }

    pub(super) fn next_chunk(&mut self) {
        self.chunks += 1;
    }

    /// Does something with a part of the stream, so that its errors tell which part that was.
    pub(super) fn part<T>(
        &mut self,
        name: &'static str,
        act: impl FnOnce(&mut Self) -> Result<T, Defect>,
    ) -> Result<T, Error> {
        let start = self.offset();
        let index = self.chunks;
        act(self).map_err(|defect| Error::new(start, Part::Legacy { name, index }, defect))
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Defect> {
        self.input.array()
    }

    pub(super) fn u32(&mut self) -> Result<u32, Defect> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Defect> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A word of the sender's toolstack.
    pub(super) fn word(&mut self) -> Result<u64, Defect> {
        match self.width {
            Width::Bits32 => Ok(self.u32()?.into()),
            Width::Bits64 => self.u64(),
        }
    }

    /// Hands `count` words to `take`, a buffer's worth at a time.
    pub(super) fn words(
        &mut self,
        count: u64,
        mut take: impl FnMut(&mut dyn Iterator<Item = u64>) -> Result<(), Defect>,
    ) -> Result<(), Defect> {
        let size = self.width.bytes();
        let mut left = count;
        while left > 0 {
            let want = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .saturating_mul(size);
            let bytes = self.input.peek(want)?;
            let whole = bytes.len() / size * size;
            if whole == 0 {
                let missing = left * size as u64 - bytes.len() as u64;
                return Err(Defect::Truncated { missing });
            }
            let mut words = bytes[..whole].chunks_exact(size).map(|word| {
                let mut wide = [0; 8];
                wide[..size].copy_from_slice(word);
                u64::from_le_bytes(wide)
            });
            take(&mut words)?;
            self.input.consume(whole);
            left -= (whole / size) as u64;
        }
        Ok(())
    }

    /// Reads `length` bytes, which the caller has bounded.
    pub(super) fn bytes(&mut self, length: usize) -> Result<Vec<u8>, Defect> {
        let mut bytes = vec![0; length];
        self.input.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn skip(&mut self, length: u64) -> Result<(), Defect> {
        self.input.skip(length)
    }

    pub(super) fn copy(&mut self, length: u64, out: &mut impl Write) -> Result<(), Defect> {
        self.input.copy(length, out)
    }

    /// Copies what becomes the end of a record, and pads the record.
    ///
    /// What has been written of the record's body before must be whole multiples of 8.
    pub(super) fn copy_padded(&mut self, length: u32, out: &mut impl Write) -> Result<(), Defect> {
        self.copy(length.into(), out)?;
        let padding = RecordHeader { kind: 0, length }.padding();
        out.write_all(&[0; 8][..padding]).map_err(Defect::Output)
    }

    pub(super) fn expect_end(&mut self) -> Result<(), Error> {
        let offset = self.offset();
        if self.input.is_device() {
            return Ok(());
        }
        let result = match self.input.peek(1) {
            Ok([]) => Ok(()),
            Ok(_) => Err(Defect::Trailing),
            Err(error) => Err(error.into()),
        };
        result.map_err(|defect| Error::new(offset, Part::End, defect))
    }
}
