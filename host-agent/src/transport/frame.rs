//! Frames: messages in JSON, and headers of what a stream is made of.
//!
//! A **message** is its length as four bytes, big-endian, and so much JSON; at most [`MESSAGE_MOST`].
//!
//! A **data frame** begins with a header of 16 bytes, little-endian:
//!
//! | offset | size | is |
//! |---|---|---|
//! | 0 | 1 | kind: 1 bytes, 2 pages, 3 barrier, 4 acknowledgement, 5 end, 6 memory's digests, 7 the state's |
//! | 1 | 1 | codec of the content: 0 none, 1 zstd |
//! | 2 | 2 | pages: number of words, at most 1024; otherwise 0 |
//! | 4 | 4 | bytes of the content when decoded |
//! | 8 | 4 | bytes of the content here |
//! | 12 | 4 | 0 |
//!
//! Pages follow as words of 8 bytes and the content of all pages that have any, less those whose word
//! has bit 59 set: they are all zero.  (Bits 52 to 59 are reserved in a libxc stream, and 0 there.)

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::digests::{CHUNK, CHUNKS_MOST, STATE};
use crate::job::{Batch, PAGE_SIZE, has_content};
use crate::text::clean;

/// Longest message.
pub const MESSAGE_MOST: usize = 4 << 20;
/// Longest part of a stream that is not pages.
pub const BYTES_MOST: usize = 16 << 20;
/// Longest content of pages.
pub const CONTENT_MOST: usize = Batch::MOST * PAGE_SIZE;
/// The word's page is all zero.
pub const ZERO: u64 = 1 << 59;
/// Bits that are 0 in every word.
const RESERVED: u64 = 0x7F << 52;
/// Longest error about an invalid message.
const COMPLAINT_MOST: usize = 300;
/// Allocation before any content has arrived.
const TRUST: usize = 64 << 10;

/// The kind of a data frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A part of the stream that must stay in order.
    Bytes,
    /// Pages.
    Pages,
    /// Everything before it must arrive before it is acknowledged.
    Barrier,
    /// The acknowledgement.
    Ack,
    /// The last frame.
    End,
    /// Digests of memory.
    Digests,
    /// Digests of the state; the last of the digests.
    StateDigests,
}

/// A data frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The kind.
    pub kind: Kind,
    /// Whether the content is compressed.
    pub is_zstd: bool,
    /// Number of words.
    pub words: u16,
    /// Decoded length of the content in bytes.
    pub raw: u32,
    /// Length of the content here in bytes.
    pub wire: u32,
}

impl Header {
    /// Bytes of a header.
    pub const SIZE: usize = 16;

    /// A header without content.
    #[must_use]
    pub const fn of(kind: Kind) -> Self {
        Self {
            kind,
            is_zstd: false,
            words: 0,
            raw: 0,
            wire: 0,
        }
    }

    /// Its encoding.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = match self.kind {
            Kind::Bytes => 1,
            Kind::Pages => 2,
            Kind::Barrier => 3,
            Kind::Ack => 4,
            Kind::End => 5,
            Kind::Digests => 6,
            Kind::StateDigests => 7,
        };
        bytes[1] = u8::from(self.is_zstd);
        bytes[2..4].copy_from_slice(&self.words.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.raw.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.wire.to_le_bytes());
        bytes
    }

    /// Decodes a header and checks everything that can be checked without the content.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, String> {
        let [
            kind,
            codec,
            w0,
            w1,
            r0,
            r1,
            r2,
            r3,
            x0,
            x1,
            x2,
            x3,
            rest @ ..,
        ] = *bytes;
        let header = Self {
            kind: match kind {
                1 => Kind::Bytes,
                2 => Kind::Pages,
                3 => Kind::Barrier,
                4 => Kind::Ack,
                5 => Kind::End,
                6 => Kind::Digests,
                7 => Kind::StateDigests,
                _ => return Err(format!("a frame of unknown kind {kind}")),
            },
            is_zstd: match codec {
                0 => false,
                1 => true,
                _ => return Err(format!("a frame with unknown codec {codec}")),
            },
            words: u16::from_le_bytes([w0, w1]),
            raw: u32::from_le_bytes([r0, r1, r2, r3]),
            wire: u32::from_le_bytes([x0, x1, x2, x3]),
        };
        if rest != [0; 4] {
            return Err("a frame whose reserved bytes are not zero".to_owned());
        }
        let (words, raw, wire) = (
            usize::from(header.words),
            header.raw as usize,
            header.wire as usize,
        );
        let is_sound = match header.kind {
            Kind::Bytes => words == 0 && raw <= BYTES_MOST && !header.is_zstd,
            Kind::Pages => words <= Batch::MOST && raw <= words * PAGE_SIZE,
            Kind::Digests => {
                let whole = raw.is_multiple_of(CHUNK) && raw <= CHUNKS_MOST * CHUNK;
                words == 0 && whole && !header.is_zstd
            }
            Kind::StateDigests => words == 0 && raw == STATE && !header.is_zstd,
            Kind::Barrier | Kind::Ack | Kind::End => header == Self::of(header.kind),
        };
        let is_wire_sound = if header.is_zstd {
            wire < raw
        } else {
            wire == raw
        };
        if !is_sound || !is_wire_sound {
            return Err(format!(
                "a frame that claims {words} words and {wire} bytes for {raw}"
            ));
        }
        Ok(header)
    }
}

/// Checks words, and returns the length of the content that they require, without pages of zeros.
///
/// # Errors
/// If one of them is invalid.
pub fn check_words(words: &[u64]) -> Result<usize, String> {
    let mut pages = 0;
    for word in words {
        if word & RESERVED != 0 || (word & ZERO != 0 && !has_content(*word)) {
            return Err(format!("invalid page word {word:#x}"));
        }
        pages += usize::from(has_content(*word) && word & ZERO == 0);
    }
    Ok(pages * PAGE_SIZE)
}

/// Writes a message.
///
/// # Errors
/// If it is too long, or cannot be sent.
pub fn write_message(to: &mut (impl Write + ?Sized), message: &impl Serialize) -> io::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    let prefix = u32::try_from(length)
        .ok()
        .filter(|_| length <= MESSAGE_MOST);
    let prefix = prefix.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {length} bytes is too long"),
        )
    })?;
    frame[..4].copy_from_slice(&prefix.to_be_bytes());
    to.write_all(&frame)?;
    to.flush()
}

/// Reads a message of at most `most` bytes.  Allocates memory as bytes arrive, not as they are announced.
///
/// # Errors
/// If it is longer or of another kind, or the peer is gone.
pub fn read_message<T: DeserializeOwned>(
    from: &mut (impl Read + ?Sized),
    most: usize,
) -> io::Result<T> {
    let mut prefix = [0; 4];
    from.read_exact(&mut prefix)?;
    let length = u32::from_be_bytes(prefix) as usize;
    if length > most.min(MESSAGE_MOST) {
        return Err(wrong(format!("a message of {length} bytes is too long")));
    }
    let bytes = read_growing(from, length)?;
    // The parser's error repeats what it does not know.
    serde_json::from_slice(&bytes)
        .map_err(|error| wrong(clean(&format!("invalid message: {error}"), COMPLAINT_MOST)))
}

/// Reads this many bytes.  Allocates memory as they arrive.
///
/// # Errors
/// If the peer closes the connection first.
pub fn read_growing(from: &mut (impl Read + ?Sized), length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length.min(TRUST));
    from.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// The peer broke the protocol.
pub fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::{
        BYTES_MOST, Header, Kind, MESSAGE_MOST, ZERO, check_words, read_message, write_message,
    };

    #[test]
    fn a_header_is_read_as_it_is_written() {
        let header = Header {
            kind: Kind::Pages,
            is_zstd: true,
            words: 3,
            raw: 0x3000,
            wire: 0x0201,
        };
        let bytes = [2, 1, 3, 0, 0, 0x30, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0];
        assert_eq!(header.encode(), bytes);
        assert_eq!(Header::decode(&bytes), Ok(header));
    }

    #[test]
    fn headers_that_cannot_be_are_refused() {
        let good = Header {
            kind: Kind::Pages,
            is_zstd: false,
            words: 2,
            raw: 0x2000,
            wire: 0x2000,
        };
        Header::decode(&good.encode()).unwrap();
        let refused = |header: Header| Header::decode(&header.encode()).is_err();
        assert!(refused(Header {
            words: 1025,
            ..good
        }));
        assert!(
            refused(Header { words: 1, ..good }),
            "more content than words"
        );
        assert!(refused(Header { wire: 1, ..good }));
        assert!(
            refused(Header {
                is_zstd: true,
                ..good
            }),
            "zstd that did not help"
        );
        assert!(refused(Header {
            kind: Kind::Barrier,
            ..good
        }));
        let long = u32::try_from(BYTES_MOST + 1).unwrap();
        assert!(refused(Header {
            raw: long,
            wire: long,
            ..Header::of(Kind::Bytes)
        }));
        let of = |kind, raw| Header {
            raw,
            wire: raw,
            ..Header::of(kind)
        };
        let most = 56 << 14;
        Header::decode(&of(Kind::Digests, most).encode()).unwrap();
        Header::decode(&of(Kind::StateDigests, 48).encode()).unwrap();
        for (kind, raw) in [
            (Kind::Digests, most + 56),
            (Kind::Digests, 57),
            (Kind::StateDigests, 0),
            (Kind::StateDigests, 49),
        ] {
            assert!(refused(of(kind, raw)), "{kind:?} of {raw} bytes");
            assert!(refused(Header {
                words: 1,
                ..of(kind, 56)
            }));
        }
        for (offset, value) in [(0, 0), (0, 8), (1, 2), (15, 1)] {
            let mut bytes = good.encode();
            bytes[offset] = value;
            assert!(Header::decode(&bytes).is_err(), "{offset}");
        }
    }

    #[test]
    fn words_promise_content_unless_zero_or_without() {
        assert_eq!(check_words(&[1, 2 | ZERO, 0xF << 60, 9 << 60]), Ok(0x2000));
        assert!(check_words(&[1 << 52]).is_err());
        assert!(check_words(&[0xF << 60 | ZERO]).is_err());
    }

    #[test]
    fn a_message_longer_than_allowed_is_refused_before_it_is_read() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &"hello").unwrap();
        assert_eq!(bytes, *b"\0\0\0\x07\"hello\"");
        let message: String = read_message(&mut &bytes[..], 7).unwrap();
        assert_eq!(message, "hello");
        assert!(read_message::<String>(&mut &bytes[..], 6).is_err());
        let endless = u32::MAX.to_be_bytes();
        let error = read_message::<String>(&mut &endless[..], MESSAGE_MOST).unwrap_err();
        assert!(error.to_string().contains("too long"));
        assert!(
            read_message::<String>(&mut &bytes[..8], 100).is_err(),
            "cut off"
        );
        assert!(write_message(&mut Vec::new(), &"x".repeat(MESSAGE_MOST)).is_err());
    }
}
