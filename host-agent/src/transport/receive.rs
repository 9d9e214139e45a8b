//! The receiver: puts what arrives over several connections into one sink, in a valid order.

use std::io::{self, IoSliceMut, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::digests::{decode, decode_state};
use super::frame::{Header, Kind, ZERO, check_words, read_growing, wrong};
use super::{Duplex, Watch};
use crate::job::{Batch, Digests, Error, PAGE_SIZE, Result, Sink, has_content};

/// Pages that are read and passed on at a time, so that they stay in the cache.
const PIECE: usize = 128;

/// Interval between two checks at a barrier whether all must stop.
const LOOK: Duration = Duration::from_millis(200);
const PARTED: &str = "one connection ended while others are at a barrier";

/// What has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Bytes and pages, counted as the sender counts them.
    pub taken: u64,
    /// Bytes on the wire.
    pub wire: u64,
}

#[derive(Default)]
struct Meeting {
    waiting: usize,
    number: u64,
    /// Connections that have ended, and reach no barrier any more.
    ended: usize,
    failure: Option<String>,
    /// Whether the sink failed first, and not a connection.
    is_sinks: bool,
}

struct Shared<'a> {
    sink: &'a dyn Sink,
    watch: &'a Watch,
    lanes: usize,
    meeting: Mutex<Meeting>,
    met: Condvar,
    tell: &'a (dyn Fn(Received) + Sync),
    taken: AtomicU64,
    wire: AtomicU64,
}

/// Receives a whole stream; returns when every connection has ended.  `watch` must be that of the
/// connections: when one fails, it stops the others.  `tell` gets the amounts so far after each frame.
///
/// # Errors
/// [`Error::Peer`] if a connection fails or the peer breaks the protocol, [`Error::Xen`] if the sink fails.
pub fn receive(
    connections: Vec<Box<dyn Duplex>>,
    sink: &dyn Sink,
    watch: &Watch,
    tell: &(dyn Fn(Received) + Sync),
) -> Result<Received> {
    let shared = Shared {
        sink,
        watch,
        lanes: connections.len(),
        meeting: Mutex::default(),
        met: Condvar::new(),
        tell,
        taken: AtomicU64::new(0),
        wire: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        for (number, connection) in connections.into_iter().enumerate() {
            let shared = &shared;
            scope.spawn(move || {
                let mut lane = Lane {
                    connection,
                    batch: Batch::default(),
                    coded: Vec::new(),
                    decompressor: None,
                };
                if let Err(error) = lane.run(number, shared) {
                    shared.fail(&error);
                }
            });
        }
    });
    let meeting = shared.meeting.into_inner();
    if let Some(why) = meeting.failure {
        return Err(if meeting.is_sinks {
            Error::Xen(why)
        } else {
            Error::Peer(why)
        });
    }
    Ok(Received {
        taken: shared.taken.into_inner(),
        wire: shared.wire.into_inner(),
    })
}

struct Lane {
    connection: Box<dyn Duplex>,
    batch: Batch,
    coded: Vec<u8>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
}

impl Lane {
    fn run(&mut self, number: usize, shared: &Shared<'_>) -> io::Result<()> {
        loop {
            let mut header = [0; Header::SIZE];
            self.connection.read_exact(&mut header)?;
            let header = Header::decode(&header).map_err(wrong)?;
            match header.kind {
                Kind::Bytes if number == 0 => {
                    let bytes = read_growing(&mut self.connection, header.raw as usize)?;
                    shared.sink.bytes(&bytes).map_err(io::Error::other)?;
                    shared.count(bytes.len(), bytes.len());
                }
                Kind::Digests | Kind::StateDigests if number == 0 => {
                    self.digests(&header, shared)?;
                }
                Kind::Pages => self.pages(&header, shared)?,
                Kind::Barrier => {
                    shared.meet()?;
                    self.acknowledge()?;
                }
                Kind::End => {
                    shared.end()?;
                    return self.acknowledge();
                }
                Kind::Bytes | Kind::Digests | Kind::StateDigests | Kind::Ack => {
                    return Err(wrong(format!("{:?} does not belong here", header.kind)));
                }
            }
        }
    }

    /// Takes the digests of one frame.
    fn digests(&mut self, header: &Header, shared: &Shared<'_>) -> io::Result<()> {
        let bytes = read_growing(&mut self.connection, header.raw as usize)?;
        let (chunks, state);
        let digests = if header.kind == Kind::Digests {
            chunks = decode(&bytes);
            Digests::Memory(&chunks)
        } else {
            state = decode_state(&bytes).ok_or_else(|| wrong("incomplete digests"))?;
            Digests::State(state)
        };
        shared.sink.digests(digests).map_err(io::Error::other)?;
        shared.count(bytes.len(), bytes.len());
        Ok(())
    }

    /// Takes the pages of one frame.
    fn pages(&mut self, header: &Header, shared: &Shared<'_>) -> io::Result<()> {
        self.coded.resize(8 * usize::from(header.words), 0);
        self.connection.read_exact(&mut self.coded)?;
        let words: Vec<u64> = self.coded.chunks_exact(8).map(little).collect();
        if check_words(&words).map_err(wrong)? != header.raw as usize {
            return Err(wrong(
                "the pages' content does not have the length that their words give",
            ));
        }
        let raw = words.iter().filter(|word| has_content(**word)).count() * PAGE_SIZE;
        shared.count(
            raw + 8 * words.len(),
            header.wire as usize + 8 * words.len(),
        );
        if header.is_zstd {
            self.unpack(header, &words)?;
            return shared.sink.pages(&mut self.batch).map_err(io::Error::other);
        }
        for piece in words.chunks(PIECE) {
            let data = room(&mut self.batch, piece);
            read_all(&mut *self.connection, &mut clear_zeros(piece, data))?;
            shared
                .sink
                .pages(&mut self.batch)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn unpack(&mut self, header: &Header, words: &[u64]) -> io::Result<()> {
        // At most a megabyte-sized batch, and the header was checked: it is not longer than that.
        self.coded.resize(header.wire as usize, 0);
        self.connection.read_exact(&mut self.coded)?;
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        let mut content = decompressor.decompress(&self.coded, header.raw as usize)?;
        if content.len() != header.raw as usize {
            return Err(wrong("compressed pages do not have the announced length"));
        }
        let data = room(&mut self.batch, words);
        if content.len() == data.len() {
            std::mem::swap(&mut content, &mut self.batch.data);
            return Ok(());
        }
        read_all(&mut &content[..], &mut clear_zeros(words, data))
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        self.connection.write_all(&Header::of(Kind::Ack).encode())?;
        self.connection.flush()
    }
}

/// Sets the words of a batch, without the zero marks, which the sink need not know, and makes space for the
/// pages.
fn room<'b>(batch: &'b mut Batch, words: &[u64]) -> &'b mut [u8] {
    batch.words.clear();
    batch.words.extend(words.iter().map(|word| word & !ZERO));
    batch.data.resize(batch.content_pages() * PAGE_SIZE, 0);
    &mut batch.data
}

/// The number that these eight bytes are.
fn little(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Fills in the pages that the words mark as zero; returns the places of the others, in as few pieces as
/// possible.
fn clear_zeros<'d>(words: &[u64], data: &'d mut [u8]) -> Vec<IoSliceMut<'d>> {
    let mut pieces = Vec::new();
    let (mut run, mut rest) = (0, data);
    for word in words.iter().filter(|word| has_content(**word)) {
        if word & ZERO == 0 {
            run += PAGE_SIZE;
            continue;
        }
        let (piece, after) = rest.split_at_mut(run);
        let (zeros, after) = after.split_at_mut(PAGE_SIZE);
        zeros.fill(0);
        if run > 0 {
            pieces.push(IoSliceMut::new(piece));
        }
        (run, rest) = (0, after);
    }
    if run > 0 {
        pieces.push(IoSliceMut::new(&mut rest[..run]));
    }
    pieces
}

/// Fills all pieces with as few calls as possible.
fn read_all(from: &mut (impl Read + ?Sized), pieces: &mut [IoSliceMut<'_>]) -> io::Result<()> {
    let mut rest = pieces;
    while !rest.is_empty() {
        match from.read_vectored(rest)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => IoSliceMut::advance_slices(&mut rest, read),
        }
    }
    Ok(())
}

impl Shared<'_> {
    fn count(&self, raw: usize, wire: usize) {
        let (raw, wire) = (raw as u64, (wire + Header::SIZE) as u64);
        (self.tell)(Received {
            taken: self.taken.fetch_add(raw, Ordering::Relaxed) + raw,
            wire: self.wire.fetch_add(wire, Ordering::Relaxed) + wire,
        });
    }

    /// Waits until all connections are at the same barrier; the last one tells the sink.
    fn meet(&self) -> io::Result<()> {
        let mut meeting = self.meeting.lock();
        if meeting.ended > 0 {
            return Err(wrong(PARTED));
        }
        meeting.waiting += 1;
        if meeting.waiting == self.lanes {
            self.sink.barrier().map_err(io::Error::other)?;
            meeting.waiting = 0;
            meeting.number += 1;
            self.met.notify_all();
            return Ok(());
        }
        let number = meeting.number;
        while meeting.number == number && meeting.failure.is_none() {
            if self.watch.is_over() {
                return Err(wrong("the stream was cancelled"));
            }
            self.met.wait_for(&mut meeting, LOOK);
        }
        match &meeting.failure {
            Some(why) => Err(io::Error::other(why.clone())),
            None => Ok(()),
        }
    }

    /// A connection has ended.
    fn end(&self) -> io::Result<()> {
        let mut meeting = self.meeting.lock();
        meeting.ended += 1;
        if meeting.waiting > 0 {
            return Err(wrong(PARTED));
        }
        Ok(())
    }

    fn fail(&self, error: &io::Error) {
        self.watch.stop();
        let mut meeting = self.meeting.lock();
        if meeting.failure.is_none() {
            // Passes the sink's error on as it is; the kind of any other error is unknown.
            meeting.is_sinks = error.kind() == io::ErrorKind::Other;
            meeting.failure = Some(error.to_string());
        }
        self.met.notify_all();
    }
}
