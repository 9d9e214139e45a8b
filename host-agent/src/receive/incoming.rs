//! An arriving domain: runs `xl migrate-receive`, feeds it and reads its answers.
//!
//! There are two ways.  *Plain*: the toolstack gets the whole stream, and creates the devices after the last
//! byte, while the guest is suspended; with Xen's hotplug scripts that is most of the blackout.  *Early*: it
//! gets the frames without contents and a first version of the state, and takes that for everything.  It
//! creates the devices while memory still arrives, which goes [directly](super::fill) into the domain's
//! frames.  Either way the toolstack leaves the domain paused, under its final name, and has finished when
//! [`Incoming::finish`] returns.  Only the unpause is left, so the end of this process cannot take the domain
//! with it.

use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use unmoved_stream::RecordHeader;
use unmoved_stream::libxc::{DomainHeader, ImageHeader, RecordType};

use super::canonical::Canonical;
use super::complaints::Complaints;
use super::copy_marker;
use super::feed::{Feed, GiveUp};
use super::fill::{State, fill};
use super::handshake::{Answers, BANNER, GO, READY, REPORT};
use crate::job::{Batch, Digests, Error, Result, Sink, StateDigests, Stop};
use crate::records::{Record, records};
use crate::save::{INCOMING, Memory, XenGuest};
use crate::verify::Told;
use crate::xen::config;
use crate::xen::domain::Xen;
use crate::xen::store::Store;
use crate::xen::toolstack;

/// Longest time for anything that should take the toolstack a moment.
const MOMENT: Duration = Duration::from_secs(120);
/// Longest time for creating a domain's devices; scripts have limits of their own.
const BUILD: Duration = Duration::from_secs(600);
/// The pipe's size; each time it fills up, the toolstack wakes.
const PIPE: libc::c_int = 1 << 20;

/// The position in the stream.
#[derive(Debug)]
enum StreamPhase {
    /// Before the image header.
    Headers,
    /// The toolstack gets everything.
    Toolstack(State),
    /// The toolstack's stream has ended; pages go into the domain.
    Filling(State),
    /// Everything has arrived and is in place; these are the digests of the state.
    Done(StateDigests),
}

/// A running `xl migrate-receive`.
pub(super) struct Incoming {
    xen: Xen,
    store: Arc<dyn Store>,
    /// The domain's name while it arrives, and its UUID.
    name: String,
    uuid: String,
    job: String,
    is_early: bool,
    /// Whether contents of pages have arrived.  A toolstack that got some gets all of them.
    has_contents: AtomicBool,
    child: Mutex<Child>,
    complaints: Complaints,
    answers: Mutex<Answers>,
    canonical: Canonical<Feed>,
    give_up: GiveUp,
    phase: RwLock<StreamPhase>,
    domid: OnceLock<u16>,
    /// The ID of the domain that the toolstack has built.
    ready: OnceLock<u16>,
    told: Mutex<Told>,
}

impl Incoming {
    /// Starts the toolstack.  `config` is the domain's, with its final name.
    pub(super) fn start(
        xen: Xen,
        store: Arc<dyn Store>,
        config: &serde_json::Value,
        uuid: &str,
        job: &str,
        told: Told,
        stop: Stop,
    ) -> Result<Self> {
        let name = config["c_info"]["name"].as_str().unwrap_or_default();
        // Paused, so that the unpause is a step of its own.
        let mut child = Command::new("xl")
            .args(["migrate-receive", "-p"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(toolstack::cannot_run)?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Error::Xen("xl has no pipes".to_owned()));
        };
        let complaints = Complaints::listen(stderr)?;
        enlarge(&stdin);
        let mut answers = Answers::listen(stdout)?;
        let banner = answers.expect(BANNER, MOMENT, || Ok(()));
        banner.map_err(|error| complaints.explain(error))?;
        let give_up = GiveUp::with(stop);
        let feed = Feed::new(stdin, give_up.clone()).map_err(Error::io("the pipe to xl"))?;
        let canonical = Canonical::begin(feed, config.to_string().as_bytes())?;
        Ok(Self {
            xen,
            store,
            name: format!("{name}{INCOMING}"),
            uuid: uuid.to_owned(),
            job: job.to_owned(),
            is_early: config::can_be_built_early(config),
            has_contents: AtomicBool::new(false),
            child: Mutex::new(child),
            complaints,
            answers: Mutex::new(answers),
            canonical,
            give_up,
            phase: RwLock::new(StreamPhase::Headers),
            domid: OnceLock::new(),
            ready: OnceLock::new(),
            told: Mutex::new(told),
        })
    }

    /// Waits until the toolstack has built the domain, lets it finish, and compares the domain with the
    /// source's digests; returns its ID.
    pub(super) fn finish(&self) -> Result<u16> {
        let StreamPhase::Done(state) = *self.phase.read() else {
            return Err(Error::Peer("the stream has not ended".to_owned()));
        };
        let domid = self.wait_until_ready()?;
        self.canonical.say(GO)?;
        let mut answers = self.answers.lock();
        let explain = |error| self.complaints.explain(error);
        answers.expect(REPORT, MOMENT, || Ok(())).map_err(explain)?;
        match answers.status(MOMENT).map_err(explain)? {
            0 => {}
            status => {
                return Err(explain(Error::Xen(format!(
                    "the toolstack reports status {status}"
                ))));
            }
        }
        let memory =
            || -> Result<Box<dyn Memory>> { Ok(Box::new(XenGuest::new(self.xen.clone(), domid)?)) };
        let check = || self.give_up.check_job();
        self.told.lock().compare(memory, &state, &check)?;
        Ok(domid)
    }

    /// Stops the toolstack unless it has finished: it destroys what it has built when its input ends.  Stops
    /// writers, too.  Does nothing the second time.
    pub(super) fn cancel(&self) {
        self.give_up.now();
        drop(self.canonical.close());
        let until = Instant::now() + MOMENT;
        let mut child = self.child.lock();
        while let Ok(None) = child.try_wait() {
            if Instant::now() > until {
                log::warn!("xl migrate-receive did not exit: killed");
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            // No call waits for the exit of a child with a time limit.
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The toolstack's output, for a log.
    pub(super) fn said(&self) -> String {
        self.complaints.text()
    }

    fn wait_until_ready(&self) -> Result<u16> {
        let mut answers = self.answers.lock();
        if let Some(domid) = self.ready.get() {
            return Ok(*domid);
        }
        answers
            .expect(READY, BUILD, || self.give_up.check_job())
            .map_err(|error| self.complaints.explain(error))?;
        log::debug!("the toolstack has built {}", self.name);
        let missing = || Error::Xen(format!("xl has built no {}", self.name));
        let domid = self.find()?.ok_or_else(missing)?;
        copy_marker::set(&*self.store, domid, &self.uuid, &self.job)?;
        Ok(*self.ready.get_or_init(|| domid))
    }

    /// The domain's ID, once the toolstack does not touch its memory any more: after the end of its stream it
    /// writes the position of the domain's ring to xenstore.
    fn domid(&self) -> Result<u16> {
        if let Some(domid) = self.domid.get() {
            return Ok(*domid);
        }
        let mut domid = None;
        let mut look = || {
            self.is_alive()?;
            domid = self.find()?;
            let Some(domid) = domid else {
                return Ok(false);
            };
            let ring = format!("/local/domain/{domid}/store/ring-ref");
            Ok(self.store.read(&ring)?.is_some())
        };
        let found = self
            .store
            .wait(&["/local/domain"], Instant::now() + MOMENT, &mut look)?;
        match domid {
            Some(domid) if found => {
                log::debug!("{} is domain {domid}, and can be filled", self.name);
                Ok(*self.domid.get_or_init(|| domid))
            }
            _ => Err(self
                .complaints
                .explain(Error::TimedOut("building the domain".to_owned()))),
        }
    }

    fn find(&self) -> Result<Option<u16>> {
        for domid in self.store.list("/local/domain")? {
            let name = self.store.read(&format!("/local/domain/{domid}/name"))?;
            let (Ok(number), true) = (domid.parse(), name.as_ref() == Some(&self.name)) else {
                continue;
            };
            let info = self.xen.domain(number).info()?;
            if info.is_some_and(|info| config::uuid(&info.handle) == self.uuid) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn is_alive(&self) -> Result<()> {
        match self.child.lock().try_wait() {
            Ok(None) => Ok(()),
            _ => Err(self
                .complaints
                .explain(Error::Xen("the toolstack has ended".to_owned()))),
        }
    }

    /// Puts one record in its place.
    fn record(&self, phase: &mut StreamPhase, record: Record<'_>) -> Result<()> {
        match phase {
            StreamPhase::Headers | StreamPhase::Done(_) => Err(Error::Peer(
                "a record of the stream is out of place".to_owned(),
            )),
            StreamPhase::Toolstack(state) => {
                self.canonical.bytes(record.whole)?;
                match record.kind {
                    RecordType::END => {
                        self.canonical.end()?;
                        *phase = StreamPhase::Done(state.digests);
                    }
                    RecordType::X86_TSC_INFO | RecordType::HVM_CONTEXT | RecordType::HVM_PARAMS => {
                        state.note(record)?;
                        let is_skeleton = !self.has_contents.load(Ordering::Relaxed);
                        if self.is_early && is_skeleton && state.is_complete() {
                            self.end_early()?;
                            *phase = StreamPhase::Filling(std::mem::take(state));
                        }
                    }
                    _ => {}
                }
                Ok(())
            }
            StreamPhase::Filling(state) if record.kind == RecordType::END => {
                state.apply(self.xen.domain(self.domid()?))?;
                *phase = StreamPhase::Done(state.digests);
                Ok(())
            }
            StreamPhase::Filling(state) => state.note(record),
        }
    }

    fn end_early(&self) -> Result<()> {
        let end = RecordHeader {
            kind: RecordType::END.0,
            length: 0,
        };
        self.canonical.bytes(&end.encode())?;
        self.canonical.end()?;
        log::debug!("the toolstack has all that it needs of {}", self.name);
        Ok(())
    }
}

impl Sink for Incoming {
    fn bytes(&self, bytes: &[u8]) -> Result<()> {
        let mut phase = self.phase.write();
        let mut rest = bytes;
        if matches!(*phase, StreamPhase::Headers) {
            let headers = bytes.split_at_checked(ImageHeader::SIZE + DomainHeader::SIZE);
            let (headers, records) = headers
                .ok_or_else(|| Error::Peer("the stream does not begin with headers".to_owned()))?;
            self.canonical.bytes(headers)?;
            *phase = StreamPhase::Toolstack(State::default());
            rest = records;
        }
        let taken = records(rest)?
            .into_iter()
            .try_for_each(|record| self.record(&mut phase, record));
        taken.map_err(|error| self.complaints.explain(error))
    }

    fn pages(&self, batch: &mut Batch) -> Result<()> {
        let phase = self.phase.read();
        if !batch.data.is_empty() {
            self.has_contents.store(true, Ordering::Relaxed);
        }
        let taken = match &*phase {
            StreamPhase::Toolstack(_) => self.canonical.pages(batch),
            StreamPhase::Filling(state) => fill(self.xen.domain(self.domid()?), batch, &state.ours),
            StreamPhase::Headers | StreamPhase::Done(_) => Err(Error::Peer(
                "pages of the stream are out of place".to_owned(),
            )),
        };
        taken.map_err(|error| self.complaints.explain(error))
    }

    fn barrier(&self) -> Result<()> {
        if !matches!(*self.phase.read(), StreamPhase::Filling(_)) {
            return self.canonical.barrier();
        }
        // The guest must not be suspended for a domain whose devices are not ready.  The barrier at the end
        // of a round waits for them; one that only keeps several connections in order comes before all
        // contents.
        if self.has_contents.load(Ordering::Relaxed) {
            return self.wait_until_ready().map(drop);
        }
        Ok(())
    }

    fn digests(&self, digests: Digests<'_>) -> Result<()> {
        if !matches!(*self.phase.read(), StreamPhase::Done(_)) {
            return Err(Error::Peer(
                "digests arrived before the end of the guest's stream".to_owned(),
            ));
        }
        self.told.lock().take(digests)
    }

    fn builds_early(&self) -> bool {
        self.is_early
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Reaps the process, which has ended long ago.
        if let Err(error) = self.child.get_mut().try_wait() {
            log::debug!("xl migrate-receive: {error}");
        }
    }
}

fn enlarge(pipe: &ChildStdin) {
    // A smaller pipe is merely slower.
    let result = crate::xen::sys::set_pipe_size(pipe.as_fd(), PIPE);
    if let Err(error) = result {
        log::debug!("cannot enlarge the pipe to xl: {error}");
    }
}
