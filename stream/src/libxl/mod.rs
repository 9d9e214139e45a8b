//! The libxl stream, version 2: a libxc stream and what device models need beside it.
//!
//! Names and numbers are those of Xen's `docs/specs/libxl-migration-stream.pandoc`.

mod body;
mod order;
mod writer;

use std::fmt;

pub use body::{CheckpointState, Content, Emulator};
pub use writer::Writer;

pub(crate) use body::{PREFIX, check_xenstore, parse};
pub(crate) use order::Order;

use crate::error::Defect;
use crate::record::{Fields, OPTIONAL};

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

/// The type of a record; any number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordType(pub u32);

impl RecordType {
    /// The last record.
    pub const END: Self = Self(0);
    /// A libxc stream follows; then libxl's records go on.
    pub const LIBXC_CONTEXT: Self = Self(1);
    /// xenstore entries of a device model.
    pub const EMULATOR_XENSTORE_DATA: Self = Self(2);
    /// A device model's state.
    pub const EMULATOR_CONTEXT: Self = Self(3);
    /// libxl's part of a checkpoint is complete.
    pub const CHECKPOINT_END: Self = Self(4);
    /// COLO's two ends tell each other where they are.
    pub const CHECKPOINT_STATE: Self = Self(5);

    /// The name in the specification, if the type is known.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::END => "END",
            Self::LIBXC_CONTEXT => "LIBXC_CONTEXT",
            Self::EMULATOR_XENSTORE_DATA => "EMULATOR_XENSTORE_DATA",
            Self::EMULATOR_CONTEXT => "EMULATOR_CONTEXT",
            Self::CHECKPOINT_END => "CHECKPOINT_END",
            Self::CHECKPOINT_STATE => "CHECKPOINT_STATE",
            _ => return None,
        })
    }

    /// Whether a receiver may ignore the record if it does not know it.
    ///
    /// The specification says so; libxl's reader refuses all types that it does not know.
    #[must_use]
    pub fn is_optional(self) -> bool {
        self.0 & OPTIONAL != 0
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type 0x{:08x}", self.0),
        }
    }
}

impl fmt::Debug for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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
