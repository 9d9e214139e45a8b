//! The contents of a PAGE_DATA record on their way out.

use std::io::{self, IoSlice, Write};

use crate::error::{Defect, Error};
use crate::libxc::RecordType;
use crate::libxc::writer::{Writer, write_slices};

/// Takes the contents of a PAGE_DATA record that was begun.
///
/// A record that is dropped before [`Self::finish`] leaves a stream that nobody can read.
#[derive(Debug)]
#[must_use = "a record must be finished"]
pub struct PageSink<'a, W> {
    pub(super) writer: &'a mut Writer<W>,
    pub(super) left: usize,
}

impl<W: Write> PageSink<'_, W> {
    /// Bytes of contents that are still to come.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// Writes the next contents.
    ///
    /// # Errors
    /// If there are more than announced or the output cannot be written.
    pub fn write(&mut self, contents: &[&[u8]]) -> Result<(), Error> {
        let length: usize = contents.iter().map(|part| part.len()).sum();
        let result = if length > self.left {
            Err(Defect::length(
                length as u64,
                format!("at most {}", self.left),
            ))
        } else {
            let mut slices = Vec::with_capacity(contents.len() + 1);
            slices.push(IoSlice::new(&self.writer.head));
            slices.extend(contents.iter().map(|part| IoSlice::new(part)));
            write_slices(&mut self.writer.out, &mut slices).map_err(Defect::Output)
        };
        self.writer.offset += self.writer.located(RecordType::PAGE_DATA, result)?;
        self.writer.head.clear();
        self.left -= length;
        Ok(())
    }

    /// Ends the record.
    ///
    /// # Errors
    /// If contents are missing.
    pub fn finish(mut self) -> Result<(), Error> {
        // Entries without contents may not have been written yet.
        self.write(&[])?;
        let result = match self.left {
            0 => Ok(()),
            left => Err(Defect::Truncated {
                missing: left as u64,
            }),
        };
        self.writer.located(RecordType::PAGE_DATA, result)?;
        self.writer.records += 1;
        Ok(())
    }
}

/// For copies from elsewhere; what is more than announced is refused.
impl<W: Write> Write for PageSink<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match PageSink::write(self, &[bytes]) {
            Ok(()) => Ok(bytes.len()),
            Err(Error {
                defect: Defect::Output(error),
                ..
            }) => Err(error),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.out.flush()
    }
}
