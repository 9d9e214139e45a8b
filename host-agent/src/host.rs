//! This host as the job's [`Host`]: its domains as sources, and destinations for new ones.

use std::sync::Arc;

use crate::capabilities::STREAM;
use crate::job::{
    Destination, DomainEntry, Error, Host, HostFacts, Needs, Reservations, Result, Source,
    Standalone,
};
use crate::receive::Receiver;
use crate::save::LiveSource;
use crate::storage::Storage;
use crate::xen::abi::DomainInfo;
use crate::xen::config;
use crate::xen::domain::{PAGE, Xen};
use crate::xen::memory::HostMemory;
use crate::xen::priority::Priority;
use crate::xen::state::{DomainFlags, SHUTDOWN_CRASH};
use crate::xen::store::{Store, XenStore};
use crate::xen::toolstack;

/// A host with Xen, seen from its control domain.
pub struct XenHost {
    xen: Xen,
    store: Arc<dyn Store>,
    reservations: Arc<Reservations>,
    memory: Arc<HostMemory>,
    priority: Arc<Priority>,
}

impl XenHost {
    /// Opens Xen's devices and connects to xenstored.
    ///
    /// `copying_weight` is as in the [configuration](crate::config::Config::copying_weight).  It is 0 for
    /// everyone but the daemon, because only the daemon restores the weight.
    ///
    /// # Errors
    /// [`Error::Refused`] if this is not a control domain, or its release of Xen is not supported.
    pub fn open(copying_weight: u16) -> Result<Self> {
        let xen = Xen::open()?;
        Ok(Self {
            memory: Arc::new(HostMemory::new(xen.clone())),
            priority: Priority::new(xen.clone(), copying_weight),
            xen,
            store: Arc::new(XenStore::open()?),
            reservations: Arc::default(),
        })
    }

    /// Restores the host's settings that this run of the daemon, or one that was killed, has changed.  Errors
    /// are only logged.  For when nothing is being copied.
    pub fn tidy(&self) {
        self.priority.tidy();
    }

    /// All domains except domain 0: name, ID, and Xen's information.
    fn all(&self) -> Result<Vec<(String, u16, DomainInfo)>> {
        let mut all = Vec::new();
        for domid in self.store.list("/local/domain")? {
            let Ok(domid @ 1..) = domid.parse() else {
                continue;
            };
            let name = self.store.read(&format!("/local/domain/{domid}/name"))?;
            if let (Some(name), Some(info)) = (name, self.xen.domain(domid).info()?) {
                all.push((name, domid, info));
            }
        }
        all.sort_by_key(|(_, domid, _)| *domid);
        Ok(all)
    }

    fn live(&self, domid: u16, name: String, uuid: String) -> LiveSource {
        let (store, priority) = (self.store.clone(), self.priority.clone());
        LiveSource::new(self.xen.clone(), store, priority, domid, name, uuid)
    }

    /// The domain of this name or ID, and how many domains of this host have its UUID.
    fn find(&self, domain: &str) -> Result<(LiveSource, usize)> {
        let all = self.all()?;
        // Names come before IDs, as with xl.
        let found = all
            .iter()
            .find(|(name, _, _)| name == domain)
            .or_else(|| all.iter().find(|(_, domid, _)| domid.to_string() == domain));
        let (name, domid, info) =
            found.ok_or_else(|| Error::Refused(format!("there is no domain {domain} here")))?;
        let same = all
            .iter()
            .filter(|(_, _, other)| other.handle == info.handle);
        let live = self.live(*domid, name.clone(), config::uuid(&info.handle));
        Ok((live, same.count()))
    }

    /// Resumes a guest that a killed save or send left suspended; returns which of the two it was.
    /// `is_vouched`: the operator says that no other copy runs.
    ///
    /// # Errors
    /// [`Error::Refused`] if something else suspended it, another process works on it, or a copy of it runs
    /// or may run.
    pub fn resume(&self, domain: &str, is_vouched: bool) -> Result<Standalone> {
        let (mut live, same) = self.find(domain)?;
        live.resume_left(same > 1, is_vouched)
    }

    fn receiver(&self) -> Receiver {
        let (reservations, memory) = (self.reservations.clone(), self.memory.clone());
        let (store, priority) = (self.store.clone(), self.priority.clone());
        Receiver::new(self.xen.clone(), store, reservations, memory, priority)
    }
}

impl Host for XenHost {
    fn facts(&self) -> Result<HostFacts> {
        let info = self.xen.physinfo().map_err(|error| {
            Error::Xen(format!(
                "cannot get information about the host from Xen: {error}"
            ))
        })?;
        Ok(HostFacts {
            xen_version: self.xen.version(),
            free_memory_bytes: self.memory.free_bytes()?,
            cpus: info.nr_cpus,
            stream_version: STREAM,
        })
    }

    fn storage(&self, disk: &str) -> Storage {
        Storage::of(disk)
    }

    fn problems(&self) -> Vec<String> {
        let answer = toolstack::xl(&["uptime"]);
        let mut problems: Vec<_> = answer.err().iter().map(Error::to_string).collect();
        for (name, domid, info) in self.all().unwrap_or_default() {
            let mut live = self.live(domid, name, config::uuid(&info.handle));
            problems.extend(live.is_left().unwrap_or_default());
        }
        problems
    }

    fn domains(&self) -> Result<Vec<DomainEntry>> {
        let entry = |(name, domid, info): (String, u16, DomainInfo)| DomainEntry {
            name,
            domid: u32::from(domid),
            uuid: config::uuid(&info.handle),
            memory_bytes: info.tot_pages * PAGE,
            vcpus: info.nr_online_vcpus,
            state: state(info.state()).to_owned(),
        };
        Ok(self.all()?.into_iter().map(entry).collect())
    }

    fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    fn source(&self, domain: &str) -> Result<Box<dyn Source>> {
        Ok(Box::new(self.find(domain)?.0))
    }

    fn standalone_source(&self, domain: &str, operation: Standalone) -> Result<Box<dyn Source>> {
        Ok(Box::new(self.find(domain)?.0.standalone(operation)))
    }

    fn destination(&self) -> Result<Box<dyn Destination>> {
        Ok(Box::new(self.receiver()))
    }

    fn find_source(&self, needs: &Needs) -> Result<Box<dyn Source>> {
        let domid = u16::try_from(needs.source_domid)
            .map_err(|_| Error::Refused(format!("no domain has number {}", needs.source_domid)))?;
        let (name, uuid) = (needs.name.clone(), needs.uuid.clone());
        Ok(Box::new(self.live(domid, name, uuid)))
    }

    fn find_destination(&self, job: &str, needs: &Needs) -> Result<Box<dyn Destination>> {
        Ok(Box::new(self.receiver().recover(job, needs)))
    }
}

fn state(domain: DomainFlags) -> &'static str {
    if domain.contains(DomainFlags::DYING) {
        return "dying";
    }
    match domain.shutdown_reason() {
        Some(SHUTDOWN_CRASH) => "crashed",
        Some(_) => "shutdown",
        None if domain.contains(DomainFlags::PAUSED) => "paused",
        None if domain.contains(DomainFlags::BLOCKED) => "blocked",
        None => "running",
    }
}

#[cfg(test)]
mod tests {
    use super::state;
    use crate::xen::state::DomainFlags as Flags;

    #[test]
    fn states_have_names() {
        let reason = |reason: u32| Flags::from_bits_retain(reason << 16) | Flags::SHUTDOWN;
        assert_eq!(state(Flags::HVM_GUEST), "running");
        assert_eq!(state(Flags::PAUSED | Flags::BLOCKED), "paused");
        assert_eq!(state(Flags::BLOCKED), "blocked");
        assert_eq!(state(reason(2)), "shutdown");
        assert_eq!(state(reason(3)), "crashed");
        assert_eq!(state(Flags::DYING | Flags::SHUTDOWN), "dying");
    }
}
