//! The frame that libxc and libxl records share: type, length, body, padding to 8 bytes.

/// Bytes of a record's header.
pub const HEADER: usize = 8;

/// The longest body that receivers accept (`REC_LENGTH_MAX` of libxenguest).
pub const MAX_LENGTH: u32 = 128 << 20;

/// Type bit of records that a receiver may ignore if it does not know them.
pub const OPTIONAL: u32 = 1 << 31;

/// The first eight bytes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The type, a number of the layer that the record is in.
    pub kind: u32,
    /// Bytes of the body, padding not counted.
    pub length: u32,
}

impl RecordHeader {
    /// Takes the header apart.
    #[must_use]
    pub fn decode(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            kind: u32::from_le_bytes([a, b, c, d]),
            length: u32::from_le_bytes([e, f, g, h]),
        }
    }

    /// Puts the header together.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[4..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// Zero bytes that follow the body.
    #[must_use]
    pub fn padding(self) -> usize {
        self.length.wrapping_neg() as usize % 8
    }

    /// Whether a receiver may ignore the record.
    #[must_use]
    pub fn is_optional(self) -> bool {
        self.kind & OPTIONAL != 0
    }
}

/// Reads little-endian fields one after the other from bytes that are known to be there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// The next `N` bytes.
    ///
    /// Panics if there are fewer: callers ask for what they have measured.
    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .expect("the caller has measured the bytes");
        self.0 = rest;
        *head
    }
}

#[cfg(test)]
mod tests {
    use super::RecordHeader;

    #[test]
    fn padding_reaches_the_next_multiple_of_eight() {
        let padding = |length| RecordHeader { kind: 0, length }.padding();
        assert_eq!([0, 1, 7, 8, 9].map(padding), [0, 7, 1, 0, 7]);
        assert_eq!(padding(u32::MAX), 1);
    }

    #[test]
    fn literal_bytes_both_ways() {
        let header = RecordHeader {
            kind: 0x8000_0001,
            length: 0x0102,
        };
        let bytes = [1, 0, 0, 0x80, 2, 1, 0, 0];
        assert_eq!(header.encode(), bytes);
        assert_eq!(RecordHeader::decode(bytes), header);
        assert!(header.is_optional());
    }
}
