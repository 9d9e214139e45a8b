//! Legacy streams to test with, as Xen before 4.6 wrote them.

use std::io::{self, Write};

use crate::legacy::Width;
use crate::testing::{Guest, noise};

/// Which legacy stream to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegacySample {
    /// Width of the toolstack.
    pub width: Width,
    /// The guest.
    pub guest: Guest,
    /// Frames with contents.
    pub pages: u64,
    /// Frames per batch, at most 1024.
    pub batch: usize,
    /// vCPUs; every third one is offline.
    pub vcpus: u32,
    /// Whether vCPUs have extended contexts.
    pub extended: bool,
    /// Bytes of XSAVE state, with its header of 16; 0: none.
    pub xsave: u32,
    /// Whether xl put a header before the stream.
    pub xl: bool,
    /// Whether odd and optional chunks are there.
    pub odd: bool,
    /// Whether there is a batch of which nothing is left when it is converted.
    pub empty_batch: bool,
}

impl LegacySample {
    /// A small stream with everything in it but an xl header.
    #[must_use]
    pub fn new(width: Width, guest: Guest) -> Self {
        Self {
            width,
            guest,
            pages: 9,
            batch: 4,
            vcpus: 5,
            extended: true,
            xsave: 16 + 836,
            xl: false,
            odd: true,
            empty_batch: false,
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn write<W: Write>(&self, out: W) -> io::Result<W> {
        let mut out = Out {
            out,
            width: self.width,
        };
        if self.xl {
            self.xl_header(&mut out)?;
        }
        let p2m_size = self.pages + 16;
        out.word(p2m_size)?;
        if let Guest::Pv(info) = self.guest {
            self.extended_info(&mut out)?;
            let pages = (p2m_size - 1) / u64::from(info.frames_per_page()) + 1;
            (0..pages).try_for_each(|pfn| out.word(pfn))?;
        }
        self.chunks(&mut out)?;
        match self.guest {
            Guest::Pv(_) => self.pv_tail(&mut out)?,
            Guest::Hvm => self.hvm_tail(&mut out)?,
        }
        Ok(out.out)
    }

    fn xl_header<W: Write>(&self, out: &mut Out<W>) -> io::Result<()> {
        out.bytes(b"Xen saved domain, xl format\n \0 \r")?;
        let config = b"name = 'sample'\n";
        for field in [0x0102_0304, 0, 0, 4 + config.len()] {
            out.u32(u32::try_from(field).unwrap_or(0))?;
        }
        out.u32(u32::try_from(config.len()).unwrap_or(0))?;
        out.bytes(config)
    }

    fn extended_info<W: Write>(&self, out: &mut Out<W>) -> io::Result<()> {
        let mut blocks = Vec::new();
        let mut block = |name: &[u8; 4], data: &[u8]| {
            blocks.extend_from_slice(name);
            blocks.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_le_bytes());
            blocks.extend_from_slice(data);
        };
        block(b"vcpu", &noise(self.context()));
        if self.extended {
            block(b"extv", &[]);
        }
        if self.xsave > 0 {
            block(b"xcnt", &self.xsave.to_le_bytes());
        }
        out.word(u64::MAX)?;
        out.u32(u32::try_from(blocks.len()).unwrap_or(0))?;
        out.bytes(&blocks)
    }

    /// Bytes of a vCPU's registers.
    fn context(&self) -> usize {
        match self.guest {
            Guest::Pv(info) => info.vcpu_context() as usize,
            Guest::Hvm => 0,
        }
    }

    fn chunks<W: Write>(&self, out: &mut Out<W>) -> io::Result<()> {
        let batch = self.batch as u64;
        let contents = noise(usize::try_from(batch.min(self.pages)).unwrap_or(0) * 4096);
        let mut pfn = 0;
        while pfn < self.pages {
            let count = batch.min(self.pages - pfn);
            // A hole that the converter drops, and one that it keeps.
            let holes: &[u64] = match self.odd && count + 2 <= 1024 {
                true => &[0xf000_0000, 0xf000_0000 | self.pages],
                false => &[],
            };
            out.i32(i32::try_from(count).unwrap_or(0) + i32::try_from(holes.len()).unwrap_or(0))?;
            for frame in pfn..pfn + count {
                out.word(self.kind(frame) << 28 | frame)?;
            }
            holes.iter().try_for_each(|hole| out.word(*hole))?;
            let bytes = usize::try_from(count).unwrap_or(0) * 4096;
            out.bytes(&contents[..bytes])?;
            pfn += count;
        }
        if self.empty_batch {
            out.i32(1)?;
            out.word(0xf000_0000)?;
        }
        if self.odd {
            out.i32(-1)?;
        }
        self.vcpu_info(out)?;
        out.i32(-7)?;
        out.u32(1)?;
        out.u64(123_456_789)?;
        out.u32(2_500_000)?;
        out.u32(3)?;
        if self.guest == Guest::Hvm {
            for chunk in [-3, -4, -8, -10, -11, -14, -15, -16, -17, -19, -20] {
                out.i32(chunk)?;
                out.u32(0)?;
                out.u64(u64::from(chunk.unsigned_abs()) << 12)?;
            }
            self.toolstack(out)?;
        }
        out.i32(-9)?;
        out.i32(0)
    }

    /// Some frames of a PV guest are page tables.
    fn kind(&self, frame: u64) -> u64 {
        match self.guest {
            Guest::Pv(_) if frame % 8 == 4 => 0xc,
            Guest::Pv(_) if frame % 8 < 4 => frame % 8,
            _ => 0,
        }
    }

    fn online(&self) -> impl Iterator<Item = u32> + use<> {
        (0..self.vcpus).filter(|id| id % 3 != 2)
    }

    fn vcpu_info<W: Write>(&self, out: &mut Out<W>) -> io::Result<()> {
        let highest = self.vcpus.saturating_sub(1);
        let mut words = vec![0u64; highest as usize / 64 + 1];
        for id in self.online() {
            words[id as usize / 64] |= 1 << (id % 64);
        }
        out.i32(-2)?;
        out.u32(highest)?;
        words.into_iter().try_for_each(|word| out.u64(word))
    }

    fn toolstack<W: Write>(&self, out: &mut Out<W>) -> io::Result<()> {
        let mut data = Vec::new();
        data.extend_from_slice(&1u32.to_le_bytes());
        data.extend_from_slice(&2u32.to_le_bytes());
        for (phys, name) in [
            (0xf000_0000u64, &b"vga.vram\0"[..]),
            (0xfeff_e000, b"rom\0"),
        ] {
            for field in [phys, phys >> 4, 0x10_0000] {
                data.extend_from_slice(&field.to_le_bytes());
            }
            data.extend_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_le_bytes());
            data.extend_from_slice(name);
            if self.width == Width::Bits64 {
                data.extend_from_slice(&[0xaa; 4]);
            }
        }
        out.i32(-18)?;
        out.u32(u32::try_from(data.len()).unwrap_or(0))?;
        out.bytes(&data)
    }

    fn pv_tail<W: Write>(&self, out: &mut Out<W>) -> io::Result<()> {
        let unmapped = if self.odd { 3 } else { 0 };
        out.u32(unmapped)?;
        (0..unmapped).try_for_each(|pfn| out.word(pfn.into()))?;
        for id in self.online() {
            let byte = u8::try_from(id % 256).unwrap_or(0);
            out.bytes(&vec![byte; self.context()])?;
            if self.extended {
                out.bytes(&[0xe0; 128])?;
            }
            if self.xsave > 0 {
                out.u64(7)?;
                out.u64((self.xsave - 16).into())?;
                out.bytes(&noise(self.xsave as usize - 16))?;
            }
        }
        out.bytes(&[0x55; 4096])
    }

    fn hvm_tail<W: Write>(&self, out: &mut Out<W>) -> io::Result<()> {
        for frame in [0xfeffe, 0xfefff, 0xfeffc] {
            out.u64(frame)?;
        }
        for data in [noise(1003), noise(555)] {
            if data.len() == 555 {
                out.bytes(b"DeviceModelRecord0002")?;
            }
            out.u32(u32::try_from(data.len()).unwrap_or(0))?;
            out.bytes(&data)?;
        }
        Ok(())
    }
}

/// The output, with words of the toolstack's width.
struct Out<W> {
    out: W,
    width: Width,
}

impl<W: Write> Out<W> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    fn i32(&mut self, value: i32) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    fn word(&mut self, value: u64) -> io::Result<()> {
        self.bytes(&value.to_le_bytes()[..self.width.bytes()])
    }
}
