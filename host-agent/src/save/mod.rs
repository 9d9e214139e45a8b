//! A live domain as a source: its memory read while it runs, then what is left with the guest suspended,
//! then its state.
//!
//! | file | is |
//! |---|---|
//! | `guest` | a domain's memory and which of it was written, through Xen |
//! | `reading` | what is under way with one: round after round |
//! | `bitmap` | a set of frames |
//! | `rounds` | the frames that there are, and one round over some of them |
//! | `policy` | whether another round pays: pure |
//! | `estimate` | how a guest behaves, for predictions |
//! | `suspend` | asks a domain to suspend itself, and takes that back |
//! | `records` | what is not memory |
//! | `marker` | says of a domain that it is a source, for whoever looks after a crash |
//!
//! All of it is for domains of type `pvh`: shims, whatever runs inside them.  Their frames are the guest's
//! machine frames, so nothing is rewritten, and no emulator has a state of its own.

mod bitmap;
mod estimate;
mod guest;
pub(crate) mod marker;
pub(crate) mod policy;
mod reading;
mod records;
mod rounds;
mod suspend;

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use self::estimate::Seen;
use self::guest::{Bitmap, Memory, XenGuest};
use self::reading::{Reading, announce, skeleton};
use self::records::Records;
use self::rounds::Frames;
use self::suspend::{Suspendable, settle, suspend};
use crate::job::{
    Control, Copied, Error, JobOptions, Needs, PAGE_SIZE, Phase, Prepared, Presence, Result, Sink,
    Source,
};
use crate::xen::abi::flags;
use crate::xen::config;
use crate::xen::domain::Xen;
use crate::xen::store::Store;
use crate::xen::toolstack;

/// What the toolstack puts behind the name of a domain that has moved on.
const AWAY: &str = "--migratedaway";
/// What it puts behind the name of one that is coming.
pub(crate) const INCOMING: &str = "--incoming";

/// A domain of this host that is to move.
pub(crate) struct LiveSource {
    xen: Xen,
    store: Arc<dyn Store>,
    domid: u16,
    name: String,
    uuid: String,
    /// Made by the first step that reads the domain.
    reading: Option<Reading>,
}

impl LiveSource {
    /// The domain of this number, which had this name and UUID when it was looked up.
    pub(crate) fn new(
        xen: Xen,
        store: Arc<dyn Store>,
        domid: u16,
        name: String,
        uuid: String,
    ) -> Self {
        Self {
            xen,
            store,
            domid,
            name,
            uuid,
            reading: None,
        }
    }

    /// The domain, unless its number is another one's by now.
    fn info(&self) -> Result<Option<crate::xen::abi::DomainInfo>> {
        let info = self.xen.domain(self.domid).info()?;
        Ok(info.filter(|info| config::uuid(&info.handle) == self.uuid))
    }

    fn is_here(&self) -> Result<crate::xen::abi::DomainInfo> {
        self.info()?
            .filter(|info| info.flags & flags::DYING == 0)
            .ok_or_else(|| Error::Refused(format!("there is no domain {} any more", self.name)))
    }

    /// Starts recording writes, if that has not been done.
    fn reading(&mut self) -> Result<&mut Reading> {
        self.is_here()?;
        if self.reading.is_none() {
            let mut guest = XenGuest::new(self.xen.clone(), self.domid)?;
            let end = guest.end_of_frames()?;
            guest.record_writes(end)?;
            self.reading = Some(Reading {
                guest,
                records: None,
                end,
                words: None,
                dirty: Bitmap::default(),
                copied: Copied::default(),
            });
        }
        self.reading
            .as_mut()
            .ok_or_else(|| Error::Xen("nothing is read".to_owned()))
    }

    /// The domain when it has made up its mind: one that was asked to suspend itself, by whichever run of
    /// the agent, may be about to.
    fn settled(&self) -> Result<crate::xen::abi::DomainInfo> {
        let info = self.is_here()?;
        if info.flags & flags::SHUTDOWN == 0
            && marker::is_asked(&*self.store, self.domid, &self.uuid)?
        {
            let guest = XenGuest::new(self.xen.clone(), self.domid)?;
            settle(self.domid, &guest, &*self.store)?;
            return self.is_here();
        }
        Ok(info)
    }

    fn configuration(&self) -> Result<Value> {
        toolstack::configuration(self.domid)
    }

    fn can_move(&self, config: &Value) -> Result<()> {
        let info = self.is_here()?;
        let refuse = |why: &str| Err(Error::Refused(format!("{} {why}", self.name)));
        if info.flags & flags::HVM_GUEST == 0 {
            return refuse(
                "is a plain PV domain: only one that runs in a shim (type=\"pvh\" pvshim=1) can be moved",
            );
        }
        if info.flags & flags::SHUTDOWN != 0 {
            return refuse("has shut down");
        }
        if info.flags & flags::PAUSED != 0 {
            return refuse("is paused: it cannot suspend itself");
        }
        config::can_move(config).map_err(|why| Error::Refused(format!("{} {why}", self.name)))
    }
}

impl Source for LiveSource {
    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn prepare(&mut self, options: &JobOptions, control: &Control) -> Result<Prepared> {
        let config = self.configuration()?;
        self.can_move(&config)?;
        let info = self.is_here()?;
        let (name, domid) = (self.name.clone(), self.domid);
        let version = self.xen.version();
        let uuid = self.uuid.clone();
        marker::set(&*self.store, domid, &uuid)?;
        let reading = self.reading()?;
        let Seen {
            estimate,
            words,
            dirty,
        } = estimate::estimate(&mut reading.guest, control)?;
        (reading.words, reading.dirty) = (Some(words), dirty);
        let destination_name = options.destination_name.clone();
        Ok(Prepared {
            needs: Needs {
                destination_name: destination_name.unwrap_or_else(|| name.clone()),
                name,
                uuid,
                source_domid: u32::from(domid),
                memory_bytes: config::memory_bytes(&config, info.max_pages, info.max_vcpu_id),
                vcpus: info.max_vcpu_id.wrapping_add(1),
                disks: config::writable_disks(&config),
                xen_version: version,
                config: config::to_travel(&config),
            },
            estimate,
        })
    }

    fn copy_live(&mut self, sink: &dyn Sink, control: &Control) -> Result<()> {
        let begun = Instant::now();
        marker::set(&*self.store, self.domid, &self.uuid)?;
        let reading = self.reading()?;
        let end = reading.guest.end_of_frames()?;
        if end > reading.end {
            // Frames that nobody has recorded: all is to be looked for anew.
            reading.guest.record_writes(end)?;
            (reading.end, reading.words) = (end, None);
        }
        let domain = reading.guest.domain();
        let mut records = Records::begin(reading.guest.xen(), domain)?;
        sink.bytes(&records.take())?;
        control.enter(Phase::Live, "copying memory; the guest runs");
        let words = reading.find_frames(control)?;
        if sink.builds_early() {
            skeleton(&words, sink)?;
            records.state(reading.guest.domain())?;
            sink.bytes(&records.take())?;
        }
        reading.records = Some(records);
        let total = words.len() as u64 * PAGE_SIZE as u64;
        control.update(|figures| {
            figures.memory_total = total;
            figures.memory_page_size = PAGE_SIZE as u64;
            figures.setup_time = u64::try_from(control.elapsed().as_millis()).unwrap_or(u64::MAX);
        });
        match reading.rounds(&words, sink, control, begun)? {
            Some(reason) => {
                control.tell(format!("stopping the guest: {}", reason.text()));
                Ok(())
            }
            None => Err(Error::TimedOut(format!(
                "copying the memory of {}",
                self.name
            ))),
        }
    }

    fn copy_rest(&mut self, sink: &dyn Sink, control: &Control) -> Result<Copied> {
        let (domid, store, name) = (self.domid, self.store.clone(), self.name.clone());
        let uuid = self.uuid.clone();
        let is_here = || marker::is_destination_too(&*store, domid, &name);
        let reading = self.reading()?;
        let Some(records) = &mut reading.records else {
            return Err(Error::Xen("the stream has not been begun".to_owned()));
        };
        control.enter(Phase::StopAndCopy, "suspending the guest");
        marker::set_asked(&*store, domid, &uuid)?;
        let asked = Instant::now();
        suspend(domid, &reading.guest, &*store, control)?;
        let time = asked.elapsed();
        reading.copied.suspend_ms = time.as_secs_f64() * 1000.0;
        control.tell(format!(
            "the guest is suspended, after {} ms",
            time.as_millis()
        ));
        // Both ends may be on this host; then the destination wants the name.
        if is_here()? {
            toolstack::rename(domid, &format!("{name}{AWAY}"))?;
        }
        let mut dirty = reading.guest.take_dirty(true)?;
        // What was written before the last look and has not been sent since.
        dirty.add(&reading.dirty);
        announce(control, reading.copied.rounds + 1, dirty.len());
        let frames = Frames::Written(&dirty);
        let sent = rounds::send(&mut reading.guest, &frames, sink, control)?;
        records.state(reading.guest.domain())?;
        records.end()?;
        sink.bytes(&records.take())?;
        sink.barrier()?;
        reading.copied.rounds += 1;
        reading.copied.pages += sent.pages;
        Ok(reading.copied)
    }

    fn resume_here(&mut self) -> Result<()> {
        let info = self.settled()?;
        if let Some(mut reading) = self.reading.take() {
            reading.guest.stop_recording()?;
        } else {
            // An agent that died may have left it on.
            self.xen.domain(self.domid).disable_log_dirty()?;
        }
        let name = self
            .store
            .read(&format!("/local/domain/{}/name", self.domid))?;
        if name.is_some_and(|name| name == format!("{}{AWAY}", self.name)) {
            toolstack::rename(self.domid, &self.name)?;
        }
        if info.flags & flags::SHUTDOWN == 0 {
            return marker::clear(&*self.store, self.domid);
        }
        let guest = XenGuest::new(self.xen.clone(), self.domid)?;
        if guest.is_suspended()? {
            guest.domain().resume()?;
            self.store.resume(self.domid)?;
        }
        match self.presence()? {
            Presence::Running => marker::clear(&*self.store, self.domid),
            other => Err(Error::Xen(format!(
                "{} does not run after it was resumed: it is {other:?}",
                self.name
            ))),
        }
    }

    fn destroy(&mut self) -> Result<()> {
        self.reading = None;
        if self.info()?.is_none() {
            return Ok(());
        }
        toolstack::destroy(self.domid)?;
        match self.info()? {
            None => marker::clear(&*self.store, self.domid),
            Some(info) if info.flags & flags::DYING != 0 => marker::clear(&*self.store, self.domid),
            Some(_) => Err(Error::Xen(format!("{} is still here", self.name))),
        }
    }

    fn presence(&mut self) -> Result<Presence> {
        Ok(self
            .info()?
            .map_or(Presence::Absent, |info| presence(info.flags)))
    }
}

impl Drop for LiveSource {
    fn drop(&mut self) {
        // Only looked at: nobody will have to tell it from a copy.
        let reading = self.reading.take();
        if reading.is_some_and(|reading| reading.records.is_none())
            && let Err(error) = marker::clear(&*self.store, self.domid)
        {
            log::debug!("{error}");
        }
    }
}

/// Where a domain with these flags stands.
pub(crate) fn presence(domain: u32) -> Presence {
    if domain & flags::DYING != 0 {
        Presence::Partial
    } else if domain & (flags::SHUTDOWN | flags::PAUSED) != 0 {
        Presence::Paused
    } else {
        Presence::Running
    }
}
