//! What can be wrong with a stream, and where.
//!
//! A [`Defect`] says what is wrong, as the code that looked at a few bytes can tell; an [`Error`] adds
//! where in the stream that was.  Each message is one line that names offset and record.

use std::fmt;
use std::io;

use crate::{libxc, libxl};

/// What is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// The input ends inside something.
    #[error("the stream is truncated: {missing} more bytes were announced")]
    Truncated {
        /// How many bytes are missing at least.
        missing: u64,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What was read cannot be written.
    #[error("cannot write: {0}")]
    Output(io::Error),
    /// The first bytes are not those of this format.
    #[error("this is not {expected}: it begins with 0x{found:x}")]
    Magic {
        /// The format.
        expected: &'static str,
        /// The first bytes as a number.
        found: u64,
    },
    /// A file of another tool.
    #[error("this is {what}: {way}")]
    Foreign {
        /// What it is.
        what: &'static str,
        /// What can be done with it.
        way: &'static str,
    },
    /// A version that nobody can read.
    #[error("version {0} is not known")]
    Version(u32),
    /// The format knows it, this program does not do it; says what and why.
    #[error("{0}")]
    Unsupported(&'static str),
    /// Bits that must be zero are not.
    #[error("reserved bits are set in {field}: 0x{value:x}")]
    Reserved {
        /// Where they are.
        field: &'static str,
        /// The bits.
        value: u64,
    },
    /// A field has a value that the format does not give a meaning to.
    #[error("{field} cannot be {value:#x}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it is.
        value: u64,
    },
    /// A length is not what it must be.
    #[error("the length is {found} and must be {expected}")]
    Length {
        /// What it is.
        found: u64,
        /// What it must be, in words.
        expected: String,
    },
    /// A record of a type that is not known and not optional.
    #[error("type 0x{0:08x} is not known and not optional")]
    UnknownRecord(u32),
    /// A record that may not be here.
    #[error("it may not come here: {0}")]
    Order(&'static str),
    /// A record that must have come is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A frame beyond the end of the guest's memory as the stream describes it.
    #[error("pfn {pfn:#x} (entry {index}) is beyond the last one, {last:#x}")]
    BeyondEnd {
        /// The frame.
        pfn: u64,
        /// Which entry of the record.
        index: u64,
        /// The last frame.
        last: u64,
    },
    /// An entry of a page record has a type that does not exist.
    #[error("entry {index} has page type {kind:#x}, which does not exist")]
    PageType {
        /// Which entry of the record.
        index: u64,
        /// The type.
        kind: u8,
    },
    /// Strings are not as they must be; says why.
    #[error("{0}")]
    Text(&'static str),
    /// Bytes follow the end.
    #[error("bytes follow the end of the stream")]
    Trailing,
    /// A batch of a legacy stream has the same entry twice.
    #[error("pfn {0:#x} is twice in one batch")]
    Duplicate(u64),
}

impl Defect {
    pub(crate) fn length(found: impl Into<u64>, expected: impl Into<String>) -> Self {
        Self::Length {
            found: found.into(),
            expected: expected.into(),
        }
    }
}

/// The part of a stream that something is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// What another tool put before the stream.
    Container,
    /// The xl save file header.
    XlHeader,
    /// The libxl stream's header.
    LibxlHeader,
    /// A record of the libxl stream.
    LibxlRecord {
        /// How many libxl records came before.
        index: u64,
        /// Its type.
        kind: libxl::RecordType,
    },
    /// The libxc stream's image header.
    ImageHeader,
    /// The libxc stream's domain header.
    DomainHeader,
    /// A record of the libxc stream.
    LibxcRecord {
        /// How many libxc records came before.
        index: u64,
        /// Its type.
        kind: libxc::RecordType,
    },
    /// The header of the next record.
    RecordHeader,
    /// What follows the end.
    End,
    /// A part of a legacy stream.
    Legacy {
        /// Which.
        name: &'static str,
        /// How many chunks came before.
        index: u64,
    },
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container => f.write_str("begin of the file"),
            Self::XlHeader => f.write_str("xl save header"),
            Self::LibxlHeader => f.write_str("libxl header"),
            Self::LibxlRecord { index, kind } => write!(f, "libxl record {index}, {kind}"),
            Self::ImageHeader => f.write_str("libxc image header"),
            Self::DomainHeader => f.write_str("libxc domain header"),
            Self::LibxcRecord { index, kind } => write!(f, "libxc record {index}, {kind}"),
            Self::RecordHeader => f.write_str("record header"),
            Self::End => f.write_str("end of stream"),
            Self::Legacy { name, index } => write!(f, "legacy chunk {index}, {name}"),
        }
    }
}

/// A defect and where it is.
#[derive(Debug, thiserror::Error)]
#[error("at byte {offset} ({part}): {defect}")]
pub struct Error {
    /// Bytes of the stream before the part, or before the byte that is wrong.
    pub offset: u64,
    /// The part.
    pub part: Part,
    /// The defect; it is part of the message, and so no source: chains of errors are printed whole.
    pub defect: Defect,
}

impl Error {
    pub(crate) fn new(offset: u64, part: Part, defect: impl Into<Defect>) -> Self {
        Self {
            offset,
            part,
            defect: defect.into(),
        }
    }
}
