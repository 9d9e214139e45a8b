//! Writes a libxl stream around a libxc stream.
//!
//! ```
//! # fn main() -> Result<(), unmoved_stream::Error> {
//! # use unmoved_stream::libxc::{DomainHeader, DomainType, ImageHeader};
//! # use unmoved_stream::libxl;
//! # let image = ImageHeader { version: 3 };
//! # let domain = DomainHeader { kind: DomainType::Hvm, xen_major: 4, xen_minor: 17 };
//! let outer = libxl::Writer::new(Vec::new(), libxl::Header::default())?;
//! let mut inner = outer.libxc_context(image, domain)?;
//! inner.static_data_end()?;
//! inner.hvm_context(b"Xen's blob")?;
//! inner.end()?;
//! let mut outer = inner.into_inner();
//! outer.emulator_context(libxl::Emulator::QemuUpstream, 0, b"QEMU's blob")?;
//! outer.end()?;
//! # Ok(())
//! # }
//! ```

use std::io::{self, IoSlice, Write};

use crate::error::{Defect, Error, Part};
use crate::libxc::{self, DomainHeader, ImageHeader};
use crate::libxl::{Emulator, Header, Order, PREFIX, RecordType, check_xenstore, parse};
use crate::record::{MAX_LENGTH, RecordHeader};

/// The writer.  The libxc stream is written through it, which is why it is a [`Write`].
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    order: Order,
    offset: u64,
    records: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn new(mut out: W, header: Header) -> Result<Self, Error> {
        out.write_all(&header.encode())
            .map_err(|error| Error::new(0, Part::LibxlHeader, Defect::Output(error)))?;
        Ok(Self {
            out,
            order: Order::default(),
            offset: Header::SIZE as u64,
            records: 0,
        })
    }

    /// Writes LIBXC_CONTEXT and the libxc stream's headers.  [`libxc::Writer::into_inner`] gives this
    /// writer back after END; [`libxc::Writer::get_mut`] lends it between CHECKPOINT and CHECKPOINT_END.
    ///
    /// # Errors
    /// If it may not come here or the output cannot be written; this holds for all records.
    pub fn libxc_context(
        mut self,
        image: ImageHeader,
        domain: DomainHeader,
    ) -> Result<libxc::Writer<Self>, Error> {
        self.record(RecordType::LIBXC_CONTEXT, &[])?;
        self.order.domain(domain.kind);
        libxc::Writer::new(self, image, domain)
    }

    /// Writes EMULATOR_XENSTORE_DATA: keys and values, each with its NUL; none at all are left out.
    ///
    /// # Errors
    /// As for all records, or if the strings are not such pairs.
    pub fn emulator_xenstore_data(
        &mut self,
        emulator: Emulator,
        index: u32,
        strings: &[u8],
    ) -> Result<(), Error> {
        if strings.is_empty() {
            return Ok(());
        }
        let kind = RecordType::EMULATOR_XENSTORE_DATA;
        self.located(kind, check_xenstore(strings))?;
        self.record(kind, &[&emulator_head(emulator, index), strings])
    }

    /// Writes EMULATOR_CONTEXT.
    ///
    /// # Errors
    /// As for all records.
    pub fn emulator_context(
        &mut self,
        emulator: Emulator,
        index: u32,
        blob: &[u8],
    ) -> Result<(), Error> {
        let head = emulator_head(emulator, index);
        self.record(RecordType::EMULATOR_CONTEXT, &[&head, blob])
    }

    /// Tells this layer that libxc has written CHECKPOINT: its records may come now.
    pub fn checkpoint(&mut self) {
        self.order.checkpoint();
    }

    /// Writes CHECKPOINT_END.
    ///
    /// # Errors
    /// As for all records.
    pub fn checkpoint_end(&mut self) -> Result<(), Error> {
        self.record(RecordType::CHECKPOINT_END, &[])
    }

    /// Writes END.
    ///
    /// # Errors
    /// As for all records.
    pub fn end(&mut self) -> Result<(), Error> {
        self.record(RecordType::END, &[])
    }

    /// Writes any record from its parts, for instance an optional one.
    ///
    /// # Errors
    /// As for all records, or if fields or length are wrong.
    pub fn record(&mut self, kind: RecordType, parts: &[&[u8]]) -> Result<(), Error> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let prefix: Vec<u8> = parts
            .iter()
            .flat_map(|part| part.iter())
            .take(PREFIX)
            .copied()
            .collect();
        let result = self.begin(kind, length as u64, &prefix).and_then(|header| {
            for part in parts {
                self.out.write_all(part).map_err(Defect::Output)?;
            }
            let padding = &[0; 8][..header.padding()];
            self.out.write_all(padding).map_err(Defect::Output)
        });
        self.located(kind, result)?;
        self.advance(length as u64);
        Ok(())
    }

    /// Begins a record whose body the caller writes piece by piece, padding included.
    pub(crate) fn begin_long(
        &mut self,
        kind: RecordType,
        length: u64,
        prefix: &[u8],
    ) -> Result<(), Error> {
        let result = self.begin(kind, length, prefix);
        self.located(kind, result)?;
        self.advance(length);
        Ok(())
    }

    /// The output, to flush it.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Gives the output back.
    #[must_use]
    pub fn into_inner(self) -> W {
        self.out
    }

    fn begin(
        &mut self,
        kind: RecordType,
        length: u64,
        prefix: &[u8],
    ) -> Result<RecordHeader, Defect> {
        let header = match u32::try_from(length) {
            Ok(length) if length <= MAX_LENGTH => RecordHeader {
                kind: kind.0,
                length,
            },
            _ => return Err(Defect::length(length, format!("at most {MAX_LENGTH}"))),
        };
        self.order.accept(&parse(header, prefix)?)?;
        self.out
            .write_all(&header.encode())
            .map_err(Defect::Output)?;
        Ok(header)
    }

    fn advance(&mut self, length: u64) {
        self.offset += 8 + length.next_multiple_of(8);
        self.records += 1;
    }

    fn located<T>(&self, kind: RecordType, result: Result<T, Defect>) -> Result<T, Error> {
        let part = Part::LibxlRecord {
            index: self.records,
            kind,
        };
        result.map_err(|defect| Error::new(self.offset, part, defect))
    }
}

/// The libxc stream passes through.
impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.offset += count as u64;
        Ok(count)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let count = self.out.write_vectored(slices)?;
        self.offset += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn emulator_head(emulator: Emulator, index: u32) -> [u8; 8] {
    let mut head = [0; 8];
    head[..4].copy_from_slice(&emulator.id().to_le_bytes());
    head[4..].copy_from_slice(&index.to_le_bytes());
    head
}
