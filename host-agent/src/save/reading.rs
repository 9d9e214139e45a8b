//! What is under way while a live domain is read: which frames are still to be sent, and how that goes.

use std::time::Instant;

use super::guest::{self, Bitmap, Memory, XenGuest};
use super::policy::{Limits, Progress, Reason, Round, Verdict};
use super::records::Records;
use super::rounds::{self, Frames, Sent};
use crate::job::{Batch, Control, Copied, Error, PAGE_SIZE, Result, Sink};
use crate::xen::priority::Turn;

/// Frames marked in one batch as such that will come.
const SKELETON: u64 = 0xE;

/// What is under way.
pub(super) struct Reading {
    pub(super) guest: XenGuest,
    pub(super) records: Option<Records>,
    /// Frames below this are recorded.
    pub(super) end: u64,
    /// The frames there are, once somebody has looked, and what was written since.
    pub(super) words: Option<Vec<u64>>,
    /// What was written since it was sent.
    pub(super) dirty: Bitmap,
    pub(super) copied: Copied,
    /// Copying comes before what guests do.
    pub(super) turn: Option<Turn>,
}

impl Reading {
    /// The frames to send in the first round, in order.  What was written while they were looked for is
    /// sent too: frames may have come.
    pub(super) fn find_frames(&mut self, control: &Control) -> Result<Vec<u64>> {
        let Some(mut words) = self.words.take() else {
            self.guest.take_dirty(false)?;
            return rounds::present(&mut self.guest, control);
        };
        let known: Bitmap = words.iter().map(|word| rounds::frame(*word)).collect();
        self.dirty.remove(&known);
        let mut new: Vec<u64> = self.dirty.frames().collect();
        for new in new.chunks_mut(Batch::MOST) {
            self.guest.types(new)?;
            words.extend(new.iter().filter(|word| guest::is_present(**word)));
        }
        words.sort_unstable_by_key(|word| rounds::frame(*word));
        Ok(words)
    }

    /// Rounds with the guest running, the first over all these frames, until another does not pay; gives
    /// why the guest is to be stopped.
    ///
    /// # Errors
    /// Why the guest is to be left where it is.
    pub(super) fn rounds(
        &mut self,
        words: &[u64],
        sink: &dyn Sink,
        control: &Control,
        begun: Instant,
    ) -> Result<Reason> {
        let mut progress = Progress::default();
        let timeout = limits(control).timeout;
        let until = timeout.and_then(|timeout| begun.checked_add(timeout));
        let mut frames = Frames::Present(words);
        let mut count = words.len() as u64;
        loop {
            let round = self.copied.rounds + 1;
            announce(control, round, count);
            let (sent, left) = rounds::send(&mut self.guest, &frames, sink, control, until)?;
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
                Verdict::GoOn => (frames, count) = (Frames::Written(&self.dirty), dirty),
                Verdict::GiveUp(reason) => return Err(given_up(reason)),
                Verdict::Stop(reason) => return Ok(reason),
            }
        }
    }
}

fn given_up(reason: Reason) -> Error {
    match reason {
        Reason::Rounds => Error::Refused(
            "after all rounds that are allowed the blackout would still be too long".to_owned(),
        ),
        _ => Error::TimedOut("copying the memory".to_owned()),
    }
}

/// Tells which frames there will be, so that the domain can be built while its memory is on the way.
pub(super) fn skeleton(words: &[u64], sink: &dyn Sink) -> Result<()> {
    let mut batch = Batch::default();
    for words in words.chunks(Batch::MOST) {
        batch.clear();
        let frames = words
            .iter()
            .map(|word| SKELETON << 60 | rounds::frame(*word));
        batch.words.extend(frames);
        sink.pages(&mut batch)?;
    }
    Ok(())
}

fn limits(control: &Control) -> Limits {
    let options = control.options();
    Limits {
        max_downtime: control.time_for_memory(),
        timeout: options.timeout_ms.map(std::time::Duration::from_millis),
        on_timeout: options.on_timeout,
        max_rounds: options.max_rounds,
    }
}

/// A round begins.
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
fn figures(control: &Control, sent: &Sent, dirty: u64, progress: &Progress) {
    let seconds = sent.time.as_secs_f64().max(0.001);
    let expected = progress.expected(dirty).as_millis();
    control.update(|figures| {
        figures.memory_bps = (progress.rate().unwrap_or(0.0) * PAGE_SIZE as f64) as u64;
        figures.memory_dirty_rate = (dirty as f64 / seconds) as u64;
        figures.memory_remaining = dirty * PAGE_SIZE as u64;
        figures.downtime = u64::try_from(expected).ok();
    });
}
