//! Whether the copy of a guest at its destination is the guest: digests made at the source when the guest stands
//! still and all has been sent, and compared at the destination when all is in its place, before the hand-over.
//!
//! It finds what no other check does: a frame that no round has sent, for its write was in no record; one that
//! was garbled on its way through two agents and a toolstack, or that went to the wrong place; a state that is
//! not the last.  Memory is told by [chunks](Chunk) of a MiB: which frames are counted, and one digest over
//! their contents.  A frame that the source has must be at the destination, also if nothing but zeros is in it:
//! to the guest it is memory, and what it writes there must stay.  Nothing is made easier for pages of zeros: to
//! read a page of another domain takes longer than to digest it, and the one is done while the other is.
//!
//! Frames that are not counted, for they may differ and the guest be whole:
//!
//! * [`SPECIAL`] ones, and the shared info page wherever it is: Xen writes them, and its record tells
//!   nothing of it.
//! * the rings of xenstore, console and emulators: the destination has made them anew.
//! * those that the guest has granted to others for writing: what a backend writes through its mapping is in no
//!   record before it gives the mapping up, so a ring may have been sent without its last words.  Whoever
//!   moves has devices connected anew, and looks at none of it.
//! * those that were written since the last round began.  netback copies packets into the buffers of a guest that
//!   stands still, too; that is recorded, but sent no more.  When all digests are made, the record is read
//!   once more, and those of chunks with such frames are made again without them.
//!
//! Frames that the source has not are not looked at: the destination may still have what the guest gave back
//! while it was copied.
//!
//! A guest without the shim may have more that Xen writes unrecorded (`vcpu_info` in its own memory, for one).
//! Then a copy may be said to differ that is whole; the guest goes on at its source.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use unmoved_stream::libxc::RecordType;

use crate::job::{Chunk, Control, Digest, Digests, Error, PAGE_SIZE, Result, StateDigests, digest};
use crate::records::records;
use crate::save::{Bitmap, Memory, SPECIAL, present};

/// Checks whether the work must stop.
type Check<'a> = &'a (dyn Fn() -> Result<()> + Sync);

/// Digests of all memory of a suspended guest in log-dirty mode.
///
/// # Errors
/// Those of [`Control::check`], or Xen's.
pub(crate) fn memory(memory: &mut dyn Memory, control: &Control) -> Result<Vec<Chunk>> {
    let mut counted = present(memory, control)?;
    let others = memory.written_by_others()?;
    others
        .into_iter()
        .chain(SPECIAL)
        .for_each(|frame| counted.take_out(frame));
    let wanted = || chunks_of(&counted);
    let mut chunks = Vec::with_capacity(wanted().count());
    let check = || control.check();
    each(memory, &mut wanted(), &check, &mut |chunk| {
        chunks.push(chunk.found);
    })?;
    drop(counted);
    without_written(memory, &mut chunks, &check)?;
    chunks.retain(|chunk| !chunk.is_empty());
    Ok(chunks)
}

/// Computes digests again, without frames that were written meanwhile, until there are none.
fn without_written(memory: &mut dyn Memory, chunks: &mut [Chunk], check: Check<'_>) -> Result<()> {
    // Each pass removes at least one frame, so it ends.
    loop {
        let written = memory.take_dirty(true)?;
        let mut again = Vec::new();
        for (index, chunk) in chunks.iter_mut().enumerate() {
            let counted = chunk.counted;
            for (word, at) in chunk.counted.iter_mut().zip(chunk.first / 64..) {
                *word &= !written.word(at);
            }
            if chunk.counted != counted {
                again.push(index);
            }
        }
        if again.is_empty() {
            return Ok(());
        }
        log::debug!("verify: {} MiB were written in the meantime", again.len());
        let wanted: Vec<Chunk> = again.iter().map(|index| chunks[*index]).collect();
        let mut places = again.into_iter();
        each(memory, &mut wanted.into_iter(), check, &mut |chunk| {
            if let Some(index) = places.next() {
                chunks[index] = chunk.found;
            }
        })?;
    }
}

/// The frames of a set, as chunks without digests.
fn chunks_of(frames: &Bitmap) -> impl Iterator<Item = Chunk> + Send {
    let groups = frames.0.chunks(4).zip(0_u64..);
    let chunks = groups.map(|(words, index)| {
        let mut chunk = Chunk {
            first: index * Chunk::FRAMES,
            ..Chunk::default()
        };
        chunk.counted[..words.len()].copy_from_slice(words);
        chunk
    });
    chunks.filter(|chunk| !chunk.is_empty())
}

/// A chunk that has been read.
struct Read {
    wanted: Chunk,
    /// Without frames that are gone.
    found: Chunk,
}

/// Reads chunks and computes their digests, reading the next one meanwhile.
fn each(
    memory: &mut dyn Memory,
    wanted: &mut (dyn Iterator<Item = Chunk> + Send),
    check: Check<'_>,
    with: &mut dyn FnMut(Read),
) -> Result<()> {
    let (pages, next) = sync_channel(1);
    // Buffers for reuse.
    let (back, used): (Sender<Vec<u8>>, _) = channel();
    thread::scope(|scope| {
        let reader = scope.spawn(move || read(memory, wanted, check, &pages, &used));
        for (wanted, mut found, pages) in next {
            found.digest = digest(&pages);
            with(Read { wanted, found });
            // The reader may have ended already.
            let _ = back.send(pages);
        }
        reader
            .join()
            .unwrap_or_else(|_| Err(Error::Xen("the reader panicked".to_owned())))
    })
}

fn read(
    memory: &mut dyn Memory,
    wanted: &mut dyn Iterator<Item = Chunk>,
    check: Check<'_>,
    to: &SyncSender<(Chunk, Chunk, Vec<u8>)>,
    used: &Receiver<Vec<u8>>,
) -> Result<()> {
    let mut frames = Vec::new();
    for wanted in wanted {
        check()?;
        let mut pages = used.try_recv().unwrap_or_default();
        pages.clear();
        frames.clear();
        frames.extend(wanted.frames());
        memory.read(&mut frames, &mut pages)?;
        debug_assert_eq!(pages.len(), frames.len() * PAGE_SIZE);
        let mut found = Chunk {
            counted: [0; 4],
            ..wanted
        };
        frames.iter().for_each(|frame| found.count(*frame));
        if to.send((wanted, found, pages)).is_err() {
            // The receiver of the digests has failed, and reports that.
            return Ok(());
        }
    }
    Ok(())
}

/// The digests of the state, from the records at the end of the stream.
///
/// # Errors
/// If a record is incomplete.
pub(crate) fn state(bytes: &[u8]) -> Result<StateDigests> {
    let mut state = StateDigests::default();
    for record in records(bytes)? {
        note(&mut state, record.kind, record.body);
    }
    Ok(state)
}

/// Adds a record; the last of each kind counts.
pub(crate) fn note(state: &mut StateDigests, kind: RecordType, body: &[u8]) {
    let place = match kind {
        RecordType::X86_TSC_INFO => &mut state.tsc,
        RecordType::HVM_CONTEXT => &mut state.context,
        RecordType::HVM_PARAMS => &mut state.params,
        _ => return,
    };
    *place = digest(body);
}

/// The digests that the source has sent.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Most chunks that are accepted, by the memory that the guest may have.
    most: usize,
    chunks: Vec<Chunk>,
    state: Option<StateDigests>,
}

impl Told {
    /// Nothing yet, for a guest that may have this much memory.
    pub(crate) fn of(memory_bytes: u64) -> Self {
        // Memory need not be contiguous, but no guest that can be migrated is more scattered than this.
        let most = (memory_bytes >> 20).saturating_mul(2).saturating_add(64);
        Self {
            most: usize::try_from(most).unwrap_or(usize::MAX),
            ..Self::default()
        }
    }

    /// Adds digests.
    ///
    /// # Errors
    /// If they are not valid.
    pub(crate) fn take(&mut self, digests: Digests<'_>) -> Result<()> {
        let wrong = |why: &str| Err(Error::Peer(format!("digests of the guest {why}")));
        if self.state.is_some() {
            return wrong("arrived after their end");
        }
        let chunks = match digests {
            Digests::State(state) => {
                self.state = Some(state);
                return Ok(());
            }
            Digests::Memory(chunks) => chunks,
        };
        if self.chunks.len() + chunks.len() > self.most {
            return wrong("cover more memory than it may have");
        }
        let mut least = self.chunks.last().map_or(0, |last| last.first + 1);
        for chunk in chunks {
            let is_one = chunk.first.is_multiple_of(Chunk::FRAMES) && chunk.first < 1 << 52;
            if !is_one || chunk.first < least || chunk.is_empty() {
                return wrong("cover invalid frames, or are out of order");
            }
            least = chunk.first + 1;
        }
        self.chunks.extend_from_slice(chunks);
        Ok(())
    }

    /// Compares the guest with the digests; does nothing if there are none.
    ///
    /// # Errors
    /// What differs; Xen's error; or that of [`check`](Check).
    pub(crate) fn compare(
        &self,
        memory: impl FnOnce() -> Result<Box<dyn Memory>>,
        arrived: &StateDigests,
        check: Check<'_>,
    ) -> Result<()> {
        let Some(state) = &self.state else {
            if self.chunks.is_empty() {
                return Ok(());
            }
            return Err(Error::Peer("the guest's digests are incomplete".to_owned()));
        };
        same_state(state, arrived)?;
        let mut differences = Differences::default();
        let mut chunks = self.chunks.iter().copied();
        each(&mut *memory()?, &mut chunks, check, &mut |chunk| {
            differences.look(&chunk);
        })?;
        differences.none()
    }
}

fn same_state(source: &StateDigests, here: &StateDigests) -> Result<()> {
    let records: [(&str, &Digest, &Digest); 3] = [
        ("X86_TSC_INFO", &source.tsc, &here.tsc),
        ("HVM_CONTEXT", &source.context, &here.context),
        ("HVM_PARAMS", &source.params, &here.params),
    ];
    match records.iter().find(|(_, source, here)| source != here) {
        None => Ok(()),
        Some((record, ..)) => Err(Error::Xen(format!(
            "verification failed: the record {record} did not arrive as it was sent"
        ))),
    }
}

/// How a guest's memory differs.
#[derive(Debug, Default)]
struct Differences {
    chunks: u64,
    differ: u64,
    missing: u64,
    first: Option<u64>,
}

impl Differences {
    fn look(&mut self, chunk: &Read) {
        let Read { wanted, found } = chunk;
        self.chunks += 1;
        if wanted == found {
            return;
        }
        self.differ += 1;
        let there = |frame: &u64| found.frames().any(|found| found == *frame);
        let mut missing = wanted.frames().filter(|frame| !there(frame)).peekable();
        // If all frames of a chunk exist, it is unknown which of them differs.
        let first = missing.peek().copied().unwrap_or(wanted.first);
        self.first.get_or_insert(first);
        self.missing += missing.count() as u64;
    }

    fn none(&self) -> Result<()> {
        let Some(first) = self.first else {
            log::debug!("verify: {} MiB are the same", self.chunks);
            return Ok(());
        };
        let missing = match self.missing {
            0 => String::new(),
            missing => format!(", {missing} frames of which are missing"),
        };
        Err(Error::Xen(format!(
            "verification failed: {} of {} MiB of memory differ{missing}, the first at frame {first:#x}",
            self.differ, self.chunks
        )))
    }
}

#[cfg(test)]
mod tests;
