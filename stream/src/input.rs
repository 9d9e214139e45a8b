//! A buffered byte source that counts, looks ahead, and skips without reading where it can.
//!
//! Page contents are the bulk of a stream and a verifier does not need them: in a regular file they
//! are jumped over.  After a jump only a little is read, since another jump is likely; reading on
//! doubles the amount, so that streams of small records are read in large pieces.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileTypeExt;

use crate::error::Defect;

/// Bytes of the buffer: small enough to stay in a processor's cache.
pub(crate) const BUFFER: usize = 256 << 10;
/// Bytes read after a jump: the header and entries of a full batch, a little more than 8 KiB.
const FIRST: usize = 12 << 10;
/// Shorter distances are read over rather than jumped over.
const JUMP: u64 = 64 << 10;

/// Moves the source `n` bytes on and tells how far that was possible.
type Jump<R> = fn(&mut R, u64) -> io::Result<u64>;

/// The source.
#[derive(Debug)]
pub struct Input<R> {
    inner: R,
    jump: Option<Jump<R>>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// How much the next read may bring.
    ahead: usize,
    /// Bytes of the stream before `buffer[start]`.
    offset: u64,
    is_device: bool,
}

impl Input<File> {
    /// Wraps a file, which may also be a pipe, a socket or a terminal.
    pub fn file(mut file: File) -> Self {
        // The end of a device is not known by seeking to it, nor is a pipe's.
        let regular =
            file.metadata().is_ok_and(|meta| meta.is_file()) && file.stream_position().is_ok();
        let is_device = file
            .metadata()
            .is_ok_and(|meta| meta.file_type().is_block_device());
        let mut input = Self::new(file);
        input.is_device = is_device;
        if regular {
            input.jump = Some(jump_by_seek);
        }
        input
    }
}

impl<R: Read + Seek> Input<R> {
    /// Wraps a source in which seeking is cheaper than reading.
    pub fn seekable(inner: R) -> Self {
        let mut input = Self::new(inner);
        input.jump = Some(jump_by_seek);
        input
    }
}

impl<R: Read> Input<R> {
    /// Wraps a source that can only be read.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            jump: None,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            ahead: FIRST,
            offset: 0,
            is_device: false,
        }
    }

    /// Reads everything, also what nobody looks at: finds files that cannot be read.
    #[must_use]
    pub fn without_jumps(mut self) -> Self {
        self.jump = None;
        self
    }

    /// It is as a block device, whose size is not the stream's: what follows the stream means nothing.
    /// [`Input::file`] finds that out by itself.
    #[must_use]
    pub fn device(mut self) -> Self {
        self.is_device = true;
        self
    }

    pub(crate) fn is_device(&self) -> bool {
        self.is_device
    }

    /// Bytes of the stream that have been taken.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Gives back the source, and what was read from it and not taken.
    #[must_use]
    pub fn into_parts(self) -> (R, Vec<u8>) {
        let rest = self.buffer[self.start..self.end].to_vec();
        (self.inner, rest)
    }

    /// Shows up to `want` of the next bytes (at most [`BUFFER`]); fewer only at the end of the input.
    pub(crate) fn peek(&mut self, want: usize) -> io::Result<&[u8]> {
        let want = want.min(BUFFER);
        while self.end - self.start < want {
            if self.read_more(want)? == 0 {
                break;
            }
        }
        let shown = want.min(self.end - self.start);
        Ok(&self.buffer[self.start..self.start + shown])
    }

    /// Takes `n` bytes that [`Self::peek`] has shown.
    pub(crate) fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.end - self.start);
        self.start += n;
        self.offset += n as u64;
    }

    /// Takes the next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Defect> {
        let shown = self.peek(N)?;
        let Some(bytes) = shown.first_chunk::<N>().copied() else {
            let missing = (N - shown.len()) as u64;
            return Err(Defect::Truncated { missing });
        };
        self.consume(N);
        Ok(bytes)
    }

    /// Fills `out` with the next bytes; large ones do not pass through the buffer.
    pub(crate) fn fill(&mut self, out: &mut [u8]) -> Result<(), Defect> {
        let ready = out.len().min(self.end - self.start);
        out[..ready].copy_from_slice(&self.buffer[self.start..self.start + ready]);
        self.consume(ready);
        let mut done = ready;
        while done < out.len() {
            let rest = &mut out[done..];
            let count = if rest.len() >= BUFFER / 2 {
                let count = read(&mut self.inner, rest)?;
                self.offset += count as u64;
                count
            } else {
                let want = rest.len();
                let count = self.read_more(want)?.min(want);
                rest[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
                self.consume(count);
                count
            };
            if count == 0 {
                let missing = (out.len() - done) as u64;
                return Err(Defect::Truncated { missing });
            }
            done += count;
        }
        Ok(())
    }

    /// Takes `n` bytes without looking at them.
    pub(crate) fn skip(&mut self, n: u64) -> Result<(), Defect> {
        let mut left = n;
        while left > 0 {
            let ready = (self.end - self.start) as u64;
            if ready == 0 && left >= JUMP && self.jump.is_some() {
                return self.jump(left);
            }
            if ready == 0 && self.read_more(1)? == 0 {
                return Err(Defect::Truncated { missing: left });
            }
            let count = (self.end - self.start).min(usize::try_from(left).unwrap_or(usize::MAX));
            self.consume(count);
            left -= count as u64;
        }
        Ok(())
    }

    /// Takes `n` bytes and writes them to `out`.
    pub(crate) fn copy(&mut self, n: u64, out: &mut impl Write) -> Result<(), Defect> {
        let mut left = n;
        while left > 0 {
            if self.start == self.end && self.read_more(1)? == 0 {
                return Err(Defect::Truncated { missing: left });
            }
            let count = (self.end - self.start).min(usize::try_from(left).unwrap_or(usize::MAX));
            out.write_all(&self.buffer[self.start..self.start + count])
                .map_err(Defect::Output)?;
            self.consume(count);
            left -= count as u64;
        }
        Ok(())
    }

    fn jump(&mut self, n: u64) -> Result<(), Defect> {
        let Some(jump) = self.jump else {
            return Ok(());
        };
        let done = jump(&mut self.inner, n)?;
        self.offset += done;
        self.ahead = FIRST;
        if done < n {
            return Err(Defect::Truncated { missing: n - done });
        }
        Ok(())
    }

    /// Reads once, for the `want` bytes that are asked for and those expected to be; 0 at the end.
    fn read_more(&mut self, want: usize) -> io::Result<usize> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start + want > BUFFER {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let most = (self.end + self.ahead.max(want)).min(BUFFER);
        let count = read(&mut self.inner, &mut self.buffer[self.end..most])?;
        self.end += count;
        self.ahead = (self.ahead * 2).min(BUFFER);
        Ok(count)
    }
}

/// Reads once, whatever signals arrive.
fn read(inner: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    loop {
        match inner.read(out) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Seeking beyond the end is no error to a file, so the end is looked up too.
fn jump_by_seek<R: Read + Seek>(inner: &mut R, n: u64) -> io::Result<u64> {
    let here = inner.stream_position()?;
    let there = here.saturating_add(n);
    if there == inner.seek(SeekFrom::Start(there))? && there > 0 {
        // One byte before the target exists exactly if the file is long enough.
        inner.seek(SeekFrom::Start(there - 1))?;
        if read(inner, &mut [0])? == 1 {
            return Ok(n);
        }
    }
    let end = inner.seek(SeekFrom::End(0))?;
    Ok(end.saturating_sub(here).min(n))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::{BUFFER, Input};

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn jumping_and_reading_take_the_same_bytes() {
        let data = bytes(5 * BUFFER + 77);
        let mut jumping = Input::seekable(Cursor::new(data.clone()));
        let mut reading = Input::new(data.as_slice());
        let mut taken = 0;
        for distance in [0, 1, 70_000, 4096, 300_000, 17, 600_000] {
            jumping.skip(distance).unwrap();
            reading.skip(distance).unwrap();
            let found = jumping.array::<9>().unwrap();
            assert_eq!(found, reading.array::<9>().unwrap());
            taken += distance + 9;
            assert_eq!((jumping.offset(), reading.offset()), (taken, taken));
        }
    }

    #[test]
    fn the_end_is_noticed_however_it_is_met() {
        let data = bytes(200_000);
        for take in [0, 12_345] {
            for mut input in [
                Input::seekable(Cursor::new(data.clone())),
                Input::seekable(Cursor::new(data.clone())).without_jumps(),
            ] {
                input.skip(take).unwrap();
                let error = input.skip(200_000 - take + 3).unwrap_err();
                assert!(error.to_string().contains("3 more bytes"), "{error}");
                assert_eq!(input.offset(), 200_000);
            }
        }
        let mut input = Input::new(data.as_slice());
        let mut out = vec![0; 200_010];
        let error = input.fill(&mut out).unwrap_err();
        assert!(error.to_string().contains("10 more bytes"), "{error}");
    }

    #[test]
    fn what_was_read_ahead_is_given_back() {
        let data = bytes(1000);
        let mut input = Input::new(data.as_slice());
        input.array::<100>().unwrap();
        let (rest, ahead) = input.into_parts();
        assert_eq!([ahead.as_slice(), rest].concat(), data[100..]);
    }

    #[test]
    fn filling_and_copying_lose_nothing() {
        let data = bytes(3 * BUFFER + 1);
        let mut input = Input::new(data.as_slice());
        let mut out = vec![0; 2 * BUFFER];
        input.array::<5>().unwrap();
        input.fill(&mut out).unwrap();
        assert!(out == data[5..5 + out.len()]);
        let mut rest = Vec::new();
        input.copy((BUFFER - 4) as u64, &mut rest).unwrap();
        assert!(rest == data[5 + out.len()..]);
        assert!(input.peek(1).unwrap().is_empty());
    }
}
