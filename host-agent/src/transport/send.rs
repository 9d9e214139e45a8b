//! The sender: a sink whose far end is at the peer.
//!
//! Each connection has a thread, and batches go to any free one, so that reading and sending overlap even
//! with one connection.  What must stay in order goes over the first connection, with all others stopped
//! before and after.

use std::io::{self, IoSlice};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_listener::Listener;
use parking_lot::{Condvar, Mutex};

use super::bucket::Bucket;
use super::digests::{CHUNKS_MOST, encode, encode_state};
use super::frame::{BYTES_MOST, Header, Kind};
use super::lane::{Connection, Lane, write_all};
use crate::job::{Batch, Compression, Control, Digests, Error, PAGE_SIZE, Phase, Result, Sink};

/// Batches that may wait, beyond one for each connection: enough to keep all of them busy.
const QUEUED: usize = 1;

/// The last kind of content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Given {
    #[default]
    Nothing,
    Bytes,
    Pages,
}

#[derive(Default)]
struct State {
    /// Batches that were passed on and are not sent yet.
    under_way: usize,
    failure: Option<String>,
    /// Batches for reuse.
    spare: Vec<Batch>,
    /// What came last and may still be on the way.  Bytes travel over the first connection and pages over
    /// any, so one must have arrived before the other follows.
    last: Given,
    /// Bytes and pages taken, in bytes.
    taken: u64,
}

struct Shared {
    lanes: Vec<Mutex<Lane>>,
    state: Mutex<State>,
    sent: Condvar,
    bucket: Bucket,
    control: Arc<Control>,
}

/// The sender of a stream.
pub struct Sender {
    shared: Arc<Shared>,
    queue: Option<mpsc::SyncSender<Batch>>,
    workers: Vec<JoinHandle<()>>,
    builds_early: bool,
}

impl Sender {
    /// Sends over these connections, as the job's options say.
    ///
    /// # Errors
    /// If there is no connection, or no thread or compressor can be created.
    pub fn new(connections: Vec<Connection>, control: Arc<Control>) -> io::Result<Self> {
        let compress = control.options().compress;
        Self::compressing(connections, control, compress)
    }

    /// As [`Sender::new`], but with this compression instead of that in the options.
    ///
    /// # Errors
    /// As [`Sender::new`].
    pub fn compressing(
        connections: Vec<Connection>,
        control: Arc<Control>,
        compress: Compression,
    ) -> io::Result<Self> {
        if connections.is_empty() {
            return Err(io::Error::other("a stream needs a connection"));
        }
        let lanes = connections
            .into_iter()
            .map(|connection| Lane::new(connection, compress).map(Mutex::new))
            .collect::<io::Result<Vec<_>>>()?;
        let (queue, batches) = mpsc::sync_channel(QUEUED);
        let batches = Arc::new(Mutex::new(batches));
        let shared = Arc::new(Shared {
            lanes,
            state: Mutex::default(),
            sent: Condvar::new(),
            bucket: Bucket::default(),
            control,
        });
        let workers = (0..shared.lanes.len())
            .map(|lane| {
                let (shared, batches) = (shared.clone(), batches.clone());
                thread::Builder::new()
                    .name(format!("send-{lane}"))
                    .spawn(move || shared.work(lane, &batches))
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            shared,
            queue: Some(queue),
            workers,
            builds_early: false,
        })
    }

    /// Whether the sink at the peer builds early.
    pub const fn set_builds_early(&mut self, builds_early: bool) {
        self.builds_early = builds_early;
    }

    /// Ends the stream; returns when the peer has all of it.  Returns the number of bytes sent, before
    /// compression.
    ///
    /// # Errors
    /// If a connection fails.
    pub fn finish(&self) -> Result<u64> {
        self.shared.join_lanes()?;
        for lane in &self.shared.lanes {
            let mut lane = lane.lock();
            lane.send_header(Kind::End).map_err(lost)?;
            lane.wait_for_ack().map_err(lost)?;
        }
        Ok(self.shared.state.lock().taken)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        drop(self.queue.take());
        for worker in self.workers.drain(..) {
            // A worker that panicked has left its message already.
            let _ = worker.join();
        }
    }
}

impl Sink for Sender {
    fn bytes(&self, bytes: &[u8]) -> Result<()> {
        self.shared.follow(Given::Bytes)?;
        let mut pieces = bytes.chunks(BYTES_MOST);
        pieces.try_for_each(|piece| self.shared.in_order(Kind::Bytes, piece))
    }

    fn pages(&self, batch: &mut Batch) -> Result<()> {
        if batch.words.is_empty() {
            return Ok(());
        }
        if !batch.is_sound() {
            return Err(Error::Peer("a batch does not match its words".to_owned()));
        }
        self.shared.follow(Given::Pages)?;
        let mut full = {
            let mut state = self.shared.state.lock();
            state.check()?;
            state.under_way += 1;
            state.taken += (batch.data.len() + 8 * batch.words.len()) as u64;
            state.spare.pop().unwrap_or_default()
        };
        std::mem::swap(batch, &mut full);
        let gone = || Error::Peer("the connections are closed".to_owned());
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.send(full).map_err(|_| gone())
    }

    fn barrier(&self) -> Result<()> {
        self.shared.join_lanes()
    }

    fn digests(&self, digests: Digests<'_>) -> Result<()> {
        self.shared.follow(Given::Bytes)?;
        match digests {
            Digests::Memory(chunks) => chunks
                .chunks(CHUNKS_MOST)
                .try_for_each(|piece| self.shared.in_order(Kind::Digests, &encode(piece))),
            Digests::State(state) => self
                .shared
                .in_order(Kind::StateDigests, &encode_state(&state)),
        }
    }

    fn builds_early(&self) -> bool {
        self.builds_early
    }
}

impl Shared {
    fn work(&self, lane: usize, batches: &Mutex<mpsc::Receiver<Batch>>) {
        loop {
            let next = batches.lock().recv();
            let Ok(batch) = next else { return };
            let result = self.send(lane, &batch);
            let mut state = self.state.lock();
            state.under_way -= 1;
            state.spare.push(batch);
            if let Err(error) = result {
                state.failure.get_or_insert(error.to_string());
            }
            self.sent.notify_all();
        }
    }

    /// Sends one batch over one connection.
    fn send(&self, lane: usize, batch: &Batch) -> Result<()> {
        self.state.lock().check()?;
        let mut lane = self.lanes[lane].lock();
        let sizes = lane.encode(batch).map_err(lost)?;
        self.pay(sizes.wire)?;
        lane.write_pages(batch, &sizes).map_err(lost)?;
        self.control.update(|statistics| {
            statistics.wire_bytes += (sizes.wire + Header::SIZE + 8 * batch.words.len()) as u64;
            if sizes.is_compressed {
                statistics.compression_bytes += sizes.wire as u64;
                statistics.compression_pages += (sizes.raw / PAGE_SIZE) as u64;
            } else if lane.compressor.is_some() {
                statistics.compression_overflow += (sizes.raw / PAGE_SIZE) as u64;
            }
        });
        Ok(())
    }

    /// Sends a frame that must stay in order, over the first connection.
    fn in_order(&self, kind: Kind, content: &[u8]) -> Result<()> {
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let header = Header {
            raw: length,
            wire: length,
            ..Header::of(kind)
        };
        self.pay(content.len())?;
        let mut lane = self.lanes[0].lock();
        let header = header.encode();
        let mut slices = [IoSlice::new(&header), IoSlice::new(content)];
        write_all(&mut *lane.connection, &mut slices).map_err(lost)?;
        drop(lane);
        self.state.lock().taken += content.len() as u64;
        self.control.update(|statistics| {
            statistics.wire_bytes += (content.len() + Header::SIZE) as u64;
        });
        Ok(())
    }

    /// Makes sure that what comes next does not overtake what came last.
    fn follow(&self, next: Given) -> Result<()> {
        let last = self.state.lock().last;
        if self.lanes.len() > 1 && last != Given::Nothing && last != next {
            self.join_lanes()?;
        } else if next == Given::Bytes {
            // One connection keeps its own order, but batches may still wait for it.
            self.wait_until_sent()?;
        }
        self.state.lock().last = next;
        Ok(())
    }

    /// Waits until no batch waits for a connection.
    fn wait_until_sent(&self) -> Result<()> {
        let mut state = self.state.lock();
        while state.under_way > 0 {
            self.sent.wait(&mut state);
        }
        state.check()
    }

    /// Waits until everything has arrived: every connection is at the same point.
    fn join_lanes(&self) -> Result<()> {
        self.wait_until_sent()?;
        let mut lanes: Vec<_> = self.lanes.iter().map(Mutex::lock).collect();
        for lane in &mut lanes {
            lane.send_header(Kind::Barrier).map_err(lost)?;
        }
        for lane in &mut lanes {
            lane.wait_for_ack().map_err(lost)?;
        }
        self.state.lock().last = Given::Nothing;
        Ok(())
    }

    /// Waits until this many bytes may be sent.  There is no limit while the guest is suspended, because it
    /// would prolong the blackout.
    fn pay(&self, bytes: usize) -> Result<()> {
        self.control.check()?;
        let Some(rate) = self.control.bandwidth() else {
            return Ok(());
        };
        if let Phase::StopAndCopy | Phase::Verifying = self.control.phase() {
            return Ok(());
        }
        let wait = self.bucket.buy(bytes as u64, rate, Instant::now());
        let until = Instant::now() + wait;
        while Instant::now() < until {
            let listener = self.control.listen();
            self.control.check()?;
            // Other changes of the job wake this thread too; then it continues to wait.
            let tick = until.min(Instant::now() + Duration::from_millis(100));
            listener.wait_deadline(tick);
        }
        Ok(())
    }
}

impl State {
    fn check(&self) -> Result<()> {
        self.failure
            .clone()
            .map_or(Ok(()), |why| Err(Error::Peer(why)))
    }
}

fn lost(error: io::Error) -> Error {
    let why = match error.kind() {
        // TLS adds details for programmers.
        io::ErrorKind::UnexpectedEof => "the other end closed it".to_owned(),
        _ => error.to_string(),
    };
    Error::Peer(format!("the connection to the destination was lost: {why}"))
}
