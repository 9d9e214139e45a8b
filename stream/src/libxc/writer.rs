//! Writes a libxc stream record by record, and refuses to write one that could not be read.
//!
//! PAGE_DATA, whose contents are not gathered before they are written, is in `sink`.

use std::io::{self, IoSlice, Write};

use xen_abi::PAGE_SIZE;

use crate::error::{Defect, Error, Part};
use crate::libxc::{
    DomainHeader, HvmParam, ImageHeader, Order, P2mFrames, PvInfo, RecordType, TscInfo, VcpuPart,
    parse,
};
use crate::record::{MAX_LENGTH, RecordHeader};

const ZEROES: [u8; 8] = [0; 8];

/// The writer.  Every method writes one record; the order is checked like a verifier would.
#[derive(Debug)]
pub struct Writer<W> {
    pub(super) out: W,
    pub(super) order: Order,
    pub(super) offset: u64,
    pub(super) records: u64,
    /// What comes before the next contents: the head of a record.
    pub(super) head: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Writes both headers.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn new(mut out: W, image: ImageHeader, domain: DomainHeader) -> Result<Self, Error> {
        let fail = |part| move |error| Error::new(0, part, Defect::Output(error));
        out.write_all(&image.encode())
            .map_err(fail(Part::ImageHeader))?;
        out.write_all(&domain.encode())
            .map_err(fail(Part::DomainHeader))?;
        Ok(Self {
            out,
            order: Order::new(image, domain),
            offset: (ImageHeader::SIZE + DomainHeader::SIZE) as u64,
            records: 0,
            head: Vec::new(),
        })
    }

    /// Bytes written, headers included.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Records written.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The output: to flush it, or to write other layers' records after CHECKPOINT.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Gives the output back.
    #[must_use]
    pub fn into_inner(self) -> W {
        self.out
    }

    /// Writes X86_PV_INFO.
    ///
    /// # Errors
    /// If it may not come here or the output cannot be written; this holds for all records.
    pub fn pv_info(&mut self, guest: PvInfo) -> Result<(), Error> {
        self.record(RecordType::X86_PV_INFO, &[&guest.encode()])
    }

    /// Writes X86_CPUID_POLICY: `xen_cpuid_leaf_t`s as the hypercall gave them.
    ///
    /// # Errors
    /// As for all records, or if it is not a number of whole leaves.
    pub fn cpuid_policy(&mut self, leaves: &[u8]) -> Result<(), Error> {
        self.record(RecordType::X86_CPUID_POLICY, &[leaves])
    }

    /// Writes X86_MSR_POLICY: `xen_msr_entry_t`s as the hypercall gave them.
    ///
    /// # Errors
    /// As for all records, or if it is not a number of whole entries.
    pub fn msr_policy(&mut self, entries: &[u8]) -> Result<(), Error> {
        self.record(RecordType::X86_MSR_POLICY, &[entries])
    }

    /// Writes STATIC_DATA_END.
    ///
    /// # Errors
    /// As for all records.
    pub fn static_data_end(&mut self) -> Result<(), Error> {
        self.record(RecordType::STATIC_DATA_END, &[])
    }

    /// Writes X86_PV_P2M_FRAMES: where the pages of the P2M are that hold the range.
    ///
    /// # Errors
    /// As for all records, or if the number of pages is not that of the range.
    pub fn p2m_frames(&mut self, range: P2mFrames, pages: &[u64]) -> Result<(), Error> {
        let mut body = Vec::with_capacity(8 + 8 * pages.len());
        body.extend_from_slice(&range.first.to_le_bytes());
        body.extend_from_slice(&range.last.to_le_bytes());
        for pfn in pages {
            body.extend_from_slice(&pfn.to_le_bytes());
        }
        self.record(RecordType::X86_PV_P2M_FRAMES, &[&body])
    }

    /// Writes VERIFY: pages that follow are to be compared.
    ///
    /// # Errors
    /// As for all records.
    pub fn verify(&mut self) -> Result<(), Error> {
        self.record(RecordType::VERIFY, &[])
    }

    /// Writes X86_TSC_INFO.
    ///
    /// # Errors
    /// As for all records.
    pub fn tsc_info(&mut self, info: TscInfo) -> Result<(), Error> {
        self.record(RecordType::X86_TSC_INFO, &[&info.encode()])
    }

    /// Writes SHARED_INFO, a page.
    ///
    /// # Errors
    /// As for all records.
    pub fn shared_info(&mut self, page: &[u8; PAGE_SIZE]) -> Result<(), Error> {
        self.record(RecordType::SHARED_INFO, &[page])
    }

    /// Writes one X86_PV_VCPU_* record.
    ///
    /// # Errors
    /// As for all records, or if the state does not have the size that it must have.
    pub fn vcpu(&mut self, part: VcpuPart, id: u32, state: &[u8]) -> Result<(), Error> {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&id.to_le_bytes());
        self.record(part.record(), &[&head, state])
    }

    /// Writes HVM_CONTEXT: the blob as the hypercall gave it.
    ///
    /// # Errors
    /// As for all records, or if it is empty.
    pub fn hvm_context(&mut self, context: &[u8]) -> Result<(), Error> {
        self.record(RecordType::HVM_CONTEXT, &[context])
    }

    /// Writes HVM_PARAMS; none at all are left out, as the specification asks.
    ///
    /// # Errors
    /// As for all records.
    pub fn hvm_params(&mut self, params: &[HvmParam]) -> Result<(), Error> {
        let Ok(count) = u32::try_from(params.len()) else {
            let defect = Defect::Unsupported("these are more parameters than a record can hold");
            return self.located(RecordType::HVM_PARAMS, Err(defect));
        };
        if count == 0 {
            return Ok(());
        }
        let mut body = Vec::with_capacity(8 + 16 * params.len());
        body.extend_from_slice(&count.to_le_bytes());
        body.extend_from_slice(&[0; 4]);
        for param in params {
            body.extend_from_slice(&param.index.to_le_bytes());
            body.extend_from_slice(&param.value.to_le_bytes());
        }
        self.record(RecordType::HVM_PARAMS, &[&body])
    }

    /// Writes CHECKPOINT: all that came is a consistent state.  In a libxl stream, libxl's records
    /// follow up to CHECKPOINT_END.
    ///
    /// # Errors
    /// As for all records, or if a receiver could not run the guest from what has come.
    pub fn checkpoint(&mut self) -> Result<(), Error> {
        self.record(RecordType::CHECKPOINT, &[])
    }

    /// Writes END.
    ///
    /// # Errors
    /// As for all records, or if a receiver could not run the guest from what has come.
    pub fn end(&mut self) -> Result<(), Error> {
        self.record(RecordType::END, &[])
    }

    /// Writes any record but PAGE_DATA from its parts, for instance an optional one.
    ///
    /// # Errors
    /// As for all records, or if fields or length are wrong.
    pub fn record(&mut self, kind: RecordType, parts: &[&[u8]]) -> Result<(), Error> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let result = self.begin(kind, length, parts).and_then(|header| {
            self.head.clear();
            self.head.extend_from_slice(&header.encode());
            let mut slices = Vec::with_capacity(parts.len() + 2);
            slices.push(IoSlice::new(&self.head));
            slices.extend(parts.iter().map(|part| IoSlice::new(part)));
            slices.push(IoSlice::new(&ZEROES[..header.padding()]));
            self.offset += write_slices(&mut self.out, &mut slices).map_err(Defect::Output)?;
            Ok(())
        });
        self.located(kind, result)?;
        self.records += 1;
        Ok(())
    }

    /// Begins a record whose body the caller copies to [`Self::get_mut`] piece by piece.
    /// `prefix` is the body's beginning, as much as is needed to check it; nothing of it is written.
    pub(crate) fn begin_long(
        &mut self,
        kind: RecordType,
        length: u32,
        prefix: &[u8],
    ) -> Result<(), Error> {
        let result = self
            .begin(kind, length as usize, &[prefix])
            .and_then(|header| {
                let written = self.out.write_all(&header.encode());
                written.map_err(Defect::Output)
            });
        self.located(kind, result)?;
        self.offset += 8 + u64::from(length.next_multiple_of(8));
        self.records += 1;
        Ok(())
    }

    /// Checks a record that is about to be written.
    fn begin(
        &mut self,
        kind: RecordType,
        length: usize,
        parts: &[&[u8]],
    ) -> Result<RecordHeader, Defect> {
        let header = header(kind, length)?;
        if kind == RecordType::PAGE_DATA {
            return Err(Defect::Unsupported("pages are written as pages"));
        }
        let prefix: Vec<u8> = parts
            .iter()
            .flat_map(|part| part.iter())
            .take(super::PREFIX)
            .copied()
            .collect();
        let content = parse(header, &prefix, self.order.guest(), true)?;
        self.order.accept(&content)?;
        Ok(header)
    }

    pub(super) fn located<T>(
        &self,
        kind: RecordType,
        result: Result<T, Defect>,
    ) -> Result<T, Error> {
        let part = Part::LibxcRecord {
            index: self.records,
            kind,
        };
        result.map_err(|defect| Error::new(self.offset, part, defect))
    }
}

pub(super) fn header(kind: RecordType, length: usize) -> Result<RecordHeader, Defect> {
    match u32::try_from(length) {
        Ok(length) if length <= MAX_LENGTH => Ok(RecordHeader {
            kind: kind.0,
            length,
        }),
        _ => Err(Defect::length(
            length as u64,
            format!("at most {MAX_LENGTH}"),
        )),
    }
}

/// Writes all of the slices with as few system calls as possible; returns the number of bytes.
pub(super) fn write_slices(out: &mut impl Write, slices: &mut [IoSlice<'_>]) -> io::Result<u64> {
    let mut rest = slices;
    let mut written = 0;
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match out.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                written += count as u64;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
