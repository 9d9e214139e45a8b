//! What kind of file the guest's kernel is, and how to get the ELF image out of it.
//!
//! The toolstack loads the file as it is, so a distribution's `vmlinuz` arrives as a bzImage: a
//! boot sector, a 16-bit part and a compressed ELF image.  The caller asks for the
//! [`unpacked_len`](Packed::unpacked_len), finds that much memory and has the image unpacked
//! straight into it.  The decoders are kept libraries except for [`zstd`], and this module and its
//! children only know the containers around the compressed data.

mod bzimage;
mod gzip;
mod lz4;
mod xz;
mod zstd;

use core::fmt;

/// Largest image that is accepted; real ones are below 100 MiB.
pub const MAX_UNPACKED: usize = 1 << 30;

/// A compression that kernels come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// `.xz`, with or without the x86 branch filter.
    Xz,
    /// RFC 8878.
    Zstd,
    /// LZ4's legacy frame, which is the one the kernel build uses.
    Lz4,
    /// LZMA alone; not supported.
    Lzma,
    /// LZO; not supported.
    Lzo,
    /// bzip2; not supported.
    Bzip2,
}

impl Format {
    /// Tells the format by its first bytes.
    fn recognise(data: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Format); 7] = [
            (&[0x1f, 0x8b], Format::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Format::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
            (&[0x02, 0x21, 0x4c, 0x18], Format::Lz4),
            (&[0x5d, 0x00, 0x00], Format::Lzma),
            (&[0x89, b'L', b'Z', b'O', 0], Format::Lzo),
            (b"BZh", Format::Bzip2),
        ];
        MAGICS
            .iter()
            .find(|(magic, _)| data.starts_with(magic))
            .map(|&(_, format)| format)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
            Self::Bzip2 => "bzip2",
        }
    }

    const fn is_supported(self) -> bool {
        matches!(self, Self::Gzip | Self::Xz | Self::Zstd | Self::Lz4)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a kernel file is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadError {
    /// Neither an ELF image nor a bzImage.
    NotAKernel,
    /// A bzImage whose header or payload reaches beyond the file.
    Truncated,
    /// A bzImage of a boot protocol before 2.08, which does not say where its payload is.
    TooOld {
        /// The protocol, major in the high byte.
        protocol: u16,
    },
    /// A compression that is known but not supported.
    Unsupported(Format),
    /// A compression that is not known, with the payload's first bytes.
    Unknown([u8; 4]),
    /// The unpacked size is zero or beyond [`MAX_UNPACKED`].
    BadLength(usize),
    /// The caller's buffer is smaller than the unpacked image.
    BufferTooSmall,
    /// The compressed data is damaged.
    Damaged(Format),
    /// Unpacking gave another length than the file promised.
    WrongLength {
        /// What the file promised, in bytes.
        expected: usize,
        /// What came out, in bytes.
        got: usize,
    },
}

impl fmt::Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAKernel => f.write_str("the kernel is neither an ELF image nor a bzImage"),
            Self::Truncated => f.write_str("the bzImage is truncated"),
            Self::TooOld { protocol } => write!(
                f,
                "the bzImage speaks boot protocol {}.{:02}; 2.08 is the first that can be unpacked",
                protocol >> 8,
                protocol & 0xff
            ),
            Self::Unsupported(format) => {
                write!(
                    f,
                    "the kernel is compressed with {format}, which is not supported"
                )
            }
            Self::Unknown(bytes) => write!(
                f,
                "the kernel's compression is not known (it starts with {bytes:02x?})"
            ),
            Self::BadLength(len) => write!(f, "the unpacked kernel would have {len} bytes"),
            Self::BufferTooSmall => f.write_str("the buffer is smaller than the unpacked kernel"),
            Self::Damaged(format) => write!(f, "the kernel's {format} data is damaged"),
            Self::WrongLength { expected, got } => write!(
                f,
                "the kernel unpacks to {got} bytes where {expected} were announced"
            ),
        }
    }
}

/// A kernel file, recognised.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// An ELF image, to be used where it lies.
    Elf(&'a [u8]),
    /// A compressed image.
    Packed(Packed<'a>),
}

/// A compressed image inside a kernel file.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    format: Format,
    data: &'a [u8],
    unpacked_len: usize,
}

impl<'a> Payload<'a> {
    /// Recognises the kernel file `file`.
    ///
    /// # Errors
    /// Any [`PayloadError`] that shows without unpacking.
    pub fn recognise(file: &'a [u8]) -> Result<Self, PayloadError> {
        if is_elf(file) {
            return Ok(Self::Elf(file));
        }
        // A bare compressed ELF image is what some build systems install.  Only gzip's trailer
        // says how long the image is, so the others need the bzImage around them.
        let data = match Format::recognise(file) {
            Some(Format::Gzip) => file,
            Some(format) => return Err(PayloadError::Unsupported(format)),
            None => bzimage::payload(file)?,
        };
        if is_elf(data) {
            return Ok(Self::Elf(data));
        }
        Packed::new(data).map(Self::Packed)
    }
}

impl<'a> Packed<'a> {
    /// `data` ends in four bytes with the unpacked length: the kernel build appends them, except
    /// for gzip, where they are the format's own.
    fn new(data: &'a [u8]) -> Result<Self, PayloadError> {
        let (body, len) = data
            .split_last_chunk::<4>()
            .ok_or(PayloadError::Truncated)?;
        let format = Format::recognise(body).ok_or_else(|| {
            let mut start = [0; 4];
            body.iter()
                .zip(&mut start)
                .for_each(|(from, to)| *to = *from);
            PayloadError::Unknown(start)
        })?;
        if !format.is_supported() {
            return Err(PayloadError::Unsupported(format));
        }
        let unpacked_len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        if unpacked_len == 0 || unpacked_len > MAX_UNPACKED {
            return Err(PayloadError::BadLength(unpacked_len));
        }
        let data = if format == Format::Gzip { data } else { body };
        Ok(Self {
            format,
            data,
            unpacked_len,
        })
    }

    /// Returns the compression.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Returns the length of the image in bytes, as the file announces it.
    pub const fn unpacked_len(&self) -> usize {
        self.unpacked_len
    }

    /// Returns roughly how many bytes of heap [`unpack`](Self::unpack) needs at its peak.
    ///
    /// All but xz use the output as their window; xz keeps a dictionary of its own.
    pub fn heap_needed(&self) -> usize {
        match self.format {
            Format::Xz => xz::heap_needed(self.data),
            Format::Zstd => zstd::heap_needed(),
            _ => 64 << 10,
        }
    }

    /// Unpacks the image into the first [`unpacked_len`](Self::unpacked_len) bytes of `out` and
    /// returns them.
    ///
    /// # Errors
    /// [`PayloadError::BufferTooSmall`], [`PayloadError::Damaged`] or
    /// [`PayloadError::WrongLength`]; `out` then holds anything.
    pub fn unpack<'o>(&self, out: &'o mut [u8]) -> Result<&'o mut [u8], PayloadError> {
        let out = out
            .get_mut(..self.unpacked_len)
            .ok_or(PayloadError::BufferTooSmall)?;
        let got = match self.format {
            Format::Gzip => gzip::unpack(self.data, out),
            Format::Xz => xz::unpack(self.data, out),
            Format::Zstd => zstd::unpack(self.data, out),
            Format::Lz4 => lz4::unpack(self.data, out),
            Format::Lzma | Format::Lzo | Format::Bzip2 => {
                return Err(PayloadError::Unsupported(self.format));
            }
        }
        .ok_or(PayloadError::Damaged(self.format))?;
        if got != self.unpacked_len {
            return Err(PayloadError::WrongLength {
                expected: self.unpacked_len,
                got,
            });
        }
        Ok(out)
    }
}

fn is_elf(data: &[u8]) -> bool {
    data.starts_with(b"\x7fELF")
}
