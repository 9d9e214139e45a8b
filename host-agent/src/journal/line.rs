//! A line of a journal: how a record is written, and what can be known of one that is read.
//!
//! ```text
//! #VERSION GENERATION NUMBER CRC WORDS
//! ```
//!
//! The sum is over all the rest of the line, so none of it is believed after a flip.  The version is that of
//! the oldest format whose reader takes this record as it is meant: a later one writes it as long as nothing
//! new is in the record.  Whatever the version, the line has this form.
//!
//! Version 1 had `CRC WORDS` only, in one file; its lines are read, and never written.

use crc::{CRC_32_ISO_HDLC, Crc, Table};

/// The CRC-32 of IEEE 802.3.  A journal has a dozen short lines, so the small table is fast enough.
const CRC_32: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISO_HDLC);

/// The version that is written, and the newest that is read.
pub(super) const VERSION: u32 = 2;

/// The first line of a file.  An agent of version 1 takes a bad line for damage, unless it is the last; that
/// it would cut off.
pub(super) const HEADER: &str = "#unmovedd: a session's journal, of which there are two copies";

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Good {
        generation: u32,
        /// Counted from 1.
        number: u32,
        words: &'a str,
    },
    /// Intact, and in a newer format.
    Newer(u32),
    Bad,
}

/// A record's line, with its end.
pub(super) fn write(generation: u32, number: u32, words: &str) -> String {
    let sum = sum(VERSION, generation, number, words);
    format!("#{VERSION} {generation} {number} {sum:08x} {words}\n")
}

/// Reads a line, without its end.
pub(super) fn parse(line: &[u8]) -> Line<'_> {
    let Some((version, generation, number, words)) = whole(line) else {
        return Line::Bad;
    };
    match version {
        VERSION => Line::Good {
            generation,
            number,
            words,
        },
        newer if newer > VERSION => Line::Newer(newer),
        _ => Line::Bad,
    }
}

/// Reads a line of version 1.
pub(super) fn parse_first(line: &[u8]) -> Option<&str> {
    let (sum, words) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    (sum == format!("{:08x}", CRC_32.checksum(words.as_bytes()))).then_some(words)
}

fn whole(line: &[u8]) -> Option<(u32, u32, u32, &str)> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix('#')?;
    let mut parts = line.splitn(5, ' ');
    let version = parts.next()?.parse().ok()?;
    let generation = parts.next()?.parse().ok()?;
    let number = parts.next()?.parse().ok()?;
    let (found, words) = (parts.next()?, parts.next()?);
    let sum = sum(version, generation, number, words);
    // Only the exact digits count.
    let is_right = found == format!("{sum:08x}") && number > 0;
    is_right.then_some((version, generation, number, words))
}

fn sum(version: u32, generation: u32, number: u32, words: &str) -> u32 {
    CRC_32.checksum(format!("#{version} {generation} {number} {words}").as_bytes())
}

/// A whole line of a format that comes after this one.
#[cfg(test)]
pub(super) fn newer(generation: u32, number: u32, words: &str) -> String {
    let version = VERSION + 1;
    let sum = sum(version, generation, number, words);
    format!("#{version} {generation} {number} {sum:08x} {words}\n")
}

/// A line of version 1, with its end.
#[cfg(test)]
pub(super) fn first(words: &str) -> String {
    format!("{:08x} {words}\n", CRC_32.checksum(words.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::{Line, first, newer, parse, parse_first, write};

    #[test]
    fn lines_of_other_releases_are_read() {
        let line = br##"#2 3 7 a69cc2d7 {"state":"done"}"##;
        assert!(matches!(parse(line), Line::Good { number: 7, .. }));
        assert_eq!(parse_first(b"cbf43926 123456789"), Some("123456789"));
    }

    #[test]
    fn a_line_is_read_as_it_is_written() {
        let line = write(3, 7, r#"{"state":"done"}"#);
        let good = Line::Good {
            generation: 3,
            number: 7,
            words: r#"{"state":"done"}"#,
        };
        assert_eq!(parse(line.trim_end().as_bytes()), good);
        assert_eq!(
            parse(newer(1, 1, "x").trim_end().as_bytes()),
            Line::Newer(3)
        );
        assert_eq!(parse_first(first("x y").trim_end().as_bytes()), Some("x y"));
    }

    #[test]
    fn a_line_with_one_bit_flipped_is_not_believed() {
        let line = write(1, 2, r#"{"state":"handed-over"}"#);
        let line = line.trim_end().as_bytes();
        for bit in 0..8 * line.len() {
            let mut flipped = line.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&flipped), Line::Bad, "bit {bit}");
        }
    }
}
