//! The two headers of a libxc stream.

use std::fmt;

use xen_abi::PAGE_SHIFT;

use crate::error::Defect;
use crate::record::Fields;

const MARKER: u64 = u64::MAX;
/// "XENF".
const IDENT: u32 = 0x5845_4e46;
const BIG_ENDIAN: u16 = 1;

/// The image header: what format this is.  Always big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// 2 or 3.
    pub version: u32,
}

impl ImageHeader {
    /// Bytes of it.
    pub const SIZE: usize = 24;

    /// Takes it apart; with `strict`, reserved bits must be zero.
    ///
    /// # Errors
    /// If this is not a libxc stream that can be read.
    pub fn decode(bytes: &[u8; Self::SIZE], strict: bool) -> Result<Self, Defect> {
        let mut fields = Fields(bytes);
        let marker = u64::from_be_bytes(fields.take());
        if marker != MARKER {
            return Err(Defect::Magic {
                expected: "a libxc stream of version 2 or 3",
                found: marker,
            });
        }
        let ident = u32::from_be_bytes(fields.take());
        if ident != IDENT {
            return Err(Defect::Magic {
                expected: "a libxc stream: after the marker comes an identity, and",
                found: ident.into(),
            });
        }
        let version = u32::from_be_bytes(fields.take());
        if !(2..=3).contains(&version) {
            return Err(Defect::Version(version));
        }
        let options = u16::from_be_bytes(fields.take());
        if options & BIG_ENDIAN != 0 {
            return Err(Defect::Unsupported("big-endian streams are not supported"));
        }
        let rest = u64::from(options) << 48
            | u64::from(u16::from_be_bytes(fields.take())) << 32
            | u64::from(u32::from_be_bytes(fields.take()));
        if strict && rest != 0 {
            return Err(Defect::Reserved {
                field: "the image header's last 8 bytes",
                value: rest,
            });
        }
        Ok(Self { version })
    }

    /// Puts it together.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&MARKER.to_be_bytes());
        bytes[8..12].copy_from_slice(&IDENT.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.version.to_be_bytes());
        bytes
    }
}

/// The kind of domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DomainType {
    /// Paravirtualised.
    Pv,
    /// With the processor's help; PVH guests are sent as these.
    Hvm,
}

impl DomainType {
    const fn number(self) -> u32 {
        match self {
            Self::Pv => 1,
            Self::Hvm => 2,
        }
    }
}

impl fmt::Display for DomainType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pv => "x86 PV",
            Self::Hvm => "x86 HVM",
        })
    }
}

/// The domain header: what kind of domain this is and who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainHeader {
    /// The kind of domain.
    pub kind: DomainType,
    /// Major version of the Xen that wrote it; 0: converted from a legacy stream.
    pub xen_major: u32,
    /// Minor version of the Xen, or version of the converter.
    pub xen_minor: u32,
}

impl DomainHeader {
    /// Bytes of it.
    pub const SIZE: usize = 16;

    /// Takes it apart; with `strict`, reserved bits must be zero.
    ///
    /// # Errors
    /// If it is not of a domain that can be read.
    pub fn decode(bytes: &[u8; Self::SIZE], strict: bool) -> Result<Self, Defect> {
        let mut fields = Fields(bytes);
        let kind = match fields.u32() {
            1 => DomainType::Pv,
            2 => DomainType::Hvm,
            other => {
                return Err(Defect::Value {
                    field: "the domain type",
                    value: other.into(),
                });
            }
        };
        let shift = fields.u16();
        if u32::from(shift) != PAGE_SHIFT {
            return Err(Defect::Value {
                field: "log2 of the page size",
                value: shift.into(),
            });
        }
        let reserved = fields.u16();
        if strict && reserved != 0 {
            return Err(Defect::Reserved {
                field: "the domain header",
                value: reserved.into(),
            });
        }
        Ok(Self {
            kind,
            xen_major: fields.u32(),
            xen_minor: fields.u32(),
        })
    }

    /// Puts it together.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.kind.number().to_le_bytes());
        bytes[4..6].copy_from_slice(&12u16.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.xen_major.to_le_bytes());
        bytes[12..].copy_from_slice(&self.xen_minor.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{DomainHeader, DomainType, ImageHeader};

    const IMAGE: &[u8; 24] = b"\xff\xff\xff\xff\xff\xff\xff\xffXENF\0\0\0\x03\0\0\0\0\0\0\0\0";
    const DOMAIN: &[u8; 16] = b"\x02\0\0\0\x0c\0\0\0\x04\0\0\0\x11\0\0\0";

    #[test]
    fn literal_bytes_both_ways() {
        let image = ImageHeader { version: 3 };
        assert_eq!(ImageHeader::decode(IMAGE, true).unwrap(), image);
        assert_eq!(&image.encode(), IMAGE);
        let domain = DomainHeader {
            kind: DomainType::Hvm,
            xen_major: 4,
            xen_minor: 17,
        };
        assert_eq!(DomainHeader::decode(DOMAIN, true).unwrap(), domain);
        assert_eq!(&domain.encode(), DOMAIN);
    }

    #[test]
    fn each_wrong_byte_is_named() {
        let complain = |at: usize, value: u8| {
            let mut bytes = *IMAGE;
            bytes[at] = value;
            ImageHeader::decode(&bytes, true).unwrap_err().to_string()
        };
        assert!(complain(0, 0).contains("not a libxc stream of version 2 or 3"));
        assert!(complain(8, 0).contains("identity"));
        assert!(complain(15, 1).contains("version 1 is not known"));
        assert!(complain(17, 1).contains("big-endian"));
        assert!(complain(17, 2).contains("reserved bits"));
        assert!(complain(23, 1).contains("reserved bits"));
        let mut bytes = *DOMAIN;
        bytes[4] = 13;
        let error = DomainHeader::decode(&bytes, true).unwrap_err();
        assert!(error.to_string().contains("page size cannot be 0xd"));
    }

    #[test]
    fn a_receiver_ignores_reserved_bits() {
        let mut bytes = *IMAGE;
        bytes[20] = 1;
        assert!(ImageHeader::decode(&bytes, true).is_err());
        assert!(ImageHeader::decode(&bytes, false).is_ok());
    }
}
