//! A domain's destination: the stock toolstack builds it, fed with the stream that comes from its source.
//!
//! | file | is |
//! |---|---|
//! | `incoming` | the toolstack at work, and where each part of the stream goes |
//! | `feed` | the pipe into it, which can be given up |
//! | `canonical` | the stream as Xen's own tools write it |
//! | `fill` | memory and state straight into the domain |
//! | `copy_marker` | which domain is whose copy |
//! | `names` | the guest's own name for a copy that was handed over |
//! | `handshake` | the words that `xl` says before and after a stream |

pub(crate) mod canonical;
mod complaints;
mod copy_marker;
pub(crate) mod feed;
mod fill;
pub(crate) mod handshake;
mod incoming;
mod names;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use self::incoming::Incoming;
use crate::job::{
    Control, Destination, Error, FreeMemory, MemoryLimits, Needs, Presence, Reservations, Result,
    Sink,
};
use crate::save::{ARRIVED, INCOMING, is_coming, names_of, presence, source_marker};
use crate::verify::Told;
use crate::xen::abi::DomainInfo;
use crate::xen::config;
use crate::xen::domain::{PAGE, Xen};
use crate::xen::memory::HostMemory;
use crate::xen::priority::{Priority, Turn};
use crate::xen::state::DomainFlags;
use crate::xen::store::Store;
use crate::xen::toolstack;

/// A destination for one domain on this host.
pub(crate) struct Receiver {
    xen: Xen,
    store: Arc<dyn Store>,
    reservations: Arc<Reservations>,
    memory: Arc<HostMemory>,
    priority: Arc<Priority>,
    /// The job that the copy belongs to.
    job: String,
    /// It has reserved what it needs.
    has_reserved: bool,
    /// It has been unpaused; if it is still paused, someone else paused it.
    is_unpaused: bool,
    needs: Needs,
    /// The limits of its memory, by its configuration.
    limits: Option<MemoryLimits>,
    incoming: Option<Arc<Incoming>>,
    /// Held from its first byte to its last.
    turn: Option<Turn>,
}

impl Receiver {
    /// Nothing is reserved yet.
    pub(crate) fn new(
        xen: Xen,
        store: Arc<dyn Store>,
        reservations: Arc<Reservations>,
        memory: Arc<HostMemory>,
        priority: Arc<Priority>,
    ) -> Self {
        Self {
            xen,
            store,
            reservations,
            memory,
            priority,
            job: String::new(),
            has_reserved: false,
            is_unpaused: false,
            needs: Needs::default(),
            limits: None,
            incoming: None,
            turn: None,
        }
    }

    /// Recovers the destination of a job that another run of the agent began.
    pub(crate) fn recover(mut self, job: &str, needs: &Needs) -> Self {
        self.needs = needs.clone();
        job.clone_into(&mut self.job);
        self
    }

    /// Measures the host's free memory.
    fn free_memory(&self) -> Result<FreeMemory> {
        // In this order: what a domain gets in between must not be given away a second time.
        let being_built = self.being_built()?;
        Ok(FreeMemory {
            bytes: self.memory.free_bytes()?,
            being_built,
        })
    }

    /// Memory of the domains that are being built, by UUID.
    fn being_built(&self) -> Result<BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        for domid in self.store.list("/local/domain")? {
            let name = self.store.read(&format!("/local/domain/{domid}/name"))?;
            let is_coming = name.is_some_and(|name| is_coming(&name));
            if let (Ok(number), true) = (domid.parse(), is_coming)
                && let Some(info) = self.xen.domain(number).info()?
            {
                all.insert(config::uuid(&info.handle), info.tot_pages * PAGE);
            }
        }
        Ok(all)
    }

    /// The copy of this job, whichever run of the agent made it.
    fn find(&self) -> Result<Option<(u16, DomainInfo)>> {
        let uuid = &self.needs.uuid;
        for (domid, info) in self.of_uuid(uuid)? {
            if self.is_coming(domid)? || copy_marker::is_set(&*self.store, domid, uuid, &self.job)?
            {
                return Ok(Some((domid, info)));
            }
        }
        Ok(None)
    }

    /// The domains with that UUID, except the source.
    fn of_uuid(&self, uuid: &str) -> Result<Vec<(u16, DomainInfo)>> {
        let mut found = Vec::new();
        for domid in self.store.list("/local/domain")? {
            let Ok(domid @ 1..) = domid.parse() else {
                continue;
            };
            if source_marker::is_source(&*self.store, domid, uuid)? {
                continue;
            }
            let info = self.xen.domain(domid).info()?;
            let same = info.filter(|info| config::uuid(&info.handle) == uuid);
            found.extend(same.map(|info| (domid, info)));
        }
        Ok(found)
    }

    /// Whether the domain has the name of an arriving domain.
    fn is_coming(&self, domid: u16) -> Result<bool> {
        let name = self.store.read(&format!("/local/domain/{domid}/name"))?;
        Ok(name.is_some_and(|name| name == format!("{}{INCOMING}", self.arrived())))
    }

    /// The copy's name while it is complete and not handed over.
    fn arrived(&self) -> String {
        format!("{}{ARRIVED}", self.needs.destination_name)
    }

    /// Sets the domain's memory target and limit.  A peer cannot exceed what was reserved.
    fn limit(&self, domid: u16, limits: MemoryLimits) -> Result<()> {
        let reserved = self.needs.memory_bytes;
        let pages = limits.most_pages.min(reserved / PAGE);
        self.xen.domain(domid).set_most_pages(pages)?;
        let target = limits.target_kib.min(reserved >> 10);
        let node = format!("/local/domain/{domid}/memory/target");
        self.store.write(&node, &target.to_string())
    }

    /// Gives the guest its own name.  It may run already, and the other name does no harm.
    fn name(&self, domid: u16) {
        let (name, uuid) = (&self.needs.destination_name, &self.needs.uuid);
        if let Err(error) = names::rename(&*self.store, domid, uuid, &self.arrived(), name) {
            log::error!("cannot rename domain {domid} to {name} (try `xl rename`): {error}");
        }
    }

    fn check_names(&self, needs: &Needs) -> Result<()> {
        let names = names_of(&needs.destination_name);
        for domid in self.store.list("/local/domain")? {
            let name = self.store.read(&format!("/local/domain/{domid}/name"))?;
            let name = name.unwrap_or_default();
            let is_source = match domid.parse() {
                Ok(domid) => source_marker::is_source(&*self.store, domid, &needs.uuid)?,
                Err(_) => false,
            };
            if !is_source && names.contains(&name) {
                return Err(Error::Refused(format!(
                    "a domain {name} exists on the destination (number {domid})"
                )));
            }
        }
        Ok(())
    }

    fn check_disks(needs: &Needs) -> Result<()> {
        for disk in needs.disks.iter().filter(|disk| disk.starts_with('/')) {
            if !Path::new(disk).exists() {
                return Err(Error::Refused(format!(
                    "the destination has no disk {disk}"
                )));
            }
        }
        Ok(())
    }
}

impl Destination for Receiver {
    fn reserve(&mut self, job: &str, needs: &Needs) -> Result<()> {
        let config = config::arrived(&needs.config)?;
        config::can_move(&config).map_err(|why| Error::Refused(format!("{} {why}", needs.name)))?;
        config::agrees(&config, &needs.uuid, &needs.disks).map_err(Error::Refused)?;
        self.check_names(needs)?;
        // Either the same guest, which would run twice, or one that pretends to be it.
        if let Some((domid, _)) = self.of_uuid(&needs.uuid)?.first() {
            return Err(Error::Refused(format!(
                "a domain with the UUID {} exists on the destination (number {domid})",
                needs.uuid
            )));
        }
        Self::check_disks(needs)?;
        self.reservations.take(job, needs, &self.free_memory()?)?;
        job.clone_into(&mut self.job);
        self.has_reserved = true;
        self.needs = needs.clone();
        Ok(())
    }

    fn receive(&mut self, control: &Control) -> Result<Arc<dyn Sink>> {
        let config = config::arrived(&self.needs.config)?;
        let config = config::named(config, &self.arrived());
        let (config, limits) = config::with_room(config);
        self.limits = limits;
        self.turn = Some(self.priority.take());
        let incoming = Arc::new(Incoming::start(
            self.xen.clone(),
            self.store.clone(),
            &config,
            &self.needs.uuid,
            &self.job,
            Told::of(self.needs.memory_bytes),
            control.stop(),
        )?);
        self.incoming = Some(incoming.clone());
        Ok(incoming)
    }

    fn finish(&mut self, limits: Option<MemoryLimits>) -> Result<()> {
        let incoming = self.incoming.as_ref();
        let incoming =
            incoming.ok_or_else(|| Error::Xen("nothing has been received".to_owned()))?;
        let domid = incoming.finish()?;
        log::debug!("xl said: {}", incoming.said());
        if let Some(limits) = limits.or(self.limits) {
            self.limit(domid, limits)?;
        }
        // A long wait for the source may follow.
        self.turn = None;
        self.reservations.built(&self.job);
        Ok(())
    }

    fn unpause(&mut self, leave_paused: bool) -> Result<()> {
        let (domid, info) = self.find()?.ok_or_else(|| {
            Error::Xen(format!("there is no {} here", self.needs.destination_name))
        })?;
        if info.state().contains(DomainFlags::PAUSED) && !leave_paused {
            // Does what the toolstack does for domains of this type, without starting it.
            if !self.is_unpaused {
                self.xen.domain(domid).unpause()?;
                self.is_unpaused = true;
            }
            let info = self.xen.domain(domid).live_info()?;
            if info.state().contains(DomainFlags::PAUSED) {
                return Err(Error::Xen(format!(
                    "{} is also paused by someone else",
                    self.needs.destination_name
                )));
            }
        }
        self.name(domid);
        self.turn = None;
        self.reservations.release(&self.job);
        Ok(())
    }

    fn cancel(&self) {
        if let Some(incoming) = &self.incoming {
            incoming.cancel();
        }
    }

    fn discard(&mut self) -> Result<()> {
        if let Some(incoming) = self.incoming.take() {
            incoming.cancel();
        }
        self.turn = None;
        if let Some((domid, info)) = self.find()?
            && !info.state().contains(DomainFlags::DYING)
        {
            if presence(info.state()) == Presence::Running {
                return Err(Error::Xen(format!(
                    "{} runs here (domain {domid}): not discarded",
                    self.needs.destination_name
                )));
            }
            toolstack::destroy(domid)?;
        }
        self.reservations.release(&self.job);
        Ok(())
    }

    fn presence(&mut self) -> Result<Presence> {
        let Some((domid, info)) = self.find()? else {
            return Ok(Presence::Absent);
        };
        if self.is_coming(domid)? {
            return Ok(Presence::Partial);
        }
        Ok(presence(info.state()))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Whoever restored a reservation of an earlier run releases it.
        if self.has_reserved {
            self.reservations.release(&self.job);
        }
    }
}
