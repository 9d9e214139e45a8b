//! Rounds over a guest's memory: finds the frames and sends their contents into the sink.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::guest::{Bitmap, Memory, is_plain, is_present};
use crate::job::{Batch, Control, Error, PAGE_SIZE, Result, Sink, is_zero};

/// Where a PVH guest has memory beside its RAM: from its ACPI tables to 4 GiB, with its special pages (below
/// 0xff000) between.
pub(crate) const SPECIAL: Range<u64> = 0xf_c000..1 << 20;

/// Pages that are read at a time.  A full batch is four times as much; but what is read, compressed and
/// encrypted in turn should stay in a processor's cache, and every page of the memory in which batches wait
/// for the one before must be faulted in first, which is dear in a control domain that is paravirtualised.
const AT_ONCE: usize = Batch::MOST / 4;

/// The result of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct RoundSent {
    /// Pages, including those that are all zero.
    pub(crate) pages: u64,
    /// Pages that are all zero.
    pub(crate) zero: u64,
    /// From the first page until everything had arrived.
    pub(crate) time: Duration,
}

/// All frames that have had memory ever since this began.  Others may have come or gone meanwhile.
///
/// A PVH guest's frame numbers go up to 4 GiB at least, whatever memory it has, and asking Xen for a million
/// frames costs seconds.  So the range between its RAM and its special pages is looked at only if the guest has
/// more pages than were found elsewhere, and only until they are found.  Nowhere else may a count end the
/// search: in it are frames that have come since, and frames that have gone, in place of others that have not
/// been looked at.
///
/// # Errors
/// [`Error::Xen`] if one is of a type that only paravirtualised domains' frames have.
pub(crate) fn present(memory: &mut dyn Memory, control: &Control) -> Result<Bitmap> {
    let end = memory.end_of_frames()?;
    let ram = memory.end_of_ram()?.max(memory.own_frames()?).min(end);
    let special = SPECIAL.start.clamp(ram, end)..SPECIAL.end.clamp(ram, end);
    let mut search = Search {
        memory,
        control,
        found: Bitmap::below(end),
        count: 0,
        words: Vec::with_capacity(Batch::MOST),
    };
    for range in [0..ram, special.clone(), special.end..end] {
        search.range(range, u64::MAX)?;
    }
    let own = search.memory.own_frames()?;
    search.range(ram..special.start, own)?;
    Ok(search.found)
}

/// A search for frames.
struct Search<'a> {
    memory: &'a mut dyn Memory,
    control: &'a Control,
    found: Bitmap,
    count: u64,
    words: Vec<u64>,
}

impl Search<'_> {
    /// Looks at these frames until this many have been found in all.
    fn range(&mut self, range: Range<u64>, enough: u64) -> Result<()> {
        let mut next = range.start;
        while next < range.end && self.count < enough {
            self.control.check()?;
            let stop = range.end.min((next / 1024 + 1) * 1024);
            self.words.clear();
            self.words.extend(next..stop);
            self.memory.types(&mut self.words)?;
            for word in self.words.iter().filter(|word| is_present(**word)) {
                self.found.insert(plain(*word)?);
                self.count += 1;
            }
            next = stop;
        }
        Ok(())
    }
}

/// The frame of a word, which is [plain](is_plain).
fn plain(word: u64) -> Result<u64> {
    if is_plain(word) {
        return Ok(frame(word));
    }
    Err(Error::Xen(format!(
        "frame {:#x} has type {:#x}, which a PVH domain cannot have",
        frame(word),
        word >> 60
    )))
}

/// Frames for a round.
pub(crate) enum Frames<'a> {
    /// The result of [`present`].
    Present(&'a Bitmap),
    /// Frames that were written; some may not have memory of the guest's own.
    Written(&'a Bitmap),
}

impl Frames<'_> {
    /// Number of frames.
    pub(crate) fn len(&self) -> u64 {
        let (Self::Present(frames) | Self::Written(frames)) = self;
        frames.len()
    }
}

/// Runs one round: sends these frames as far as they still have memory.  Returns what it did, and the frames
/// that it had not begun when the time was over.
///
/// The next batch is read while the sink takes the last one, so that neither waits for the other.
pub(crate) fn send(
    memory: &mut dyn Memory,
    frames: &Frames<'_>,
    sink: &dyn Sink,
    control: &Control,
    until: Option<Instant>,
) -> Result<(RoundSent, Bitmap)> {
    let begun = Instant::now();
    let mut sent = RoundSent::default();
    let mut passing = Duration::ZERO;
    let (batches, next) = sync_channel(1);
    // Batches that have been sent, for reuse.
    let (back, used) = channel();
    let left = thread::scope(|scope| {
        let mut reader = PageReader {
            memory,
            control,
            until,
            batches,
            used,
        };
        let reader = scope.spawn(move || reader.all(frames));
        let mut taken = Ok(());
        for mut read in next {
            let since = Instant::now();
            taken = pass_on(&mut read, sink, control, &mut sent);
            passing += since.elapsed();
            // Until a round has shown the speed, its own progress does.
            let rate =
                (sent.pages * PAGE_SIZE as u64) as f64 / begun.elapsed().as_secs_f64().max(0.001);
            control.update(|figures| {
                if figures.memory_iteration <= 1 {
                    figures.memory_bps = rate as u64;
                }
            });
            if taken.is_err() {
                break;
            }
            // The reader may have ended already.
            let _ = back.send(read.batch);
        }
        // If the sink failed, the reader notices that nobody takes batches any more.
        let read = reader
            .join()
            .unwrap_or_else(|_| Err(Error::Xen("the reader panicked".to_owned())));
        taken.and(read)
    })?;
    let read = begun.elapsed();
    sink.barrier()?;
    sent.time = begun.elapsed();
    log::debug!(
        "{} pages, {} of them zero, in {:?}: read in {read:?}, of which the stream took {passing:?}",
        sent.pages,
        sent.zero,
        sent.time
    );
    Ok((sent, left))
}

/// A batch and what is known of it.
struct Read {
    batch: Batch,
    /// Frames that were looked at for it.
    asked: u64,
    /// Pages that are all zero.
    zero: u64,
}

/// The reader's input and output.
struct PageReader<'a> {
    memory: &'a mut dyn Memory,
    control: &'a Control,
    until: Option<Instant>,
    batches: SyncSender<Read>,
    /// Batches that have been sent.
    used: Receiver<Batch>,
}

impl PageReader<'_> {
    /// Reads these frames; returns those that were left when the time was over.
    fn all(&mut self, frames: &Frames<'_>) -> Result<Bitmap> {
        let (all, are_known) = match frames {
            Frames::Present(all) => (all, true),
            Frames::Written(all) => (all, false),
        };
        let mut frames = all.frames();
        while self.batch(&mut frames, are_known)? {}
        let Some(first) = frames.next() else {
            return Ok(Bitmap::default());
        };
        let mut left = Bitmap::below(all.0.len() as u64 * 64);
        left.insert(first);
        left.extend(frames);
        Ok(left)
    }

    /// Reads one batch; returns whether there may be more.
    fn batch(&mut self, words: &mut dyn Iterator<Item = u64>, are_known: bool) -> Result<bool> {
        self.control.check()?;
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return Ok(false);
        }
        let mut batch = self.used.try_recv().unwrap_or_default();
        batch.clear();
        batch.words.extend(words.take(AT_ONCE));
        let asked = batch.words.len() as u64;
        if asked == 0 {
            return Ok(false);
        }
        if !are_known {
            self.memory.types(&mut batch.words)?;
            batch.words.retain(|word| is_present(*word));
        }
        contents(self.memory, &mut batch)?;
        let zero = batch.data.chunks_exact(PAGE_SIZE);
        let zero = zero.filter(|page| is_zero(page)).count() as u64;
        Ok(self.batches.send(Read { batch, asked, zero }).is_ok())
    }
}

/// Reads the pages of a batch, and leaves out those that have gone since their types were read.
fn contents(memory: &mut dyn Memory, batch: &mut Batch) -> Result<()> {
    let mut left: Vec<u64> = batch.words.iter().map(|word| frame(*word)).collect();
    memory.read(&mut left, &mut batch.data)?;
    if left.len() != batch.words.len() {
        let mut left = left.into_iter().peekable();
        let is_left = |word: &u64| left.next_if_eq(&frame(*word)).is_some();
        batch.words.retain(is_left);
    }
    Ok(())
}

fn pass_on(
    read: &mut Read,
    sink: &dyn Sink,
    control: &Control,
    sent: &mut RoundSent,
) -> Result<()> {
    let Read { batch, asked, zero } = read;
    let (asked, zero) = (*asked, *zero);
    let pages = batch.words.len() as u64;
    sent.pages += pages;
    sent.zero += zero;
    if pages != 0 {
        sink.pages(batch)?;
    }
    control.update(|figures| {
        figures.memory_constant += zero;
        figures.memory_normal += pages - zero;
        figures.memory_normal_bytes += (pages - zero) * PAGE_SIZE as u64;
        figures.memory_processed += pages * PAGE_SIZE as u64;
        let done = asked * PAGE_SIZE as u64;
        figures.memory_remaining = figures.memory_remaining.saturating_sub(done);
    });
    Ok(())
}

/// The frame's number in a word.
pub(crate) fn frame(word: u64) -> u64 {
    word & ((1 << 52) - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use parking_lot::Mutex;
    use proptest::prelude::*;

    use super::{Frames, present, send};
    use crate::job::{Batch, Control, JobOptions, PAGE_SIZE, Result, Sink};
    use crate::save::guest::Memory;
    use crate::save::guest::fake::FakeGuest;

    /// What a receiver would have.
    #[derive(Default)]
    struct Far(Mutex<BTreeMap<u64, u8>>);

    impl Sink for Far {
        fn bytes(&self, _: &[u8]) -> Result<()> {
            Ok(())
        }

        fn pages(&self, batch: &mut Batch) -> Result<()> {
            assert!(batch.is_sound());
            let pages = batch.data.chunks_exact(PAGE_SIZE);
            let frames = batch.words.iter().map(|word| super::frame(*word));
            self.0
                .lock()
                .extend(frames.zip(pages.map(|page| page[PAGE_SIZE - 1])));
            Ok(())
        }

        fn barrier(&self) -> Result<()> {
            Ok(())
        }
    }

    fn control() -> Control {
        Control::new(JobOptions::default())
    }

    #[test]
    fn the_search_ends_when_all_pages_are_found() {
        let mut guest = FakeGuest::default();
        guest.frames.extend((0..5000).map(|frame| (frame, 1)));
        guest.frames.remove(&160);
        let special = (1 << 20) - 8..1 << 20;
        guest.frames.extend(special.map(|frame| (frame, 2)));
        // Where the toolstack puts ACPI tables, and rings.
        let special = (0xf_c000..0xf_c004).chain(0xf_eff8..0xf_f000);
        guest.frames.extend(special.map(|frame| (frame, 2)));
        guest.frames.insert((1 << 20) + 70_000, 3);
        let found = present(&mut guest, &control()).unwrap();
        assert!(found.frames().eq(guest.frames.keys().copied()));
        // All below 4 GiB is searched only for one that is nowhere else.
        assert!(guest.asked < 100_000, "{}", guest.asked);
        guest.frames.insert(500_000, 4);
        let found = present(&mut guest, &control()).unwrap();
        assert!(found.frames().eq(guest.frames.keys().copied()));
        guest.frames.remove(&500_000);
        guest.frames.remove(&((1 << 20) + 70_000));
        guest.asked = 0;
        present(&mut guest, &control()).unwrap();
        assert!(guest.asked < 25_000, "{}", guest.asked);
    }

    #[test]
    fn what_the_time_did_not_suffice_for_is_told() {
        let (control, receiver) = (control(), Far::default());
        let mut guest = FakeGuest::default();
        guest.frames.extend((0..3000).map(|frame| (frame, 1)));
        let all = present(&mut guest, &control).unwrap();
        let now = Some(std::time::Instant::now());
        let frames = Frames::Present(&all);
        let (sent, left) = send(&mut guest, &frames, &receiver, &control, now).unwrap();
        assert_eq!((sent.pages, left.len()), (0, 3000));
        let frames = Frames::Written(&left);
        let (sent, left) = send(&mut guest, &frames, &receiver, &control, None).unwrap();
        assert_eq!((sent.pages, left.len()), (3000, 0));
        assert_eq!(receiver.0.into_inner(), guest.frames);
    }

    proptest! {
        /// However a guest writes, frees and takes memory while it is copied, at any moment of it: after the
        /// round with the guest standing still the receiver has what the guest has.
        #[test]
        fn in_the_end_the_receiver_has_the_guests_memory(
            frames in prop::collection::btree_map(0_u64..3000, any::<u8>(), 1..100),
            writes in prop::collection::vec(changes(), 0..24),
            rounds in 1_u32..4,
        ) {
            let mut guest = FakeGuest { frames, writes: writes.into(), ..FakeGuest::default() };
            let received = copy(&mut guest, rounds);
            prop_assert_eq!(received, guest.frames);
        }
    }

    /// What a guest does in a moment: it writes to a frame (and takes one that it has not), or gives it up.  A
    /// few frames are chosen much more often than the others, so that they come and go and come.
    fn changes() -> impl Strategy<Value = Vec<(u64, Option<u8>)>> {
        let frame = prop_oneof![0_u64..3000, 0_u64..4];
        prop::collection::vec((frame, prop::option::weighted(0.7, any::<u8>())), 0..20)
    }

    /// A whole copy; what the receiver has of the frames that the guest has in the end.  What it gave back
    /// meanwhile stays with the receiver, as with Xen's own tools, until the shim gives it back there.
    fn copy(guest: &mut FakeGuest, rounds: u32) -> BTreeMap<u64, u8> {
        let (control, receiver) = (control(), Far::default());
        guest.record_writes(3000).unwrap();
        let all = present(guest, &control).unwrap();
        let (sent, _) = send(guest, &Frames::Present(&all), &receiver, &control, None).unwrap();
        assert!(sent.zero <= sent.pages);
        for _ in 0..rounds {
            let dirty = guest.take_dirty(false).unwrap();
            send(guest, &Frames::Written(&dirty), &receiver, &control, None).unwrap();
        }
        guest.writes.clear();
        let dirty = guest.take_dirty(true).unwrap();
        send(guest, &Frames::Written(&dirty), &receiver, &control, None).unwrap();
        let mut received = receiver.0.into_inner();
        received.retain(|frame, _| guest.frames.contains_key(frame));
        received
    }

    /// What the shim is for here: Xen's record alone does not tell of a frame that has come.
    #[test]
    fn without_the_shims_mark_memory_that_comes_is_lost() {
        let mut guest = FakeGuest {
            has_shim: false,
            frames: BTreeMap::from([(0, 1)]),
            writes: VecDeque::from([vec![], vec![(1, Some(5))]]),
            ..FakeGuest::default()
        };
        assert_ne!(copy(&mut guest, 1), guest.frames);
    }
}
