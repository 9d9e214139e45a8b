//! A guest in memory that comes.

use std::sync::Arc;

use unmoved::job::{
    Batch, Control, Destination, Digests, Error, MemoryLimits, Needs, PAGE_SIZE, Presence,
    Reservations, Result, Sink, Stop,
};

use super::{Fake, LIMITS, chunks};

pub(super) struct FakeDestination {
    pub(super) host: Arc<Fake>,
    pub(super) reservations: Arc<Reservations>,
    pub(super) job: String,
    pub(super) has_reserved: bool,
    pub(super) needs: Option<Needs>,
    /// Of the job that receives.
    pub(super) stop: Option<Stop>,
}

struct FakeSink {
    host: Arc<Fake>,
    uuid: String,
}

impl Fake {
    fn compare(&self, uuid: &str) -> Result<()> {
        let mut state = self.state.lock();
        let Some(told) = state.told.get(uuid) else {
            return Ok(());
        };
        let here = chunks(&state.domains[uuid].memory);
        let differ = told.iter().filter(|chunk| !here.contains(chunk)).count();
        if differ > 0 {
            let all = told.len();
            return Err(Error::Xen(format!(
                "{differ} of {all} MiB of memory differ"
            )));
        }
        state.compared.insert(uuid.to_owned());
        Ok(())
    }
}

impl FakeDestination {
    fn needs(&self) -> Result<&Needs> {
        let missing = || Error::Refused("nothing is reserved".to_owned());
        self.needs.as_ref().ok_or_else(missing)
    }
}

impl Destination for FakeDestination {
    fn reserve(&mut self, job: &str, needs: &Needs) -> Result<()> {
        let name = &needs.destination_name;
        let state = self.host.state.lock();
        if state.domains.values().any(|domain| domain.name == *name) {
            return Err(Error::Refused(format!("there is a {name} already")));
        }
        self.reservations.take(job, needs, &state.free_memory())?;
        drop(state);
        job.clone_into(&mut self.job);
        self.has_reserved = true;
        self.needs = Some(needs.clone());
        Ok(())
    }

    fn receive(&mut self, control: &Control) -> Result<Arc<dyn Sink>> {
        self.stop = Some(control.stop());
        let needs = self.needs()?;
        let incoming = format!("{}--incoming", needs.destination_name);
        self.host.put(&incoming, &needs.uuid, Presence::Partial);
        Ok(Arc::new(FakeSink {
            host: self.host.clone(),
            uuid: needs.uuid.clone(),
        }))
    }

    fn finish(&mut self, limits: Option<MemoryLimits>) -> Result<()> {
        assert_eq!(limits, Some(LIMITS), "they come along");
        while self.host.state.lock().holds_build {
            // As the real one does: it waits for its toolstack, and gives up when the job does.
            let heeds = !self.host.state.lock().is_deaf;
            if heeds && self.stop.as_ref().is_some_and(Stop::is_asked) {
                return Err(Error::Aborted);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        if self.host.state.lock().fails_to_build {
            return Err(Error::Xen("xl: no more loop devices".to_owned()));
        }
        let uuid = &self.needs()?.uuid;
        self.host.set(uuid, Presence::Paused);
        self.host.compare(uuid)?;
        self.reservations.built(&self.job);
        Ok(())
    }

    fn unpause(&mut self, leave_paused: bool) -> Result<()> {
        let needs = self.needs()?;
        while self.host.state.lock().holds_unpause {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let mut state = self.host.state.lock();
        let found = state.domains.get_mut(&needs.uuid);
        let domain = found.ok_or_else(|| Error::Xen("there is no such domain".to_owned()))?;
        if !leave_paused {
            domain.presence = Presence::Running;
        }
        domain.name.clone_from(&needs.destination_name);
        self.reservations.release(&self.job);
        Ok(())
    }

    fn cancel(&self) {
        self.host.state.lock().is_stuck = false;
    }

    fn discard(&mut self) -> Result<()> {
        let Some(needs) = &self.needs else {
            return Ok(());
        };
        let mut state = self.host.state.lock();
        state.works()?;
        let presence = state.domains.get(&needs.uuid).map(|domain| domain.presence);
        assert_ne!(
            presence,
            Some(Presence::Running),
            "a running copy is thrown away"
        );
        state.domains.remove(&needs.uuid);
        state.told.remove(&needs.uuid);
        self.reservations.release(&self.job);
        Ok(())
    }

    fn presence(&mut self) -> Result<Presence> {
        while self.host.state.lock().hides {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(self.host.presence(&self.needs()?.uuid))
    }
}

impl Drop for FakeDestination {
    fn drop(&mut self) {
        if self.has_reserved {
            self.reservations.release(&self.job);
        }
    }
}

impl Sink for FakeSink {
    fn bytes(&self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn pages(&self, batch: &mut Batch) -> Result<()> {
        while self.host.state.lock().is_stuck {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let mut state = self.host.state.lock();
        if state.fails_to_fill {
            return Err(Error::Xen("xl: console tty: timed out".to_owned()));
        }
        let missing = || Error::Xen("the domain is gone".to_owned());
        let garbled = state.garbled.clone();
        let domain = state.domains.get_mut(&self.uuid).ok_or_else(missing)?;
        for (word, page) in batch.words.iter().zip(batch.data.chunks(PAGE_SIZE)) {
            let mut page = page.to_vec();
            if let Some(byte) = garbled.get(word) {
                page[0] = *byte;
            }
            domain.memory.insert(*word, page);
        }
        Ok(())
    }

    fn digests(&self, digests: Digests<'_>) -> Result<()> {
        if let Digests::Memory(chunks) = digests {
            let mut state = self.host.state.lock();
            let told = state.told.entry(self.uuid.clone()).or_default();
            told.extend_from_slice(chunks);
        }
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}
