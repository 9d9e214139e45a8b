//! One connection of the sender: encodes batches and sends them.

use std::io::{self, IoSlice, Read, Write};

use super::Duplex;
use super::frame::{self, Header, Kind, ZERO};
use crate::job::{Batch, Compression, PAGE_SIZE, has_content, is_zero};

pub(super) type Connection = Box<dyn Duplex>;

/// A connection, and its buffers.
pub(super) struct Lane {
    pub(super) connection: Connection,
    pub(super) compressor: Option<zstd::bulk::Compressor<'static>>,
    /// The batch's words, with all-zero pages marked; and their encoding.
    words: Vec<u64>,
    coded: Vec<u8>,
    content: Vec<u8>,
    compressed: Vec<u8>,
}

/// What a batch becomes on the wire.
pub(super) struct Sizes {
    pub(super) raw: usize,
    pub(super) wire: usize,
    pub(super) is_compressed: bool,
}

impl Lane {
    pub(super) fn new(connection: Connection, compress: Compression) -> io::Result<Self> {
        let compressor = match compress {
            // Nothing has been measured yet.
            Compression::None | Compression::Auto => None,
            Compression::Zstd(level) => Some(zstd::bulk::Compressor::new(i32::from(level))?),
        };
        Ok(Self {
            connection,
            compressor,
            words: Vec::new(),
            coded: Vec::new(),
            content: Vec::new(),
            compressed: Vec::new(),
        })
    }

    /// Marks pages of zeros, and compresses the others if that is wanted and helps.
    pub(super) fn encode(&mut self, batch: &Batch) -> io::Result<Sizes> {
        self.words.clear();
        self.coded.clear();
        let mut zeros = 0;
        let mut pages = batch.data.chunks_exact(PAGE_SIZE);
        for word in &batch.words {
            let is_zero = has_content(*word) && pages.next().is_some_and(is_zero);
            zeros += usize::from(is_zero);
            let word = if is_zero { word | ZERO } else { *word };
            self.words.push(word);
            self.coded.extend_from_slice(&word.to_le_bytes());
        }
        let raw = batch.data.len() - zeros * PAGE_SIZE;
        let mut sizes = Sizes {
            raw,
            wire: raw,
            is_compressed: false,
        };
        if let Some(compressor) = &mut self.compressor
            && raw > 0
        {
            let content = if zeros == 0 {
                &batch.data
            } else {
                self.content.clear();
                for run in runs(&self.words, &batch.data) {
                    self.content.extend_from_slice(run);
                }
                &self.content
            };
            let most = zstd::zstd_safe::compress_bound(raw);
            if self.compressed.len() < most {
                self.compressed.resize(most, 0);
            }
            let length = compressor.compress_to_buffer(content, &mut self.compressed[..])?;
            if length < raw {
                sizes.wire = length;
                sizes.is_compressed = true;
            }
        }
        Ok(sizes)
    }

    pub(super) fn write_pages(&mut self, batch: &Batch, sizes: &Sizes) -> io::Result<()> {
        let long = |_| io::Error::other("a batch is too long");
        let header = Header {
            kind: Kind::Pages,
            is_zstd: sizes.is_compressed,
            words: u16::try_from(batch.words.len()).map_err(long)?,
            raw: u32::try_from(sizes.raw).map_err(long)?,
            wire: u32::try_from(sizes.wire).map_err(long)?,
        }
        .encode();
        let mut slices = vec![IoSlice::new(&header), IoSlice::new(&self.coded)];
        if sizes.is_compressed {
            slices.push(IoSlice::new(&self.compressed[..sizes.wire]));
        } else {
            let runs = runs(&self.words, &batch.data);
            slices.extend(runs.into_iter().map(IoSlice::new));
        }
        write_all(&mut *self.connection, &mut slices)
    }

    pub(super) fn send_header(&mut self, kind: Kind) -> io::Result<()> {
        self.connection.write_all(&Header::of(kind).encode())?;
        self.connection.flush()
    }

    pub(super) fn wait_for_ack(&mut self) -> io::Result<()> {
        let mut header = [0; Header::SIZE];
        self.connection.read_exact(&mut header)?;
        match Header::decode(&header).map_err(frame::wrong)?.kind {
            Kind::Ack => Ok(()),
            _ => Err(frame::wrong("an acknowledgement was expected")),
        }
    }
}

/// Writes all pieces with as few calls as possible.
pub(super) fn write_all(
    to: &mut (impl Write + ?Sized),
    pieces: &mut [IoSlice<'_>],
) -> io::Result<()> {
    let mut rest = pieces;
    // Skips empty pieces, which would look like the end.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match to.write_vectored(rest)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut rest, written),
        }
    }
    to.flush()
}

/// The content of a batch without the pages that its words mark as zero, in as few pieces as possible.
fn runs<'b>(words: &[u64], data: &'b [u8]) -> Vec<&'b [u8]> {
    let mut runs = Vec::new();
    let (mut run, mut rest) = (0, data);
    for word in words.iter().filter(|word| has_content(**word)) {
        if word & ZERO == 0 {
            run += PAGE_SIZE;
            continue;
        }
        if run > 0 {
            runs.push(&rest[..run]);
        }
        (run, rest) = (0, &rest[run + PAGE_SIZE..]);
    }
    if run > 0 {
        runs.push(&rest[..run]);
    }
    runs
}
