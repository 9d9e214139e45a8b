//! The header that xl puts before a stream, in files and on the wire.
//!
//! `tools/xl/xl.h`: 48 bytes in the byte order of the sender, then optional data, of which only the
//! domain's configuration is defined.

use std::io::Read;

use bitflags::bitflags;

use crate::error::Defect;
use crate::input::Input;
use crate::record::Fields;

const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
const BYTE_ORDER: u32 = 0x0102_0304;

/// Longest optional data that is held; longer ones are refused.  Real configurations have a few KiB.
pub const MAX_CONFIG: u32 = 4 << 20;

bitflags! {
    /// What a receiver must understand; it refuses bits that it does not know.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Mandatory: u32 {
        /// The configuration is JSON (else it is in xl.cfg's own format).
        const JSON = 1 << 0;
        /// A libxl stream of version 2 follows (else a legacy one).
        const STREAM_V2 = 1 << 1;
    }
}

/// The header and what follows it before the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveHeader {
    /// What a receiver must understand.
    pub mandatory: Mandatory,
    /// What a receiver may ignore; nothing is defined.
    pub optional: u32,
    /// The optional data as it is.
    pub data: Vec<u8>,
}

impl SaveHeader {
    /// Bytes before the optional data.
    pub const SIZE: usize = 48;

    /// A header with a JSON configuration, for a stream of version 2.
    #[must_use]
    pub fn new(config: &str) -> Self {
        // xl counts the terminating NUL.
        let length = u32::try_from(config.len() + 1).unwrap_or(u32::MAX);
        let mut data = length.to_le_bytes().to_vec();
        data.extend_from_slice(config.as_bytes());
        data.push(0);
        Self {
            mandatory: Mandatory::all(),
            optional: 0,
            data,
        }
    }

    /// The domain's configuration, without its terminating NUL, if the sender told it.
    #[must_use]
    pub fn config(&self) -> Option<&[u8]> {
        let (length, rest) = self.data.split_first_chunk::<4>()?;
        let config = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        Some(config.strip_suffix(&[0]).unwrap_or(config))
    }

    /// Puts header and optional data together.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let length = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
        for field in [BYTE_ORDER, self.mandatory.bits(), self.optional, length] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&self.data);
        bytes
    }

    /// Looks whether such a header comes next; an input that ends within the magic is truncated.
    pub(crate) fn is_next<R: Read>(input: &mut Input<R>) -> Result<bool, Defect> {
        let bytes = input.peek(MAGIC.len())?;
        if (8..MAGIC.len()).contains(&bytes.len()) && MAGIC.starts_with(bytes) {
            let missing = (Self::SIZE - bytes.len()) as u64;
            return Err(Defect::Truncated { missing });
        }
        Ok(bytes == MAGIC)
    }

    /// Reads it with its optional data.
    ///
    /// # Errors
    /// If this is not such a header, or one that nobody can read.
    pub(crate) fn read<R: Read>(input: &mut Input<R>) -> Result<Self, Defect> {
        let (mut header, length) = Self::decode(&input.array()?)?;
        header.data = vec![0; length as usize];
        input.fill(&mut header.data)?;
        header.check_data()?;
        Ok(header)
    }

    /// Takes the fixed part apart; returns the length of the optional data too, which is bounded.
    fn decode(bytes: &[u8; Self::SIZE]) -> Result<(Self, u32), Defect> {
        let mut fields = Fields(bytes);
        let magic: [u8; 32] = fields.take();
        if magic != *MAGIC {
            let mut first = Fields(&magic);
            return Err(Defect::Magic {
                expected: "a file that xl saved",
                found: u64::from_be_bytes(first.take()),
            });
        }
        match fields.u32() {
            BYTE_ORDER => {}
            order if order == BYTE_ORDER.swap_bytes() => {
                return Err(Defect::Unsupported("a big-endian host wrote this"));
            }
            order => {
                return Err(Defect::Value {
                    field: "the byte order",
                    value: order.into(),
                });
            }
        }
        let flags = fields.u32();
        let Some(mandatory) = Mandatory::from_bits(flags) else {
            return Err(Defect::Reserved {
                field: "the mandatory flags, which must be understood",
                value: (flags & !Mandatory::all().bits()).into(),
            });
        };
        let optional = fields.u32();
        let length = fields.u32();
        if length > MAX_CONFIG {
            return Err(Defect::length(length, format!("at most {MAX_CONFIG}")));
        }
        let header = Self {
            mandatory,
            optional,
            data: Vec::new(),
        };
        Ok((header, length))
    }

    /// Checks the optional data: a length and as many bytes at least.
    fn check_data(&self) -> Result<(), Defect> {
        if self.data.is_empty() || self.config().is_some() {
            return Ok(());
        }
        Err(Defect::Value {
            field: "the configuration's length in optional data of this length",
            value: self.data.len() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{MAGIC, Mandatory, SaveHeader};

    const BYTES: &[u8] = b"Xen saved domain, xl format\n \0 \r\x04\x03\x02\x01\
        \x03\0\0\0\0\0\0\0\x07\0\0\0\x03\0\0\0{}\0";

    #[test]
    fn literal_bytes_both_ways() {
        assert_eq!(MAGIC.len(), 32);
        let header = SaveHeader::new("{}");
        assert_eq!(header.encode(), BYTES);
        let (mut read, length) = SaveHeader::decode(BYTES.first_chunk().unwrap()).unwrap();
        assert_eq!(length, 7);
        read.data = BYTES[48..].to_vec();
        read.check_data().unwrap();
        assert_eq!(read, header);
        assert_eq!(read.config(), Some(b"{}".as_slice()));
    }

    #[test]
    fn each_wrong_byte_is_named() {
        let complain = |at: usize, value: u8| {
            let mut bytes = *BYTES.first_chunk().unwrap();
            bytes[at] = value;
            SaveHeader::decode(&bytes).unwrap_err().to_string()
        };
        assert!(complain(0, 0).contains("not a file that xl saved"));
        assert!(complain(32, 0).contains("byte order"));
        assert!(complain(36, 4).contains("mandatory flags"));
        assert!(complain(47, 1).contains("at most"));
        let mut header = SaveHeader::new("{}");
        header.data[0] = 200;
        assert!(header.check_data().is_err());
        header.data.clear();
        assert!(header.check_data().is_ok());
        assert_eq!(header.mandatory, Mandatory::JSON | Mandatory::STREAM_V2);
    }
}
