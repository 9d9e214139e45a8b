//! Opens records, checks them and closes them: the part of the reader that knows bodies.

use std::io::Read;

use xen_abi::PAGE_SIZE;

use crate::error::{Defect, Error, Part};
use crate::libxc::{self, DomainType, PageEntry};
use crate::libxl;
use crate::reader::{Found, Kind, MAX_HELD, Next, Open, Reader};
use crate::record::{HEADER, MAX_LENGTH, RecordHeader};

/// So many entries of a page record are held; writers use at most 1024.
const MAX_ENTRIES: u32 = 1 << 16;

impl<R: Read> Reader<R> {
    /// CHECKPOINT_STATE has the number of a libxc record that HVM guests do not have.
    pub(super) fn is_checkpoint_state(&mut self) -> Result<bool, Error> {
        let offset = self.input.offset();
        let bytes = self
            .input
            .peek(HEADER)
            .map_err(|error| Error::new(offset, Part::RecordHeader, error))?;
        Ok(self.domain == DomainType::Hvm
            && bytes.first_chunk().is_some_and(|bytes| {
                let header = RecordHeader::decode(*bytes);
                header.kind == libxl::RecordType::CHECKPOINT_STATE.0
            }))
    }

    /// Reads a record's header and opens the record.
    fn open(&mut self, part: impl FnOnce(u32, &Self) -> Part) -> Result<Open, Error> {
        let start = self.input.offset();
        let bytes = self
            .input
            .array()
            .map_err(|defect| Error::new(start, Part::RecordHeader, defect))?;
        let header = RecordHeader::decode(bytes);
        let part = part(header.kind, self);
        if header.length > MAX_LENGTH {
            let defect = Defect::length(header.length, format!("at most {MAX_LENGTH}"));
            return Err(Error::new(start, part, defect));
        }
        let open = Open {
            part,
            start,
            header,
            left: header.length.into(),
            held: 0,
            entries_done: 0,
        };
        self.open = Some(open);
        Ok(open)
    }

    /// The first bytes of the open record's body.
    fn prefix(&mut self, header: RecordHeader, most: usize) -> Result<&[u8], Defect> {
        let want = most.min(header.length as usize);
        let bytes = self.input.peek(want)?;
        if bytes.len() < want {
            let missing = u64::from(header.length) - bytes.len() as u64;
            return Err(Defect::Truncated { missing });
        }
        Ok(bytes)
    }

    pub(super) fn libxl_record(&mut self) -> Result<Found, Error> {
        let open = self.open(|kind, reader| Part::LibxlRecord {
            index: reader.libxl_records,
            kind: libxl::RecordType(kind),
        })?;
        let content = self.accept_libxl(open.header).map_err(|d| open.fail(d))?;
        self.libxl_records += 1;
        self.next = match content {
            libxl::Content::End => Next::Nothing,
            libxl::Content::LibxcContext => Next::ImageHeader,
            libxl::Content::CheckpointEnd => Next::AfterCheckpoint,
            _ => self.next,
        };
        Ok(Found::Record(Kind::Libxl(content)))
    }

    fn accept_libxl(&mut self, header: RecordHeader) -> Result<libxl::Content, Defect> {
        let content = libxl::parse(header, self.prefix(header, libxl::PREFIX)?)?;
        self.libxl.accept(&content)?;
        if matches!(content, libxl::Content::XenstoreData { .. }) {
            self.hold()?;
            libxl::check_xenstore(&self.held[libxl::PREFIX..header.length as usize])?;
        }
        Ok(content)
    }

    pub(super) fn libxc_record(&mut self) -> Result<Found, Error> {
        let open = self.open(|kind, reader| Part::LibxcRecord {
            index: reader.libxc_records,
            kind: libxc::RecordType(kind),
        })?;
        let content = self.accept_libxc(open.header).map_err(|d| open.fail(d))?;
        self.libxc_records += 1;
        self.next = match content {
            libxc::Content::End if !self.in_libxl => Next::Nothing,
            libxc::Content::End => Next::LibxlRecord,
            libxc::Content::Checkpoint if self.in_libxl => {
                self.libxl.checkpoint();
                Next::LibxlRecord
            }
            _ => Next::LibxcRecord,
        };
        Ok(Found::Record(Kind::Libxc(content)))
    }

    fn accept_libxc(&mut self, header: RecordHeader) -> Result<libxc::Content, Defect> {
        let guest = self.libxc.as_ref().and_then(libxc::Order::guest);
        let strict = self.strict;
        let prefix = self.prefix(header, libxc::PREFIX)?;
        let mut content = libxc::parse(header, prefix, guest, strict)?;
        if let Some(order) = &mut self.libxc {
            order.accept(&content)?;
        }
        if let libxc::Content::PageData { count, pages } = &mut content {
            *pages = self.take_entries(header, *count)?;
        }
        Ok(content)
    }

    /// Takes the entries of a page record and checks them; returns the number of pages that follow.
    fn take_entries(&mut self, header: RecordHeader, count: u32) -> Result<u32, Defect> {
        self.input.consume(8);
        self.entries.clear();
        let mut pages = 0;
        let mut index = 0;
        while index < count {
            // The length was checked against the count: fewer bytes mean the end of the input.
            let want = 8 * (count - index) as usize;
            let bytes = self.input.peek(want)?;
            let whole = bytes.len() / 8 * 8;
            if whole == 0 {
                return Err(Defect::Truncated {
                    missing: (want - bytes.len()) as u64,
                });
            }
            for raw in bytes[..whole].chunks_exact(8) {
                let raw = u64::from_le_bytes(raw.try_into().expect("chunks of 8 bytes"));
                let entry = PageEntry::decode(raw, index.into(), self.strict)?;
                if let Some(order) = &self.libxc {
                    order.accept_entry(index.into(), entry)?;
                }
                pages += u32::from(entry.has_contents());
                if count <= MAX_ENTRIES {
                    self.entries.push(entry);
                }
                index += 1;
            }
            self.input.consume(whole);
        }
        let left = u64::from(pages) * PAGE_SIZE as u64;
        let expected = 8 + 8 * u64::from(count) + left;
        if expected != header.length.into() {
            return Err(Defect::length(header.length, expected.to_string()));
        }
        if let Some(open) = &mut self.open {
            open.left = left;
        }
        Ok(pages)
    }

    /// Reads the rest of the open record's body into `held`.
    pub(super) fn hold(&mut self) -> Result<(), Defect> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        if open.left > MAX_HELD as u64 {
            return Err(Defect::length(
                open.left,
                format!("at most {MAX_HELD} to be held"),
            ));
        }
        let length = usize::try_from(open.left).unwrap_or(MAX_HELD);
        if self.held.len() < length {
            self.held.resize(length, 0);
        }
        self.input.fill(&mut self.held[..length])?;
        open.held = length;
        open.left = 0;
        Ok(())
    }

    /// Skips what is left of the open record, padding included.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let strict = self.strict;
        let mut finish = || {
            self.input.skip(open.left)?;
            let padding = open.header.padding();
            let bytes = self.input.peek(padding)?;
            let value = bytes
                .iter()
                .fold(0, |all, byte| all << 8 | u64::from(*byte));
            if bytes.len() < padding {
                let missing = (padding - bytes.len()) as u64;
                return Err(Defect::Truncated { missing });
            }
            if strict && value != 0 {
                return Err(Defect::Reserved {
                    field: "the padding",
                    value,
                });
            }
            self.input.consume(padding);
            Ok(())
        };
        finish().map_err(|defect| {
            self.next = Next::Failed;
            open.fail(defect)
        })
    }
}
