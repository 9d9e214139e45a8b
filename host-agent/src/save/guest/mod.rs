//! What the rounds need of a guest: its memory, and which pages are dirty.

#[cfg(test)]
pub(crate) mod fake;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::job::{Error, PAGE_SIZE, Result};
use crate::xen::abi::param;
use crate::xen::domain::{Domain, TYPES_AT_ONCE, Xen};
use crate::xen::saver::{self, PROC};
use crate::xen::state::SHUTDOWN_SUSPEND;
use crate::xen::sys::{Buffer, EventChannels};

pub(crate) use super::bitmap::Bitmap;
use super::suspend::Suspendable;

/// Page type of a frame without memory (`XEN_DOMCTL_PFINFO_XTAB`).
const ABSENT: u64 = 0xF;
/// A page that must not be touched (`XEN_DOMCTL_PFINFO_BROKEN`).
const BROKEN: u64 = 0xD;

/// The frame number in a word.
const PFN: u64 = (1 << 52) - 1;
/// How often frames are tried that Xen says exist but gives no access to.
const ATTEMPTS: u32 = 3;
/// Interval between two looks for other readers of the domain while pages are read, if their starts are not
/// reported.
const LOOK: Duration = Duration::from_secs(3);

/// A guest's memory, while it runs or is suspended.
pub(crate) trait Memory: Send {
    /// The current number after the last frame.
    fn end_of_frames(&self) -> Result<u64>;

    /// The number after the last frame that may be RAM, below the hole for devices; the guest is built with
    /// frames below it.
    fn end_of_ram(&self) -> Result<u64>;

    /// Current number of frames with memory of the guest's own.
    fn own_frames(&self) -> Result<u64>;

    /// Replaces frame numbers by words of PAGE_DATA: the type in bits 63–60.  At most
    /// [`Batch::MOST`](crate::job::Batch::MOST).
    fn types(&mut self, words: &mut [u64]) -> Result<()>;

    /// Appends the contents of frames.  Removes those that are gone from `frames`.
    fn read(&mut self, frames: &mut Vec<u64>, into: &mut Vec<u8>) -> Result<()>;

    /// Frames that others than the guest write, possibly without dirty tracking: the shared info page, rings,
    /// and what the guest has granted for writing.  Some numbers may not be frames.
    fn written_by_others(&self) -> Result<Vec<u64>>;

    /// Switches on log-dirty mode for all frames below `frames`, again if it was on.
    ///
    /// # Errors
    /// [`Error::Refused`] if the toolstack is reading the guest.
    fn record_writes(&mut self, frames: u64) -> Result<()>;

    /// Switches log-dirty mode off.
    fn stop_recording(&mut self) -> Result<()>;

    /// The frames that were written since the last call; `last` if the guest does not run any more.
    fn take_dirty(&mut self, last: bool) -> Result<Bitmap>;
}

/// Whether the frame of a word has readable memory.
pub(crate) fn is_present(word: u64) -> bool {
    !matches!(word >> 60, ABSENT | BROKEN)
}

/// Whether its frame is ordinary memory, as every frame of a domain with hardware-assisted paging is.
pub(crate) fn is_plain(word: u64) -> bool {
    word >> 60 == 0
}

/// A domain of this host.
#[derive(Debug)]
pub(crate) struct XenGuest {
    xen: Xen,
    domid: u16,
    end_of_ram: u64,
    /// Buffer for frame types.
    words: Buffer,
    errors: Vec<i32>,
    /// While log-dirty mode is on: the number of frames, and the buffer for the bitmap.
    dirty: Option<(u64, Buffer)>,
    /// Time of the last look for other readers.
    looked: Instant,
    /// Reports others that begin to read the domain while log-dirty mode is on.
    watch: Option<saver::Watch>,
}

impl XenGuest {
    /// Has no effect on the domain.
    pub(crate) fn new(xen: Xen, domid: u16) -> Result<Self> {
        let words = xen.buffer(TYPES_AT_ONCE * 8).map_err(no_buffer)?;
        Ok(Self {
            xen,
            domid,
            end_of_ram: 0,
            words,
            errors: Vec::new(),
            dirty: None,
            looked: Instant::now(),
            watch: None,
        })
    }

    /// Sets the memory that the toolstack may give it, in KiB (`memory/static-max`).
    pub(super) fn set_most_memory(&mut self, kib: u64) {
        self.end_of_ram = kib.div_ceil(PAGE_SIZE as u64 >> 10);
    }

    /// The domain in Xen.
    pub(crate) fn domain(&self) -> Domain<'_> {
        self.xen.domain(self.domid)
    }

    /// Switches log-dirty mode off, unless the toolstack has taken it over.
    pub(crate) fn switch_off(&self) -> Result<()> {
        match self.nobody_else_reads() {
            Ok(()) => self.domain().disable_log_dirty(),
            Err(Error::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// [`Error::Refused`] if the toolstack saves or migrates it.
    pub(super) fn nobody_else_reads(&self) -> Result<()> {
        let found = saver::saver(Path::new(PROC), self.domid);
        let found = found.map_err(Error::io("cannot list processes"))?;
        found.map_or(Ok(()), |process| {
            Err(self.is_read(&format!("the toolstack's process {process}")))
        })
    }

    /// # Errors
    /// [`Error::Refused`] if the toolstack has begun to read it since log-dirty mode was switched on.
    fn nobody_has_begun(&self) -> Result<()> {
        match self.watch.as_ref().and_then(saver::Watch::seen) {
            None => Ok(()),
            Some(process) => Err(self.is_read(&format!("the toolstack's process {process}"))),
        }
    }

    fn is_read(&self, who: &str) -> Error {
        Error::Refused(format!(
            "{who} is saving or migrating domain {} already",
            self.domid
        ))
    }

    /// Checks that frames to which Xen gave no access do not exist (any more).
    fn are_absent(&mut self, mut frames: Vec<u64>) -> Result<()> {
        if frames.is_empty() {
            return Ok(());
        }
        self.types(&mut frames)?;
        match frames.iter().find(|word| is_present(**word)) {
            None => Ok(()),
            Some(word) => Err(Error::Xen(format!(
                "Xen gives no access to frame {:#x} of domain {}, although the frame exists",
                word & PFN,
                self.domid
            ))),
        }
    }

    /// Access to Xen.
    pub(crate) fn xen(&self) -> &Xen {
        &self.xen
    }
}

impl Memory for XenGuest {
    fn end_of_frames(&self) -> Result<u64> {
        self.domain().end_of_frames()
    }

    fn end_of_ram(&self) -> Result<u64> {
        Ok(self.end_of_ram)
    }

    fn own_frames(&self) -> Result<u64> {
        Ok(self.domain().live_info()?.tot_pages)
    }

    fn types(&mut self, words: &mut [u64]) -> Result<()> {
        let frames = words.to_vec();
        let domain = self.xen.domain(self.domid);
        domain.frame_types(words, &mut self.words)?;
        for (word, frame) in words.iter_mut().zip(frames) {
            *word = (*word & 0xF000_0000) << 32 | frame;
        }
        Ok(())
    }

    fn read(&mut self, frames: &mut Vec<u64>, into: &mut Vec<u8>) -> Result<()> {
        if frames.is_empty() {
            return Ok(());
        }
        self.nobody_has_begun()?;
        if self.dirty.is_some() && self.watch.is_none() && self.looked.elapsed() >= LOOK {
            self.nobody_else_reads()?;
            self.looked = Instant::now();
        }
        let start = into.len();
        for attempt in 1.. {
            let domain = self.xen.domain(self.domid);
            let mapping = domain.map(frames, &mut self.errors, false)?;
            for (index, error) in self.errors.iter().enumerate() {
                if *error == 0 {
                    mapping.append(index * PAGE_SIZE, PAGE_SIZE, into);
                }
            }
            drop(mapping);
            let errors = frames.iter().zip(&self.errors);
            let gone = errors.filter(|(_, error)| **error != 0);
            let gone = gone.map(|(frame, _)| *frame).collect();
            match self.are_absent(gone) {
                Ok(()) => break,
                // It may have come back just now.
                Err(_) if attempt < ATTEMPTS => into.truncate(start),
                Err(error) => return Err(error),
            }
        }
        let mut errors = self.errors.iter();
        frames.retain(|_| errors.next() == Some(&0));
        Ok(())
    }

    fn written_by_others(&self) -> Result<Vec<u64>> {
        let domain = self.domain();
        let mut frames = domain.granted_for_writing()?;
        frames.push(domain.live_info()?.shared_info_frame);
        for ring in param::RINGS {
            // Without a ring this is 0, and frame 0 is the guest's.
            frames.extend(Some(domain.param(ring)?).filter(|frame| *frame != 0));
        }
        Ok(frames)
    }

    fn record_writes(&mut self, frames: u64) -> Result<()> {
        self.stop_recording()?;
        let bytes = usize::try_from(frames.div_ceil(8)).unwrap_or(usize::MAX);
        let buffer = self.xen.buffer(bytes).map_err(no_buffer)?;
        // Before log-dirty mode is on: a reader that began earlier is found, and one that begins later is
        // reported.
        self.watch = saver::Watch::begin(self.domid)
            .inspect_err(|error| {
                log::warn!("cannot look for other processes that read domains: {error}");
            })
            .ok();
        self.nobody_else_reads()?;
        if !self.domain().enable_log_dirty()? {
            // Someone may have switched it on just now, and must keep it.
            self.nobody_else_reads()?;
            // Whoever switched it on, this agent or the toolstack, has been killed since.
            self.domain().disable_log_dirty()?;
            if !self.domain().enable_log_dirty()? {
                return Err(self.is_read("something"));
            }
        }
        self.dirty = Some((frames, buffer));
        Ok(())
    }

    fn stop_recording(&mut self) -> Result<()> {
        self.watch = None;
        match self.dirty.take() {
            Some(_) => self.switch_off(),
            None => Ok(()),
        }
    }

    fn take_dirty(&mut self, last: bool) -> Result<Bitmap> {
        let Some((frames, buffer)) = &mut self.dirty else {
            return Err(Error::Xen("log-dirty mode is off".to_owned()));
        };
        let domain = self.xen.domain(self.domid);
        domain.take_dirty(*frames, buffer, last)?;
        let mut dirty = Bitmap::below(*frames);
        buffer.read(0, zerocopy::IntoBytes::as_mut_bytes(dirty.0.as_mut_slice()));
        // Bits beyond the end are not Xen's.
        if let Some(last) = dirty.0.last_mut()
            && *frames % 64 != 0
        {
            *last &= (1 << (*frames % 64)) - 1;
        }
        // An `xl migrate` that began meanwhile has taken over log-dirty mode, and the dirty bitmap is lost,
        // so the copy must not count as complete.  If it has ended properly, the mode is off and Xen reports
        // no writes; if it is running, it is found; if it was killed, its start was reported.
        if self.domain().enable_log_dirty()? {
            return Err(self.is_read("a process that has exited since"));
        }
        self.nobody_has_begun()?;
        self.nobody_else_reads()?;
        Ok(dirty)
    }
}

impl Drop for XenGuest {
    fn drop(&mut self) {
        // A domain that keeps running should not pay for dirty tracking that nobody needs.
        if let Err(error) = self.stop_recording() {
            log::debug!("{error}");
        }
    }
}

impl Suspendable for XenGuest {
    fn is_suspended(&self) -> Result<bool> {
        let info = self.domain().live_info()?;
        match info.state().shutdown_reason() {
            None => Ok(false),
            Some(SHUTDOWN_SUSPEND) => Ok(true),
            Some(reason) => Err(Error::Xen(format!(
                "domain {} shut down with reason {reason} instead of suspending",
                self.domid
            ))),
        }
    }

    fn notify(&self, port: u32) -> Result<()> {
        let failed = |error| {
            Error::Xen(format!(
                "cannot raise event {port} of domain {}: {error}",
                self.domid
            ))
        };
        let channels = EventChannels::open().map_err(failed)?;
        let local = channels.bind(u32::from(self.domid), port).map_err(failed)?;
        channels.notify(local).map_err(failed)
    }
}

fn no_buffer(error: std::io::Error) -> Error {
    Error::Xen(format!("no memory for hypercalls: {error}"))
}
