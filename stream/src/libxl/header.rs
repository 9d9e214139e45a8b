//! The header of a libxl stream.

use crate::error::Defect;
use crate::record::Fields;

/// "LibxlFmt".
pub(crate) const IDENT: u64 = 0x4c69_6278_6c46_6d74;
const VERSION: u32 = 2;
const BIG_ENDIAN: u32 = 1;
const LEGACY: u32 = 2;

/// The header.  Always big-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Whether a converter wrote the stream.
    pub from_legacy: bool,
}

impl Header {
    /// Bytes of it.
    pub const SIZE: usize = 16;

    /// Takes it apart; with `strict`, reserved bits must be zero.
    ///
    /// # Errors
    /// If this is not a libxl stream that can be read.
    pub fn decode(bytes: &[u8; Self::SIZE], strict: bool) -> Result<Self, Defect> {
        let mut fields = Fields(bytes);
        let ident = u64::from_be_bytes(fields.take());
        if ident != IDENT {
            return Err(Defect::Magic {
                expected: "a libxl stream of version 2",
                found: ident,
            });
        }
        let version = u32::from_be_bytes(fields.take());
        if version != VERSION {
            return Err(Defect::Version(version));
        }
        let options = u32::from_be_bytes(fields.take());
        if options & BIG_ENDIAN != 0 {
            return Err(Defect::Unsupported("big-endian streams are not supported"));
        }
        if strict && options & !LEGACY != 0 {
            return Err(Defect::Reserved {
                field: "the libxl header's options",
                value: (options & !LEGACY).into(),
            });
        }
        Ok(Self {
            from_legacy: options & LEGACY != 0,
        })
    }

    /// Puts it together.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        let options = if self.from_legacy { LEGACY } else { 0 };
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&IDENT.to_be_bytes());
        bytes[8..12].copy_from_slice(&VERSION.to_be_bytes());
        bytes[12..].copy_from_slice(&options.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Header;

    #[test]
    fn literal_bytes_both_ways() {
        for (bytes, from_legacy) in [
            (b"LibxlFmt\0\0\0\x02\0\0\0\0", false),
            (b"LibxlFmt\0\0\0\x02\0\0\0\x02", true),
        ] {
            let header = Header { from_legacy };
            assert_eq!(Header::decode(bytes, true).unwrap(), header);
            assert_eq!(&header.encode(), bytes);
        }
        let wrong = |bytes| Header::decode(bytes, true).unwrap_err().to_string();
        assert!(wrong(b"LibxlFmz\0\0\0\x02\0\0\0\0").contains("not a libxl stream"));
        assert!(wrong(b"LibxlFmt\0\0\0\x03\0\0\0\0").contains("version 3"));
        assert!(wrong(b"LibxlFmt\0\0\0\x02\0\0\0\x01").contains("big-endian"));
        assert!(wrong(b"LibxlFmt\0\0\0\x02\0\0\0\x04").contains("reserved"));
    }
}
