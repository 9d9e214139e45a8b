//! Streams to test with: what the writers of Xen make, small and of any size.
//!
//! Behind the feature `testing`; tests, fuzz targets, benchmarks and the comparison with Xen's own
//! tools share it.

mod legacy;

use std::io::Write;

pub use legacy::LegacySample;

use crate::error::Error;
use crate::libxc::{
    DomainHeader, DomainType, HvmParam, ImageHeader, MAX_BATCH, P2mFrames, PageEntry, PageType,
    PvInfo, TscInfo, VcpuPart, Writer,
};
use crate::libxl::{self, Emulator};
use crate::xl::SaveHeader;

/// Which stream to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Version of the libxc stream, 2 or 3.
    pub version: u32,
    /// The guest: PV of a width, or HVM.
    pub guest: Guest,
    /// Frames with contents.
    pub pages: u64,
    /// Frames per record.
    pub batch: usize,
    /// vCPUs.
    pub vcpus: u32,
}

/// The guest of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// PV.
    Pv(PvInfo),
    /// HVM or PVH.
    Hvm,
}

impl Sample {
    /// A small stream of version 3.
    #[must_use]
    pub fn new(guest: Guest) -> Self {
        Self {
            version: 3,
            guest,
            pages: 5,
            batch: MAX_BATCH,
            vcpus: 2,
        }
    }

    /// Writes the libxc stream.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn libxc<W: Write>(&self, out: W) -> Result<W, Error> {
        let (image, domain) = self.headers();
        self.body(Writer::new(out, image, domain)?)
    }

    /// Writes the libxc stream in a libxl stream.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn libxl<W: Write>(&self, out: W) -> Result<W, Error> {
        let (image, domain) = self.headers();
        let outer = libxl::Writer::new(out, libxl::Header::default())?;
        let mut outer = self.body(outer.libxc_context(image, domain)?)?;
        self.emulator(&mut outer)?;
        outer.end()?;
        Ok(outer.into_inner())
    }

    /// Writes a file like `xl save`.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn xl<W: Write>(&self, mut out: W) -> Result<W, Error> {
        let header = SaveHeader::new(r#"{"c_info":{"name":"sample"}}"#);
        out.write_all(&header.encode())
            .map_err(|error| Error::new(0, crate::Part::XlHeader, error))?;
        self.libxl(out)
    }

    /// Writes a libxl stream with this many checkpoints, like Remus.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn remus<W: Write>(&self, out: W, checkpoints: u32) -> Result<W, Error> {
        let (image, domain) = self.headers();
        let outer = libxl::Writer::new(out, libxl::Header::default())?;
        let mut inner = outer.libxc_context(image, domain)?;
        self.static_data(&mut inner)?;
        for _ in 0..checkpoints {
            self.memory(&mut inner)?;
            self.tail(&mut inner)?;
            inner.checkpoint()?;
            let outer = inner.get_mut();
            outer.checkpoint();
            self.emulator(outer)?;
            outer.checkpoint_end()?;
        }
        inner.end()?;
        let mut outer = inner.into_inner();
        outer.end()?;
        Ok(outer.into_inner())
    }

    fn headers(&self) -> (ImageHeader, DomainHeader) {
        let image = ImageHeader {
            version: self.version,
        };
        let kind = match self.guest {
            Guest::Pv(_) => DomainType::Pv,
            Guest::Hvm => DomainType::Hvm,
        };
        let domain = DomainHeader {
            kind,
            xen_major: 4,
            xen_minor: 17,
        };
        (image, domain)
    }

    fn body<W: Write>(&self, mut out: Writer<W>) -> Result<W, Error> {
        self.static_data(&mut out)?;
        self.memory(&mut out)?;
        self.tail(&mut out)?;
        out.end()?;
        Ok(out.into_inner())
    }

    fn static_data<W: Write>(&self, out: &mut Writer<W>) -> Result<(), Error> {
        if let Guest::Pv(info) = self.guest {
            out.pv_info(info)?;
        }
        if self.version >= 3 {
            out.cpuid_policy(&[7; 3 * 24])?;
            out.msr_policy(&[9; 2 * 16])?;
            out.static_data_end()?;
        }
        if let Guest::Pv(info) = self.guest {
            let last = u32::try_from(self.pages + 3).unwrap_or(u32::MAX);
            let range = P2mFrames { first: 0, last };
            let pages: Vec<u64> = (0..range.pages(info)).collect();
            out.p2m_frames(range, &pages)?;
        }
        Ok(())
    }

    fn memory<W: Write>(&self, out: &mut Writer<W>) -> Result<(), Error> {
        let most = self.pages.min(self.batch as u64);
        let contents = noise(usize::try_from(most).unwrap_or(MAX_BATCH) * 4096);
        let mut pfn = 0;
        while pfn < self.pages {
            let count = (self.pages - pfn).min(self.batch as u64);
            let entries: Vec<PageEntry> = (pfn..pfn + count)
                .filter_map(|pfn| PageEntry::new(pfn, self.page_type(pfn)))
                .collect();
            let bytes = entries.len() * 4096;
            out.page_data(&entries, &[&contents[..bytes]])?;
            pfn += count;
        }
        // Frames that went away while the guest was running.
        let gone = [PageType::INVALID, PageType::BROKEN, PageType::ALLOCATE];
        let entries: Vec<PageEntry> = (self.pages..)
            .zip(gone)
            .filter_map(|(pfn, kind)| PageEntry::new(pfn, kind))
            .collect();
        out.page_data(&entries, &[])
    }

    /// Some frames of a PV guest are page tables.
    fn page_type(&self, pfn: u64) -> PageType {
        let level = u8::try_from(pfn % 16).unwrap_or(0);
        match self.guest {
            Guest::Pv(_) => PageType::table(level, level == 4).unwrap_or(PageType::NORMAL),
            Guest::Hvm => PageType::NORMAL,
        }
    }

    fn tail<W: Write>(&self, out: &mut Writer<W>) -> Result<(), Error> {
        out.tsc_info(TscInfo {
            mode: 1,
            khz: 2_500_000,
            elapsed_ns: 1 << 40,
            incarnation: 0,
        })?;
        match self.guest {
            Guest::Hvm => {
                out.hvm_context(&[5; 1003])?;
                let params = [(1, 0xfeffc), (5, 0xfeffe), (17, 0xfefff)];
                out.hvm_params(&params.map(|(index, value)| HvmParam { index, value }))
            }
            Guest::Pv(info) => {
                out.shared_info(&[6; 4096])?;
                for id in 0..self.vcpus {
                    let context = vec![1; info.vcpu_context() as usize];
                    out.vcpu(VcpuPart::Basic, id, &context)?;
                    out.vcpu(VcpuPart::Extended, id, &[2; 128])?;
                    out.vcpu(VcpuPart::Xsave, id, &[3; 836])?;
                    out.vcpu(VcpuPart::Msrs, id, &[4; 32])?;
                }
                Ok(())
            }
        }
    }

    fn emulator<W: Write>(&self, out: &mut libxl::Writer<W>) -> Result<(), Error> {
        if self.guest == Guest::Hvm {
            let strings = b"physmap/f0000000/start_addr\0f0000000\0physmap/f0000000/name\0vga\0";
            out.emulator_xenstore_data(Emulator::QemuUpstream, 0, strings)?;
            out.emulator_context(Emulator::QemuUpstream, 0, b"QEVM and so on")?;
        }
        Ok(())
    }
}

/// Bytes that do not compress, the same each time.
#[must_use]
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.flat_map(u64::to_le_bytes).take(count).collect()
}
