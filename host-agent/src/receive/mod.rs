//! A domain's destination: the stock toolstack builds it, fed with the stream that comes from its source.
//!
//! | file | is |
//! |---|---|
//! | `incoming` | the toolstack at work, and where each part of the stream goes |
//! | `feed` | the pipe into it, which can be given up |
//! | `canonical` | the stream as Xen's own tools write it |
//! | `fill` | memory and state straight into the domain |
//! | `handshake` | the words that `xl` says before and after a stream |
//! | `reservations` | what other jobs on this host may not touch |

pub(crate) mod canonical;
mod complaints;
mod feed;
mod fill;
pub(crate) mod handshake;
mod incoming;
mod reservations;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use self::incoming::Incoming;
pub(crate) use self::reservations::Reservations;
use crate::job::{Control, Destination, Error, Needs, Presence, Result, Sink};
use crate::save::{INCOMING, marker, presence};
use crate::xen::abi::DomainInfo;
use crate::xen::config;
use crate::xen::domain::{PAGE, Xen};
use crate::xen::room::Room;
use crate::xen::state::DomainFlags;
use crate::xen::store::Store;
use crate::xen::toolstack;

/// A place for one domain on this host.
pub(crate) struct Receiver {
    xen: Xen,
    store: Arc<dyn Store>,
    reservations: Arc<Reservations>,
    room: Arc<Room>,
    job: Option<String>,
    needs: Needs,
    incoming: Option<Arc<Incoming>>,
}

impl Receiver {
    /// Nothing is reserved yet.
    pub(crate) fn new(
        xen: Xen,
        store: Arc<dyn Store>,
        reservations: Arc<Reservations>,
        room: Arc<Room>,
    ) -> Self {
        Self {
            xen,
            store,
            reservations,
            room,
            job: None,
            needs: Needs::default(),
            incoming: None,
        }
    }

    /// Takes up the place of a job that another run of the agent began.  What another job has been promised
    /// since stays promised: this one only ends what it has begun.
    pub(crate) fn again(mut self, job: &str, needs: &Needs) -> Self {
        self.needs = needs.clone();
        let none = BTreeMap::new();
        match self.reservations.take(job, needs, u64::MAX, &none) {
            Ok(()) => self.job = Some(job.to_owned()),
            Err(error) => log::warn!("job {job}: {error}"),
        }
        if matches!(self.presence(), Ok(Presence::Paused | Presence::Running)) {
            self.reservations.built(job);
        }
        self
    }

    /// What the domains have that are being built now, by UUID.
    fn being_built(&self) -> Result<BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        for domid in self.store.list("/local/domain")? {
            let name = self.store.read(&format!("/local/domain/{domid}/name"))?;
            let is_coming = name.is_some_and(|name| name.ends_with(INCOMING));
            if let (Ok(number), true) = (domid.parse(), is_coming)
                && let Some(info) = self.xen.domain(number).info()?
            {
                all.insert(config::uuid(&info.handle), info.tot_pages * PAGE);
            }
        }
        Ok(all)
    }

    /// The copy here.
    fn find(&self) -> Result<Option<(u16, DomainInfo)>> {
        self.find_copy(&self.needs.uuid)
    }

    /// The domain of that UUID which is not the source.
    fn find_copy(&self, uuid: &str) -> Result<Option<(u16, DomainInfo)>> {
        for domid in self.store.list("/local/domain")? {
            let Ok(number) = domid.parse::<u16>() else {
                continue;
            };
            if number == 0 || marker::is_source(&*self.store, number, uuid)? {
                continue;
            }
            let info = self.xen.domain(number).info()?;
            let ours = info.filter(|info| config::uuid(&info.handle) == uuid);
            if let Some(info) = ours {
                return Ok(Some((number, info)));
            }
        }
        Ok(None)
    }

    fn name(&self, domid: u16) -> Result<String> {
        let name = self.store.read(&format!("/local/domain/{domid}/name"))?;
        Ok(name.unwrap_or_default())
    }

    fn check_names(&self, needs: &Needs) -> Result<()> {
        let incoming = format!("{}{INCOMING}", needs.destination_name);
        for domid in self.store.list("/local/domain")? {
            let name = self.store.read(&format!("/local/domain/{domid}/name"))?;
            let name = name.unwrap_or_default();
            let is_source = match domid.parse() {
                Ok(domid) => marker::is_source(&*self.store, domid, &needs.uuid)?,
                Err(_) => false,
            };
            if !is_source && (name == needs.destination_name || name == incoming) {
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
        self.check_names(needs)?;
        // By its UUID this session would find it, and in the end unpause or destroy what is not its own.
        if let Some((domid, _)) = self.find_copy(&needs.uuid)? {
            return Err(Error::Refused(format!(
                "a domain with the UUID {} exists on the destination (number {domid})",
                needs.uuid
            )));
        }
        Self::check_disks(needs)?;
        // Before what is free, lest what a domain gets meanwhile is promised to this one.
        let has = self.being_built()?;
        self.reservations
            .take(job, needs, self.room.bytes()?, &has)?;
        self.job = Some(job.to_owned());
        self.needs = needs.clone();
        Ok(())
    }

    fn receive(&mut self, _: &Control) -> Result<Arc<dyn Sink>> {
        let config = config::arrived(&self.needs.config)?;
        let config = config::named(config, &self.needs.destination_name);
        let incoming = Arc::new(Incoming::start(
            self.xen.clone(),
            self.store.clone(),
            &config,
            &self.needs.uuid,
        )?);
        self.incoming = Some(incoming.clone());
        Ok(incoming)
    }

    fn finish(&mut self) -> Result<()> {
        let incoming = self.incoming.as_ref();
        let incoming =
            incoming.ok_or_else(|| Error::Xen("nothing has been received".to_owned()))?;
        incoming.finish()?;
        if let Some(job) = &self.job {
            self.reservations.built(job);
        }
        log::debug!("xl said: {}", incoming.said());
        Ok(())
    }

    fn unpause(&mut self, leave_paused: bool) -> Result<()> {
        let (domid, info) = self.find()?.ok_or_else(|| {
            Error::Xen(format!("there is no {} here", self.needs.destination_name))
        })?;
        if info.state().contains(DomainFlags::PAUSED) && !leave_paused {
            // What the toolstack does for domains of this type, without starting it.
            self.xen.domain(domid).unpause()?;
            let info = self.xen.domain(domid).live_info()?;
            if info.state().contains(DomainFlags::PAUSED) {
                return Err(Error::Xen(format!(
                    "{} is paused by somebody else too",
                    self.needs.destination_name
                )));
            }
        }
        self.release();
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
        if let Some((domid, info)) = self.find()?
            && !info.state().contains(DomainFlags::DYING)
        {
            if presence(info.state()) == Presence::Running {
                return Err(Error::Xen(format!(
                    "{} runs here (domain {domid}): it is not thrown away",
                    self.needs.destination_name
                )));
            }
            toolstack::destroy(domid)?;
        }
        self.release();
        Ok(())
    }

    fn presence(&mut self) -> Result<Presence> {
        let Some((domid, info)) = self.find()? else {
            return Ok(Presence::Absent);
        };
        if self.name(domid)? == format!("{}{INCOMING}", self.needs.destination_name) {
            return Ok(Presence::Partial);
        }
        Ok(presence(info.state()))
    }
}

impl Receiver {
    fn release(&mut self) {
        if let Some(job) = self.job.take() {
            self.reservations.release(&job);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.release();
    }
}
