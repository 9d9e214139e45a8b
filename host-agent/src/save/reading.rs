//! The state of reading a live domain: which frames are left to send, and the progress.

use std::time::Instant;

use super::guest::{self, Bitmap, Memory, XenGuest};
use super::policy::{Limits, Progress, Reason, Round, Verdict};
use super::records::Records;
use super::rounds::{self, Frames, RoundSent};
use crate::job::{Batch, Control, Copied, Error, PAGE_SIZE, Result, Sink};
use crate::xen::priority::Turn;

/// Frames that are announced in one batch.
const SKELETON: u64 = 0xE;

/// A reading in progress.
pub(super) struct Reading {
    pub(super) guest: XenGuest,
    pub(super) records: Option<Records>,
    /// Frames below this are tracked.
    pub(super) end: u64,
    /// The existing frames, once they have been listed.
    pub(super) frames: Option<Bitmap>,
    /// What was written since it was sent.
    pub(super) dirty: Bitmap,
    pub(super) copied: Copied,
    /// Copying comes before what guests do.
    pub(super) turn: Option<Turn>,
}

impl Reading {
    /// The frames to send in the first round.  Includes what was written while they were listed, because
    /// frames may have been added.
    pub(super) fn find_frames(&mut self, control: &Control) -> Result<Bitmap> {
        let Some(mut frames) = self.frames.take() else {
            self.guest.take_dirty(false)?;
            return rounds::present(&mut self.guest, control);
        };
        let mut new = std::mem::take(&mut self.dirty);
        new.remove(&frames);
        let mut new = new.frames();
        loop {
            let mut words: Vec<u64> = new.by_ref().take(Batch::MOST).collect();
            if words.is_empty() {
                return Ok(frames);
            }
            self.guest.types(&mut words)?;
            let present = words.iter().filter(|word| guest::is_present(**word));
            frames.extend(present.map(|word| rounds::frame(*word)));
        }
    }

    /// Runs rounds with the guest running, the first over all these frames, until another one does not pay;
    /// returns why to suspend the guest.
    ///
    /// # Errors
    /// Why the guest is left where it is.
    pub(super) fn rounds(
        &mut self,
        all: Bitmap,
        sink: &dyn Sink,
        control: &Control,
        begun: Instant,
    ) -> Result<Reason> {
        let mut progress = Progress::default();
        let timeout = limits(control).timeout;
        let until = timeout.and_then(|timeout| begun.checked_add(timeout));
        let mut all = Some(all);
        loop {
            let round = self.copied.rounds + 1;
            let frames = match &all {
                Some(all) => Frames::Present(all),
                None => Frames::Written(&self.dirty),
            };
            announce(control, round, frames.len());
            let (sent, left) = rounds::send(&mut self.guest, &frames, sink, control, until)?;
            // They are many.
            all = None;
            self.copied.rounds = round;
            self.copied.pages += sent.pages;
            self.dirty = self.guest.take_dirty(false)?;
            self.dirty.add(&left);
            let dirty = self.dirty.len();
            let done = Round {
                pages: sent.pages - sent.zero,
                time: sent.time,
            };
            let verdict = progress.after(done, dirty, begun.elapsed(), &limits(control));
            figures(control, &sent, dirty, &progress);
            match verdict {
                Verdict::GoOn => {}
                Verdict::GiveUp(reason) => return Err(given_up(reason)),
                Verdict::Stop(reason) => return Ok(reason),
            }
        }
    }
}

fn given_up(reason: Reason) -> Error {
    match reason {
        Reason::Rounds => {
            Error::Refused("the blackout would still be too long after the last round".to_owned())
        }
        Reason::TooLong => {
            Error::Refused("the blackout would be longer than --max-blackout allows".to_owned())
        }
        _ => Error::TimedOut("copying the memory".to_owned()),
    }
}

/// Announces the frames, so that the domain can be built while its memory is on the way.
pub(super) fn skeleton(frames: &Bitmap, sink: &dyn Sink) -> Result<()> {
    let mut batch = Batch::default();
    let mut words = frames.frames().map(|frame| SKELETON << 60 | frame);
    loop {
        batch.clear();
        batch.words.extend(words.by_ref().take(Batch::MOST));
        if batch.words.is_empty() {
            return Ok(());
        }
        sink.pages(&mut batch)?;
    }
}

fn limits(control: &Control) -> Limits {
    let options = control.options();
    Limits {
        max_downtime: control.time_for_memory(),
        timeout: options.timeout_ms.map(std::time::Duration::from_millis),
        on_timeout: options.on_timeout,
        max_rounds: options.max_rounds,
        max_blackout: control.max_blackout(),
    }
}

/// Starts a round.
pub(super) fn announce(control: &Control, round: u32, pages: u64) {
    control.tell(format!("round {round}: {pages} pages"));
    control.update(|figures| {
        figures.memory_iteration = round;
        figures.memory_remaining = pages * PAGE_SIZE as u64;
    });
}

#[expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "rates are small"
)]
fn figures(control: &Control, sent: &RoundSent, dirty: u64, progress: &Progress) {
    let seconds = sent.time.as_secs_f64().max(0.001);
    let expected = progress.expected(dirty).as_millis();
    control.update(|figures| {
        figures.memory_bps = (progress.rate().unwrap_or(0.0) * PAGE_SIZE as f64) as u64;
        figures.memory_dirty_rate = (dirty as f64 / seconds) as u64;
        figures.memory_remaining = dirty * PAGE_SIZE as u64;
        figures.downtime = u64::try_from(expected).ok();
    });
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Instant;

    use peak_alloc::PeakAlloc;

    use super::skeleton;
    use crate::job::{Batch, Control, JobOptions, Result, Sink};
    use crate::save::guest::{Bitmap, Memory};
    use crate::save::rounds::{Frames, present, send};

    /// Counts what is allocated: resident memory would count this program's code, too, which the host may or may not
    /// have read in.
    #[global_allocator]
    static HEAP: PeakAlloc = PeakAlloc;

    /// The guest's size in GiB, where it is not [`SIZE`]; `cargo xtask bench-memory` sets it.
    const SIZE_KEY: &str = "UNMOVED_TEST_GUEST_GIB";
    /// GiB.
    const SIZE: u64 = 64;
    /// The most that is needed for each TiB of a guest, as the guide says.
    const BYTES_PER_TIB: u64 = 192 << 20;
    /// Batches, and the test itself.
    const BESIDE: u64 = 1 << 20;
    /// Set where the test has a process of its own.
    const ALONE: &str = "UNMOVED_TEST_ALONE";

    /// A guest all of whose frames, so many, are written all the time.
    struct Large(u64);

    impl Memory for Large {
        fn end_of_frames(&self) -> Result<u64> {
            Ok(self.0)
        }

        fn end_of_ram(&self) -> Result<u64> {
            Ok(self.0)
        }

        fn own_frames(&self) -> Result<u64> {
            Ok(self.0)
        }

        fn types(&mut self, _: &mut [u64]) -> Result<()> {
            Ok(())
        }

        fn read(&mut self, _: &mut Vec<u64>, _: &mut Vec<u8>) -> Result<()> {
            unreachable!("there is no time for that")
        }

        fn written_by_others(&self) -> Result<Vec<u64>> {
            Ok(Vec::new())
        }

        fn record_writes(&mut self, _: u64) -> Result<()> {
            Ok(())
        }

        fn stop_recording(&mut self) -> Result<()> {
            Ok(())
        }

        fn take_dirty(&mut self, _: bool) -> Result<Bitmap> {
            let mut dirty = Bitmap::below(self.0);
            dirty.0.fill(u64::MAX);
            Ok(dirty)
        }
    }

    /// Forgets what it gets.
    struct Nowhere;

    impl Sink for Nowhere {
        fn bytes(&self, _: &[u8]) -> Result<()> {
            Ok(())
        }

        fn pages(&self, _: &mut Batch) -> Result<()> {
            Ok(())
        }

        fn barrier(&self) -> Result<()> {
            Ok(())
        }
    }

    /// The guest's size, GiB.
    fn size() -> u64 {
        std::env::var(SIZE_KEY).map_or(SIZE, |size| size.parse().expect("a number of GiB"))
    }

    /// What is known of a guest's frames from the first look to the last round, with Xen's own copy of what is
    /// dirty, and with rounds that the time never suffices for.
    #[test]
    fn what_is_known_of_frames_takes_as_little_as_the_guide_says() {
        if std::env::var_os(ALONE).is_none() {
            let me = std::env::current_exe().unwrap();
            let name = std::thread::current().name().map(str::to_owned).unwrap();
            let alone = Command::new(me)
                .args(["--exact", "--nocapture", &name])
                .env(ALONE, "1")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&alone.stdout);
            assert!(
                alone.status.success() && said.contains("1 passed"),
                "{said}"
            );
            print!("{said}");
            return;
        }
        let frames = size() << 18;
        HEAP.reset_peak_usage();
        let before = HEAP.current_usage();
        let control = Control::new(JobOptions::default());
        let guest = &mut Large(frames);
        let xens = guest.take_dirty(false).unwrap();
        let mut all = present(guest, &control).unwrap();
        let mut dirty = guest.take_dirty(false).unwrap();
        dirty.add(&guest.take_dirty(false).unwrap());
        assert_eq!(all.len(), frames);
        dirty.remove(&all);
        assert_eq!(dirty.len(), 0);
        skeleton(&all, &Nowhere).unwrap();
        for round in 0..3 {
            let sent = match round {
                0 => Frames::Present(&all),
                _ => Frames::Written(&all),
            };
            let now = Some(Instant::now());
            let (_, left) = send(guest, &sent, &Nowhere, &control, now).unwrap();
            assert_eq!(left.len(), frames);
            let mut next = guest.take_dirty(false).unwrap();
            next.add(&left);
            all = next;
        }
        drop(xens);
        let taken = (HEAP.peak_usage() - before) as u64;
        let most = frames * BYTES_PER_TIB / (1 << 28) + BESIDE;
        let per_tib = taken * (1 << 28) / frames;
        println!(
            "{} GiB: {} KiB at most, {:.1} MiB for each TiB",
            frames >> 18,
            taken >> 10,
            per_tib as f64 / f64::from(1 << 20)
        );
        assert!(taken <= most, "{taken} bytes, and {most} are allowed");
    }
}
