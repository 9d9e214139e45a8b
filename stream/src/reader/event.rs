//! What a reader hands out: headers, and records whose bodies are still in the input.

use std::io::{Read, Write};

use xen_abi::PAGE_SIZE;

use crate::error::{Defect, Error, Part};
use crate::libxc::{self, DomainHeader, ImageHeader, MAX_BATCH, PageEntry, RecordType};
use crate::libxl;
use crate::reader::Reader;
use crate::record::RecordHeader;
use crate::xl::SaveHeader;

/// The next piece of a stream.
#[derive(Debug)]
pub enum Event<'a, R> {
    /// The header of a file that xl saved; a libxl stream follows.
    Save(SaveHeader),
    /// The header of a libxl stream.
    Libxl(libxl::Header),
    /// The headers of a libxc stream.
    Libxc(ImageHeader, DomainHeader),
    /// A record of either layer.
    Record(Record<'a, R>),
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In libxl's layer.
    Libxl(libxl::Content),
    /// In libxc's layer.
    Libxc(libxc::Content),
}

/// A record.  Its body is read only if somebody asks for it.
#[derive(Debug)]
pub struct Record<'a, R> {
    reader: &'a mut Reader<R>,
    kind: Kind,
}

/// A batch of pages.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// Frames and their types.
    pub entries: &'a [PageEntry],
    /// Contents of those that have any, one after the other.
    pub contents: &'a [u8],
}

impl<'a> Pages<'a> {
    /// Each frame, with its contents if it has any.
    pub fn iter(&self) -> impl Iterator<Item = (PageEntry, Option<&'a [u8; PAGE_SIZE]>)> + use<'a> {
        let mut contents = self.contents;
        self.entries.iter().map(move |entry| {
            if !entry.has_contents() {
                return (*entry, None);
            }
            let (page, rest) = contents.split_first_chunk().unzip();
            contents = rest.unwrap_or_default();
            (*entry, page)
        })
    }
}

impl<'a, R: Read> Record<'a, R> {
    pub(super) fn new(reader: &'a mut Reader<R>, kind: Kind) -> Self {
        Self { reader, kind }
    }

    /// What it says.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The record's type and length.
    #[must_use]
    pub fn header(&self) -> RecordHeader {
        self.reader
            .open
            .as_ref()
            .map_or(RecordHeader { kind: 0, length: 0 }, |open| open.header)
    }

    /// Which record of which layer this is.
    #[must_use]
    pub fn part(&self) -> Part {
        let open = self.reader.open.as_ref();
        open.map_or(Part::RecordHeader, |open| open.part)
    }

    /// Bytes of the stream before the record.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.reader.open.as_ref().map_or(0, |open| open.start)
    }

    /// The entries of a page record, all of them; none of other records.
    ///
    /// # Errors
    /// If there are more than 65536, which no writer makes.
    pub fn entries(&self) -> Result<&[PageEntry], Error> {
        let count = match self.kind {
            Kind::Libxc(libxc::Content::PageData { count, .. }) => count as usize,
            _ => 0,
        };
        if count > self.reader.entries.len() {
            return Err(self.fail(Defect::Unsupported(
                "these are more entries than are held; writers use at most 1024",
            )));
        }
        Ok(&self.reader.entries[..count])
    }

    /// The next pages of a page record, at most 1024; none when all have come.
    ///
    /// # Errors
    /// As [`Self::entries`], or if the stream is truncated.
    pub fn pages(&mut self) -> Result<Option<Pages<'_>>, Error> {
        let all = self.entries()?.len();
        let from = self.reader.open.as_ref().map_or(all, |o| o.entries_done);
        let to = all.min(from + MAX_BATCH);
        if from >= to {
            return Ok(None);
        }
        let entries = &self.reader.entries[from..to];
        let count = entries.iter().filter(|e| e.has_contents()).count();
        let bytes = count * PAGE_SIZE;
        if self.reader.held.len() < bytes {
            self.reader.held.resize(bytes, 0);
        }
        let filled = self.reader.input.fill(&mut self.reader.held[..bytes]);
        filled.map_err(|defect| self.fail(defect))?;
        if let Some(open) = &mut self.reader.open {
            open.entries_done = to;
            open.left -= bytes as u64;
        }
        Ok(Some(Pages {
            entries: &self.reader.entries[from..to],
            contents: &self.reader.held[..bytes],
        }))
    }

    /// Reads the next contents of a page record into `out`, which must not be longer than what is left.
    ///
    /// For receivers that have a place for them; [`Self::entries`] tells what they are.
    ///
    /// # Errors
    /// If the stream is truncated, or `out` is too long or not whole pages.
    pub fn read_contents(&mut self, out: &mut [u8]) -> Result<(), Error> {
        let left = self.reader.open.as_ref().map_or(0, |open| open.left);
        if out.len() as u64 > left || !out.len().is_multiple_of(PAGE_SIZE) {
            let expected = format!("whole pages, at most {left}");
            return Err(self.fail(Defect::length(out.len() as u64, expected)));
        }
        let filled = self.reader.input.fill(out);
        filled.map_err(|defect| self.fail(defect))?;
        if let Some(open) = &mut self.reader.open {
            open.left -= out.len() as u64;
            open.entries_done = self.reader.entries.len();
        }
        Ok(())
    }

    /// The whole body of a record that is not of pages.
    ///
    /// # Errors
    /// If it is longer than [`super::MAX_HELD`] (use [`Self::forward`] then), or the stream is truncated.
    pub fn bytes(&mut self) -> Result<&[u8], Error> {
        if matches!(self.kind, Kind::Libxc(libxc::Content::PageData { .. })) {
            return Err(self.fail(Defect::Unsupported("pages are read as pages")));
        }
        if self.reader.open.as_ref().is_some_and(|open| open.left > 0) {
            let held = self.reader.hold();
            held.map_err(|defect| self.fail(defect))?;
        }
        let length = self.reader.open.as_ref().map_or(0, |open| open.held);
        Ok(&self.reader.held[..length])
    }

    /// Writes the whole record to `out` as it is, of any length; nothing of it may have been read
    /// but [`Self::bytes`] and [`Self::entries`].
    ///
    /// # Errors
    /// If the stream is truncated, `out` cannot be written, or a part has been read.
    pub fn forward(&mut self, out: &mut impl Write) -> Result<(), Error> {
        self.copy_out(out).map_err(|defect| self.fail(defect))
    }

    fn copy_out(&mut self, out: &mut impl Write) -> Result<(), Defect> {
        let Some(open) = self.reader.open else {
            return Ok(());
        };
        let mut head = open.header.encode().to_vec();
        if open.header.kind == RecordType::PAGE_DATA.0
            && let Kind::Libxc(libxc::Content::PageData { count, .. }) = self.kind
        {
            if open.entries_done > 0 || self.reader.entries.len() != count as usize {
                return Err(Defect::Unsupported(
                    "pages that have been read, or too many to be held, cannot be forwarded",
                ));
            }
            head.extend_from_slice(&count.to_le_bytes());
            head.extend_from_slice(&[0; 4]);
            for entry in &self.reader.entries {
                head.extend_from_slice(&entry.raw().to_le_bytes());
            }
        }
        out.write_all(&head).map_err(Defect::Output)?;
        out.write_all(&self.reader.held[..open.held])
            .map_err(Defect::Output)?;
        self.reader.input.copy(open.left, out)?;
        out.write_all(&[0; 8][..open.header.padding()])
            .map_err(Defect::Output)?;
        if let Some(open) = &mut self.reader.open {
            open.left = 0;
            open.entries_done = self.reader.entries.len();
        }
        Ok(())
    }

    fn fail(&self, defect: Defect) -> Error {
        match &self.reader.open {
            Some(open) => open.fail(defect),
            None => Error::new(self.reader.offset(), Part::RecordHeader, defect),
        }
    }
}
