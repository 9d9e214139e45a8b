//! A guest in memory as a source.

use std::sync::Arc;

use event_listener::Listener;
use unmoved::job::{
    Batch, Control, Copied, Digests, Error, Estimate, JobOptions, Needs, Phase, Prepared, Presence,
    Result, Sink, Source, StateDigests,
};

use super::LIMITS;
use super::{Fake, PAGES, chunks};

pub(super) struct FakeSource {
    pub(super) host: Arc<Fake>,
    pub(super) needs: Needs,
}

impl FakeSource {
    fn send(&self, sink: &dyn Sink, control: &Control) -> Result<()> {
        let memory = self.host.memory(&self.needs.uuid);
        let mut batch = Batch::default();
        for run in memory.into_iter().collect::<Vec<_>>().chunks(64) {
            control.check()?;
            batch.clear();
            for (pfn, page) in run {
                batch.words.push(*pfn);
                batch.data.extend(page);
            }
            sink.pages(&mut batch)?;
        }
        sink.barrier()
    }
}

impl Source for FakeSource {
    fn uuid(&self) -> &str {
        &self.needs.uuid
    }

    fn prepare(&mut self, _: &JobOptions, _: &Control) -> Result<Prepared> {
        Ok(Prepared {
            needs: self.needs.clone(),
            estimate: Estimate {
                pages: PAGES,
                zero_share: 0.3,
                compressed_share: 0.5,
                compress_bytes_per_second: 500e6,
                read_bytes_per_second: 1e9,
                dirty_pages_per_second: 10.0,
                hot_pages: 5,
                constant_bytes: 100,
            },
        })
    }

    fn copy_live(&mut self, sink: &dyn Sink, control: &Control) -> Result<()> {
        sink.bytes(b"head")?;
        self.send(sink, control)?;
        while self.host.state.lock().holds_live {
            let listener = control.listen();
            control.check()?;
            // Undone by another thread that does not know of the job.
            listener.wait_timeout(std::time::Duration::from_millis(20));
        }
        Ok(())
    }

    fn copy_rest(&mut self, sink: &dyn Sink, control: &Control) -> Result<Copied> {
        self.host.set(&self.needs.uuid, Presence::Paused);
        while self.host.state.lock().holds_rest {
            control.check()?;
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        self.send(sink, control)?;
        sink.bytes(b"tail")?;
        sink.barrier()?;
        if control.options().verifies() {
            control.enter(Phase::Verifying, "verifying");
            let chunks = chunks(&self.host.memory(&self.needs.uuid));
            sink.digests(Digests::Memory(&chunks))?;
            sink.digests(Digests::State(StateDigests::default()))?;
        }
        Ok(Copied {
            rounds: 2,
            pages: 2 * PAGES,
            suspend_ms: 0.1,
            limits: Some(LIMITS),
        })
    }

    fn resume_here(&mut self) -> Result<()> {
        match self.host.presence(&self.needs.uuid) {
            Presence::Absent => Err(Error::Xen("there is no such domain".to_owned())),
            _ => {
                self.host.state.lock().works()?;
                self.host.state.lock().watched.remove(&self.needs.uuid);
                self.host.set(&self.needs.uuid, Presence::Running);
                Ok(())
            }
        }
    }

    fn destroy(&mut self) -> Result<()> {
        self.host.state.lock().domains.remove(&self.needs.uuid);
        Ok(())
    }

    fn presence(&mut self) -> Result<Presence> {
        Ok(self.host.presence(&self.needs.uuid))
    }
}
