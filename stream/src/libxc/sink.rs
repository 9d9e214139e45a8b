//! PAGE_DATA on its way out.
//!
//! Page contents go from the caller's memory to the output without being copied: entries are put
//! together in a small buffer and contents follow as they are.

use std::io::{self, IoSlice, Write};

use xen_abi::PAGE_SIZE;

use crate::error::{Defect, Error};
use crate::libxc::writer::{Writer, header, write_slices};
use crate::libxc::{Content, MAX_BATCH, PageEntry, RecordType};

/// Takes the contents of a PAGE_DATA record that was begun.
///
/// A record that is dropped before [`Self::finish`] leaves a stream that nobody can read.
#[derive(Debug)]
#[must_use = "a record must be finished"]
pub struct PageSink<'a, W> {
    writer: &'a mut Writer<W>,
    left: usize,
}

impl<W: Write> Writer<W> {
    /// Writes PAGE_DATA: `entries` and the contents of those that have any, in the same order.
    ///
    /// The contents come in any number of slices; together they must be whole.
    ///
    /// # Errors
    /// As for all records, or if there are no entries, more than [`MAX_BATCH`], or contents do not fit.
    pub fn page_data(&mut self, entries: &[PageEntry], contents: &[&[u8]]) -> Result<(), Error> {
        let mut pages = self.begin_page_data(entries)?;
        pages.write(contents)?;
        pages.finish()
    }

    /// Begins PAGE_DATA: the entries are written, the contents come through the returned sink.
    ///
    /// # Errors
    /// As for all records, or if there are no entries or more than [`MAX_BATCH`].
    pub fn begin_page_data(&mut self, entries: &[PageEntry]) -> Result<PageSink<'_, W>, Error> {
        let kind = RecordType::PAGE_DATA;
        let result = self.start_pages(entries);
        let left = self.located(kind, result)?;
        Ok(PageSink { writer: self, left })
    }

    /// Checks the entries and puts the head of the record together; gives the size of the contents.
    fn start_pages(&mut self, entries: &[PageEntry]) -> Result<usize, Defect> {
        if entries.is_empty() || entries.len() > MAX_BATCH {
            return Err(Defect::Value {
                field: "the number of pages in a batch",
                value: entries.len() as u64,
            });
        }
        let pages = entries.iter().filter(|e| e.has_contents()).count();
        let header = header(
            RecordType::PAGE_DATA,
            8 + 8 * entries.len() + pages * PAGE_SIZE,
        )?;
        for (index, entry) in (0..).zip(entries) {
            self.order.accept_entry(index, *entry)?;
        }
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let pages_u32 = u32::try_from(pages).unwrap_or(u32::MAX);
        self.order.accept(&Content::PageData {
            count,
            pages: pages_u32,
        })?;
        self.head.clear();
        self.head.extend_from_slice(&header.encode());
        self.head.extend_from_slice(&count.to_le_bytes());
        self.head.extend_from_slice(&[0; 4]);
        for entry in entries {
            self.head.extend_from_slice(&entry.raw().to_le_bytes());
        }
        Ok(pages * PAGE_SIZE)
    }
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
