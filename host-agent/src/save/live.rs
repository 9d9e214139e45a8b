//! A live domain's steps as a source, and what undoes them.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use super::estimate;
use super::guest::{Bitmap, Memory, XenGuest};
use super::reading::{Reading, announce, skeleton};
use super::records::Records;
use super::rounds::Frames;
use super::source_marker::Asker;
use super::suspend::{Suspendable, suspend};
use super::undo::Found;
use super::{precheck, presence, rounds, source_marker};
use crate::file_lock::FileLock;
use crate::job::{
    Control, Copied, Digests, Error, Estimate, JobOptions, MemoryLimits, Needs, PAGE_SIZE, Phase,
    Prepared, Presence, Result, Sink, Source,
};
use crate::verify;
use crate::xen::abi::DomainInfo;
use crate::xen::config;
use crate::xen::domain::Xen;
use crate::xen::priority::Priority;
use crate::xen::state::DomainFlags;
use crate::xen::store::Store;
use crate::xen::toolstack;

/// What the toolstack appends to the name of a domain that has migrated away.
pub(super) const AWAY: &str = "--migratedaway";

/// Where the lock files of domains are, named by their numbers.  A restart of the host clears it.
const LOCKS: &str = "/run/unmoved/domains";

/// A domain of this host that is to migrate.
pub(crate) struct LiveSource {
    pub(super) xen: Xen,
    pub(super) store: Arc<dyn Store>,
    priority: Arc<Priority>,
    pub(super) domid: u16,
    pub(super) name: String,
    pub(super) uuid: String,
    /// Who marks it as asked to suspend.
    pub(super) by: Asker,
    /// Made by the first step that reads the domain.
    reading: Option<Reading>,
    /// Held from the first step that has an effect.
    lock: Option<FileLock>,
    /// This run marked it as a source, and has sent nothing yet.
    is_only_marked: bool,
}

impl LiveSource {
    /// The domain with this ID, which had this name and UUID at the lookup.
    pub(crate) fn new(
        xen: Xen,
        store: Arc<dyn Store>,
        priority: Arc<Priority>,
        domid: u16,
        name: String,
        uuid: String,
    ) -> Self {
        Self {
            xen,
            store,
            priority,
            domid,
            name,
            uuid,
            by: Asker::Job,
            reading: None,
            lock: None,
            is_only_marked: false,
        }
    }

    /// The domain, unless another one has its ID by now.
    fn info(&self) -> Result<Option<DomainInfo>> {
        let info = self.xen.domain(self.domid).info()?;
        Ok(info.filter(|info| config::uuid(&info.handle) == self.uuid))
    }

    pub(super) fn info_if_there(&self) -> Result<DomainInfo> {
        self.info()?
            .filter(|info| !info.state().contains(DomainFlags::DYING))
            .ok_or_else(|| Error::Refused(format!("there is no domain {} any more", self.name)))
    }

    /// Keeps other processes of the agent away: the daemon's claims end at its process, and `unmoved direct` is
    /// another one.  Two would take each other's records of what the guest has written, and lose pages.
    ///
    /// # Errors
    /// [`Error::Refused`] if another process works on the domain.
    pub(super) fn lock(&mut self) -> Result<()> {
        if self.lock.is_none() {
            let folder = Path::new(LOCKS);
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            let failed = Error::io(format!("cannot create {LOCKS}"));
            builder.create(folder).map_err(failed)?;
            let domid = self.domid;
            let lock = FileLock::take(&folder.join(domid.to_string()), || {
                format!("another unmoved process is working on domain {domid}")
            })?;
            self.lock = Some(lock);
        }
        Ok(())
    }

    /// Marks it as a source and switches on log-dirty mode, unless that was done before.
    fn begin_reading(&mut self) -> Result<&mut Reading> {
        self.info_if_there()?;
        self.lock()?;
        if self.reading.is_none() {
            let mut guest = XenGuest::new(self.xen.clone(), self.domid)?;
            let end = guest.end_of_frames()?;
            let most = format!("/local/domain/{}/memory/static-max", self.domid);
            // Without that node, the current memory must do.
            let most = self.store.read(&most)?.and_then(|kib| kib.parse().ok());
            guest.set_most_memory(most.unwrap_or(0));
            // The run that left a marker is dead, because nobody held the lock; its job may not be.
            if !source_marker::is_source(&*self.store, self.domid, &self.uuid)? {
                source_marker::set(&*self.store, self.domid, &self.uuid)?;
                self.is_only_marked = true;
            }
            guest.record_writes(end)?;
            self.reading = Some(Reading {
                turn: Some(self.priority.take()),
                guest,
                records: None,
                end,
                frames: None,
                dirty: Bitmap::default(),
                copied: Copied::default(),
            });
        }
        self.reading
            .as_mut()
            .ok_or_else(|| Error::Xen("no reading is in progress".to_owned()))
    }

    /// Watches the domain for an estimate.
    fn watch(&mut self, control: &Control) -> Result<Estimate> {
        self.lock()?;
        if source_marker::is_asked(&*self.store, self.domid, &self.uuid)? {
            // Left by a run that died early, because the guest runs.  If the marker stayed, someone else's
            // suspend would be taken for ours.
            self.resume_here()?;
        }
        let reading = self.begin_reading()?;
        let seen = estimate::estimate(&mut reading.guest, control)?;
        (reading.frames, reading.dirty) = (Some(seen.frames), seen.dirty);
        Ok(seen.estimate)
    }
}

impl LiveSource {
    /// The domain's memory target and limit; `None` if its toolstack does not tell.
    fn limits(&self) -> Result<Option<MemoryLimits>> {
        let target = format!("/local/domain/{}/memory/target", self.domid);
        let target = self.store.read(&target)?.and_then(|kib| kib.parse().ok());
        let info = self.info_if_there()?;
        Ok(target.map(|target_kib| MemoryLimits {
            target_kib,
            most_pages: info.max_pages,
        }))
    }
}

impl Source for LiveSource {
    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn prepare(&mut self, options: &JobOptions, control: &Control) -> Result<Prepared> {
        let info = self.info_if_there()?;
        precheck::check(&info).map_err(|why| Error::Refused(format!("{} {why}", self.name)))?;
        let (name, domid, uuid) = (self.name.clone(), self.domid, self.uuid.clone());
        let version = self.xen.version();
        // The toolstack takes a while to answer.
        let (config, estimate) = thread::scope(|scope| {
            let asking = scope.spawn(|| toolstack::configuration(domid));
            let estimate = self.watch(control);
            let failed = |_| Err(Error::Xen("the thread that asks xl panicked".to_owned()));
            (asking.join().unwrap_or_else(failed), estimate)
        });
        // Watching may fail for a domain that cannot be migrated; then this gives the reason.
        let config = config?;
        config::can_move(&config).map_err(|why| Error::Refused(format!("{name} {why}")))?;
        let estimate = estimate?;
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
                storage: Vec::new(),
                xen_version: version,
                config: config::to_travel(&config),
            },
            estimate,
        })
    }

    fn copy_live(&mut self, sink: &dyn Sink, control: &Control) -> Result<()> {
        let begun = Instant::now();
        // May begin the reading; only then is it true that more than a marker is left.
        self.begin_reading()?;
        self.is_only_marked = false;
        let reading = self.begin_reading()?;
        if control.options().verifies() {
            // Allocates what it needs, or fails, before the guest is suspended for it.
            reading.guest.written_by_others()?;
        }
        let end = reading.guest.end_of_frames()?;
        if end > reading.end {
            // Writes to these frames were not tracked, so everything must be looked at again.
            reading.guest.record_writes(end)?;
            (reading.end, reading.frames) = (end, None);
        }
        let domain = reading.guest.domain();
        let mut records = Records::begin(reading.guest.xen(), domain)?;
        sink.bytes(&records.take())?;
        control.enter(Phase::Live, "copying memory; the guest runs");
        let frames = reading.find_frames(control)?;
        if sink.builds_early() {
            skeleton(&frames, sink)?;
            records.state(reading.guest.domain())?;
            sink.bytes(&records.take())?;
        }
        reading.records = Some(records);
        let total = frames.len() * PAGE_SIZE as u64;
        control.update(|figures| {
            figures.memory_total = total;
            figures.memory_page_size = PAGE_SIZE as u64;
            figures.setup_time = u64::try_from(control.elapsed().as_millis()).unwrap_or(u64::MAX);
        });
        let reason = reading.rounds(frames, sink, control, begun)?;
        control.tell(format!("stopping the guest: {}", reason.text()));
        Ok(())
    }

    fn copy_rest(&mut self, sink: &dyn Sink, control: &Control) -> Result<Copied> {
        let (domid, store, name) = (self.domid, self.store.clone(), self.name.clone());
        let (uuid, by) = (self.uuid.clone(), self.by);
        let destination_is_here_too = || source_marker::is_destination_too(&*store, domid, &name);
        let reading = self.begin_reading()?;
        let Some(records) = &mut reading.records else {
            return Err(Error::Xen("the stream has not been begun".to_owned()));
        };
        control.enter(Phase::StopAndCopy, "suspending the guest");
        if reading.guest.is_suspended()? && !source_marker::is_asked(&*store, domid, &uuid)? {
            // With our marker on it we would resume it, although the other end has a copy that is to run.
            return Err(Error::Refused(format!(
                "{name} was suspended by someone else"
            )));
        }
        source_marker::set_asked(&*store, domid, &uuid, by)?;
        let asked = Instant::now();
        suspend(domid, &reading.guest, &*store, control)?;
        let time = asked.elapsed();
        reading.copied.suspend_ms = time.as_secs_f64() * 1000.0;
        control.tell(format!("the guest suspended after {} ms", time.as_millis()));
        // Both ends may be on this host; then the destination needs the name.
        if destination_is_here_too()? {
            toolstack::rename(domid, &format!("{name}{AWAY}"))?;
        }
        let mut dirty = reading.guest.take_dirty(true)?;
        let end = reading.guest.end_of_frames()?;
        if end > reading.end {
            return Err(Error::Xen(format!(
                "{name} got memory beyond its last frame during the copy, and writes there were not tracked: \
                 try again"
            )));
        }
        // What was written before the last look and has not been sent since.
        dirty.add(&reading.dirty);
        announce(control, reading.copied.rounds + 1, dirty.len());
        let frames = Frames::Written(&dirty);
        let (sent, _) = rounds::send(&mut reading.guest, &frames, sink, control, None)?;
        records.state(reading.guest.domain())?;
        records.end()?;
        let rest = records.take();
        sink.bytes(&rest)?;
        sink.barrier()?;
        reading.copied.rounds += 1;
        reading.copied.pages += sent.pages;
        if control.options().verifies() {
            drop((dirty, std::mem::take(&mut reading.dirty)));
            control.enter(
                Phase::Verifying,
                "verifying: computing digests of all memory",
            );
            let chunks = verify::memory(&mut reading.guest, control)?;
            sink.digests(Digests::Memory(&chunks))?;
            sink.digests(Digests::State(verify::state(&rest)?))?;
        }
        // A long wait for the destination may follow.
        reading.turn = None;
        let mut copied = reading.copied;
        copied.limits = self.limits()?;
        Ok(copied)
    }

    fn resume_here(&mut self) -> Result<()> {
        self.lock()?;
        if let Some(reading) = &mut self.reading {
            // A long wait for the guest may follow.
            reading.turn = None;
        }
        self.refuse_if_suspended_by_another()?;
        let info = self.settled()?;
        let guest = XenGuest::new(self.xen.clone(), self.domid)?;
        let (domid, store) = (self.domid, &*self.store);
        let found = Found {
            is_recorded: self.reading.is_some(),
            is_source: source_marker::is_source(store, domid, &self.uuid)?,
            is_asked: source_marker::is_asked(store, domid, &self.uuid)?,
            is_suspended: info.state().contains(DomainFlags::SHUTDOWN) && guest.is_suspended()?,
        };
        if let Some(mut reading) = self.reading.take() {
            reading.guest.stop_recording()?;
        }
        let undo = found.undo(&self.name)?;
        if undo.log_dirty {
            guest.switch_off()?;
        }
        let name = store.read(&format!("/local/domain/{domid}/name"))?;
        if undo.name && name.is_some_and(|name| name == format!("{}{AWAY}", self.name)) {
            toolstack::rename(domid, &self.name)?;
        }
        if undo.suspend {
            // Whoever reads it now relies on its being suspended.
            guest.nobody_else_reads()?;
            guest.domain().resume()?;
        }
        // Also for a running guest: what resumed it may not have got that far.
        if undo.suspend || found.is_asked {
            store.resume(domid)?;
        }
        if undo.suspend && self.presence()? != Presence::Running {
            let why = "is not running after the resume: it is paused or has ended";
            return Err(Error::Xen(format!("{} {why}", self.name)));
        }
        source_marker::clear(&*self.store, domid)?;
        // From here on the marker may be another process's.
        self.is_only_marked = false;
        self.lock = None;
        Ok(())
    }

    fn destroy(&mut self) -> Result<()> {
        self.reading = None;
        let Some(info) = self.info()? else {
            return Ok(());
        };
        if presence(info.state()) == Presence::Running {
            // This is not what was copied: it has been started again since.
            return Err(Error::Xen(format!(
                "{} runs here: not destroyed",
                self.name
            )));
        }
        toolstack::destroy(self.domid)?;
        if self
            .info()?
            .is_some_and(|info| !info.state().contains(DomainFlags::DYING))
        {
            return Err(Error::Xen(format!("{} is still here", self.name)));
        }
        source_marker::clear(&*self.store, self.domid)
    }

    fn presence(&mut self) -> Result<Presence> {
        Ok(self
            .info()?
            .map_or(Presence::Absent, |info| presence(info.state())))
    }
}

impl Drop for LiveSource {
    fn drop(&mut self) {
        self.reading = None;
        // It was only looked at, so nobody has to tell it from a copy.
        if self.is_only_marked
            && let Err(error) = source_marker::clear(&*self.store, self.domid)
        {
            log::debug!("{error}");
        }
    }
}
