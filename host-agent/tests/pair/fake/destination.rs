//! A guest in memory that comes.

use std::sync::Arc;

use unmoved::job::{Batch, Control, Destination, Error, Needs, PAGE_SIZE, Presence, Result, Sink};

use super::Fake;

pub(super) struct FakeDestination {
    pub(super) host: Arc<Fake>,
    pub(super) needs: Option<Needs>,
}

struct FakeSink {
    host: Arc<Fake>,
    uuid: String,
}

impl FakeDestination {
    fn needs(&self) -> Result<&Needs> {
        let missing = || Error::Refused("nothing is reserved".to_owned());
        self.needs.as_ref().ok_or_else(missing)
    }
}

impl Destination for FakeDestination {
    fn reserve(&mut self, _: &str, needs: &Needs) -> Result<()> {
        let name = &needs.destination_name;
        let state = self.host.state.lock();
        if state.domains.values().any(|domain| domain.name == *name) {
            return Err(Error::Refused(format!("there is a {name} already")));
        }
        drop(state);
        self.needs = Some(needs.clone());
        Ok(())
    }

    fn receive(&mut self, _: &Control) -> Result<Arc<dyn Sink>> {
        let needs = self.needs()?;
        let incoming = format!("{}--incoming", needs.destination_name);
        self.host.put(&incoming, &needs.uuid, Presence::Partial);
        Ok(Arc::new(FakeSink {
            host: self.host.clone(),
            uuid: needs.uuid.clone(),
        }))
    }

    fn finish(&mut self) -> Result<()> {
        while self.host.state.lock().holds_build {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        if self.host.state.lock().fails_to_build {
            return Err(Error::Xen("xl: no more loop devices".to_owned()));
        }
        self.host.set(&self.needs()?.uuid, Presence::Paused);
        Ok(())
    }

    fn unpause(&mut self, leave_paused: bool) -> Result<()> {
        let needs = self.needs()?;
        let mut state = self.host.state.lock();
        let found = state.domains.get_mut(&needs.uuid);
        let domain = found.ok_or_else(|| Error::Xen("there is no such domain".to_owned()))?;
        if !leave_paused {
            domain.presence = Presence::Running;
        }
        domain.name.clone_from(&needs.destination_name);
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
        Ok(())
    }

    fn presence(&mut self) -> Result<Presence> {
        Ok(self.host.presence(&self.needs()?.uuid))
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
        let domain = state.domains.get_mut(&self.uuid).ok_or_else(missing)?;
        for (word, page) in batch.words.iter().zip(batch.data.chunks(PAGE_SIZE)) {
            domain.memory.insert(*word, page.to_vec());
        }
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}
