//! The records of a stream that is whole in memory: what comes last of it is.

use unmoved_stream::RecordHeader;
use unmoved_stream::libxc::RecordType;

use crate::job::{Error, Result};

/// A record of the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    /// Its type.
    pub(crate) kind: RecordType,
    /// The body, without header and padding.
    pub(crate) body: &'a [u8],
    /// The complete record.
    pub(crate) whole: &'a [u8],
}

/// Splits bytes into records.
///
/// # Errors
/// If the last one is incomplete.
pub(crate) fn records(mut bytes: &[u8]) -> Result<Vec<Record<'_>>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let torn = || Error::Peer("a record of the stream is incomplete".to_owned());
        let (head, rest) = bytes.split_first_chunk().ok_or_else(torn)?;
        let header = RecordHeader::decode(*head);
        let len = header.length as usize;
        let body = rest.get(..len).ok_or_else(torn)?;
        let end = head.len() + len + header.padding();
        let whole = bytes.get(..end).ok_or_else(torn)?;
        found.push(Record {
            kind: RecordType(header.kind),
            body,
            whole,
        });
        bytes = &bytes[end..];
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use unmoved_stream::libxc::RecordType;

    use super::records;

    #[test]
    fn records_are_found_with_their_padding() {
        // Type and length, then the body, padded to eight bytes: one of eight bytes, one of three.
        let mut bytes = Vec::new();
        for (kind, body) in [
            (RecordType::X86_TSC_INFO, &[1u8; 8][..]),
            (RecordType::HVM_CONTEXT, b"abc"),
        ] {
            bytes.extend(kind.0.to_le_bytes());
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let found = records(&bytes).unwrap();
        assert_eq!(found[1].kind, RecordType::HVM_CONTEXT);
        assert_eq!((found[1].body, found[1].whole.len()), (&b"abc"[..], 16));
        for end in [1, 7, 17, bytes.len() - 1] {
            assert!(records(&bytes[..end]).is_err(), "{end}");
        }
    }
}
