//! Which toolstack wrote a legacy stream, and for which kind of guest.

use std::io::Read;

use crate::error::{Defect, Error, Part};
use crate::input::Input;
use crate::libxc::DomainType;
use crate::libxl;
use crate::record::Fields;

/// Bytes that tell all; the shortest stream has more.
const ENOUGH: usize = 24;

/// The width of the sender's `unsigned long`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// A 32-bit toolstack.
    Bits32,
    /// A 64-bit toolstack.
    Bits64,
}

impl Width {
    /// Bytes of a word.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }

    /// Bits of a word.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }
}

/// Where a legacy stream comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The sender's width.
    pub width: Width,
    /// The kind of guest.
    pub guest: DomainType,
}

impl Origin {
    /// Looks at the first bytes, and takes the caller's word for what it knows.
    ///
    /// The specification of version 2 gives the rule for the width: the first word is a number of
    /// frames below 2³², so that bytes 4 to 7 are zero if it has 64 bits; if it has 32, they
    /// are the all-ones mark of a PV guest or the number of an HVM guest's first chunk, never 0.
    ///
    /// After that word a PV guest has the mark, a length and a block named by four letters.  The mark is
    /// also a chunk number (-1), but then no letters follow.
    ///
    /// # Errors
    /// If the input is no legacy stream.
    pub fn detect<R: Read>(
        input: &mut Input<R>,
        width: Option<Width>,
        guest: Option<DomainType>,
    ) -> Result<Self, Error> {
        let start = input.offset();
        let mut look = || {
            let bytes = input.peek(ENOUGH)?;
            let Some((first, _)) = bytes.split_first_chunk::<8>() else {
                let missing = (8 - bytes.len()) as u64;
                return Err(Defect::Truncated { missing });
            };
            let whole = u64::from_be_bytes(*first);
            if whole == u64::MAX || whole == libxl::IDENT {
                return Err(Defect::Unsupported(
                    "this is not a legacy stream, but version 2 or 3",
                ));
            }
            if bytes.len() < ENOUGH {
                let missing = (ENOUGH - bytes.len()) as u64;
                return Err(Defect::Truncated { missing });
            }
            let width = width.unwrap_or(match first[4..] {
                [0, 0, 0, 0] => Width::Bits64,
                _ => Width::Bits32,
            });
            let guest = guest.unwrap_or_else(|| guess_guest(bytes, width));
            Ok(Self { width, guest })
        };
        let name = "p2m_size";
        look().map_err(|defect| Error::new(start, Part::Legacy { name, index: 0 }, defect))
    }
}

fn guess_guest(bytes: &[u8], width: Width) -> DomainType {
    let word = width.bytes();
    let Some(rest) = bytes.get(word..2 * word + 8) else {
        return DomainType::Hvm;
    };
    let (mark, rest) = rest.split_at(word);
    let mut fields = Fields(rest);
    let _length = fields.u32();
    let name: [u8; 4] = fields.take();
    if mark.iter().all(|byte| *byte == 0xff) && name.iter().all(u8::is_ascii_alphanumeric) {
        DomainType::Pv
    } else {
        DomainType::Hvm
    }
}

#[cfg(test)]
mod tests {
    use super::{Origin, Width};
    use crate::input::Input;
    use crate::libxc::DomainType;

    fn detect(bytes: &[u8]) -> (Width, DomainType) {
        let more = [bytes, &[0; 24]].concat();
        let origin = Origin::detect(&mut Input::new(&more[..]), None, None).unwrap();
        (origin.width, origin.guest)
    }

    #[test]
    fn all_four_kinds_are_told_apart() {
        let pv64 = b"\0\x40\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x38\x14\0\0vcpu";
        assert_eq!(detect(pv64), (Width::Bits64, DomainType::Pv));
        let pv32 = b"\0\x40\0\0\xff\xff\xff\xff\x38\x14\0\0vcpu\x30\x14\0\0";
        assert_eq!(detect(pv32), (Width::Bits32, DomainType::Pv));
        let hvm64 = b"\0\x40\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\x01\0\0\0";
        assert_eq!(detect(hvm64), (Width::Bits64, DomainType::Hvm));
        let hvm32 = b"\0\x40\0\0\0\x04\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0";
        assert_eq!(detect(hvm32), (Width::Bits32, DomainType::Hvm));
    }

    #[test]
    fn a_verify_chunk_is_not_the_mark_of_a_pv_guest() {
        let hvm32 = b"\0\x40\0\0\xff\xff\xff\xff\0\x04\0\0\0\0\0\0\x01\0\0\0";
        assert_eq!(detect(hvm32), (Width::Bits32, DomainType::Hvm));
        let hvm64 = b"\0\x40\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\0\x04\0\0\0\0\0\0";
        assert_eq!(detect(hvm64), (Width::Bits64, DomainType::Hvm));
    }

    #[test]
    fn newer_streams_are_refused_by_name() {
        for bytes in [
            b"\xff\xff\xff\xff\xff\xff\xff\xffXENF",
            b"LibxlFmt\0\0\0\x02",
        ] {
            let error = Origin::detect(&mut Input::new(&bytes[..]), None, None).unwrap_err();
            assert!(error.to_string().contains("version 2 or 3"), "{error}");
        }
    }
}
