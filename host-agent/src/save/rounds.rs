//! Rounds over a guest's memory: which frames there are, and their contents into the sink.

use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::guest::{Bitmap, Memory, is_present};
use crate::job::{Batch, Control, Error, PAGE_SIZE, Result, Sink, is_zero};

/// Frames that a PVH guest's special pages are just below (4 GiB), beside its RAM.
const END_OF_SPECIAL: u64 = 1 << 20;
/// How many of these are looked at before the rest.
const SPECIAL: u64 = 4096;

/// Pages that are read at a time.  A full batch is four times as much; but what is read, compressed and
/// encrypted in turn should stay in a processor's cache, and every page of the memory in which batches wait
/// for the one before must be faulted in first, which is dear in a control domain that is paravirtualised.
const AT_ONCE: usize = Batch::MOST / 4;

/// What a round did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sent {
    /// Pages, whatever is in them.
    pub(crate) pages: u64,
    /// Of these, the ones that are all zero.
    pub(crate) zero: u64,
    /// From the first page until all had arrived.
    pub(crate) time: Duration,
}

/// All frames that have memory, as words of PAGE_DATA in the order of their numbers.
///
/// A PVH guest's frame numbers go up to 4 GiB at least, whatever memory it has.  So its RAM is looked at
/// first, then its special pages, then the rest, and as soon as as many frames are found as the guest
/// has pages the search is over: asking Xen for a million frames costs seconds.
pub(crate) fn present(memory: &mut dyn Memory, control: &Control) -> Result<Vec<u64>> {
    let (end, own) = (memory.end_of_frames()?, memory.own_frames()?);
    let ram = own.min(end);
    let special = END_OF_SPECIAL.min(end);
    let special = special.saturating_sub(SPECIAL).max(ram)..special.max(ram);
    let mut found = Vec::new();
    for range in [
        0..ram,
        special.clone(),
        ram..special.start,
        special.end..end,
    ] {
        let mut next = range.start;
        while next < range.end && (found.len() as u64) < own {
            control.check()?;
            // Aligned, so that a receiver may use large pages.
            let stop = range.end.min((next / 1024 + 1) * 1024);
            let mut words: Vec<u64> = (next..stop).collect();
            memory.types(&mut words)?;
            found.extend(words.into_iter().filter(|word| is_present(*word)));
            next = stop;
        }
    }
    found.sort_unstable_by_key(|word| frame(*word));
    Ok(found)
}

/// Frames for a round.
pub(crate) enum Frames<'a> {
    /// Words of PAGE_DATA: what [`present`] has found.
    Present(&'a [u64]),
    /// Those that were written; not all of them need have memory of the guest's own.
    Written(&'a Bitmap),
}

/// One round: sends these frames, as far as they (still) have memory; gives what it did, and what it has
/// not begun when the time was over.
///
/// The next batch is read while the sink takes the one before, so that neither waits for the other.
pub(crate) fn send(
    memory: &mut dyn Memory,
    frames: &Frames<'_>,
    sink: &dyn Sink,
    control: &Control,
    until: Option<Instant>,
) -> Result<(Sent, Bitmap)> {
    let begun = Instant::now();
    let mut sent = Sent::default();
    let mut passing = Duration::ZERO;
    let (batches, next) = sync_channel(1);
    // Batches that have been sent, whose memory is used again.
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
            // Until a round has told how fast the way is, its own progress does.
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

/// A batch with what is known of it.
struct Read {
    batch: Batch,
    /// Frames that were looked at for it.
    asked: u64,
    /// Pages that are all zero.
    zero: u64,
}

/// What a reader reads from, and where to.
struct PageReader<'a> {
    memory: &'a mut dyn Memory,
    control: &'a Control,
    until: Option<Instant>,
    batches: SyncSender<Read>,
    /// Batches that have been sent.
    used: Receiver<Batch>,
}

impl PageReader<'_> {
    /// Reads these frames; gives those that it has not when the time was over.
    fn all(&mut self, frames: &Frames<'_>) -> Result<Bitmap> {
        match frames {
            Frames::Present(words) => {
                let mut words = words.iter().copied();
                while self.batch(&mut words, true)? {}
                Ok(words.map(frame).collect())
            }
            Frames::Written(bitmap) => {
                let mut frames = bitmap.frames();
                while self.batch(&mut frames, false)? {}
                Ok(frames.collect())
            }
        }
    }

    /// Reads a batch of these; whether there may be more.
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

/// Reads the pages of a batch; those that have gone since their types were asked are left out.
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

fn pass_on(read: &mut Read, sink: &dyn Sink, control: &Control, sent: &mut Sent) -> Result<()> {
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
    use std::collections::BTreeMap;

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
        guest.frames.insert((1 << 20) + 70_000, 3);
        let found = present(&mut guest, &control()).unwrap();
        assert_eq!(found, guest.frames.keys().copied().collect::<Vec<_>>());
        // All below 4 GiB had to be searched for the last one, but not without it.
        guest.frames.remove(&((1 << 20) + 70_000));
        guest.asked = 0;
        present(&mut guest, &control()).unwrap();
        assert!(guest.asked < 10_000, "{}", guest.asked);
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
        /// However a guest writes, frees and takes memory while it is copied: after the round with the
        /// guest standing still the receiver has what the guest has.
        #[test]
        fn in_the_end_the_receiver_has_the_guests_memory(
            frames in prop::collection::btree_map(0_u64..3000, any::<u8>(), 1..100),
            writes in prop::collection::vec(
                prop::collection::vec((0_u64..3000, prop::option::weighted(0.9, any::<u8>())), 0..50),
                0..12,
            ),
            rounds in 1..4,
        ) {
            let (control, receiver) = (control(), Far::default());
            let mut guest = FakeGuest { frames, writes: writes.into(), ..FakeGuest::default() };
            guest.record_writes(3000).unwrap();
            let all = present(&mut guest, &control).unwrap();
            let (sent, _) = send(&mut guest, &Frames::Present(&all), &receiver, &control, None).unwrap();
            prop_assert!(sent.zero <= sent.pages);
            for _ in 0..rounds {
                let dirty = guest.take_dirty(false).unwrap();
                send(&mut guest, &Frames::Written(&dirty), &receiver, &control, None).unwrap();
            }
            guest.writes.clear();
            let dirty = guest.take_dirty(true).unwrap();
            send(&mut guest, &Frames::Written(&dirty), &receiver, &control, None).unwrap();
            let mut received = receiver.0.into_inner();
            // What the guest gave back meanwhile stays with the receiver, as with Xen's own tools.
            received.retain(|frame, _| guest.frames.contains_key(frame));
            prop_assert_eq!(received, guest.frames);
        }
    }
}
