//! A domain on its way in: `xl migrate-receive`, what it is fed with, and what it says.
//!
//! There are two ways.  *Plain*: the toolstack gets the whole stream, and makes the devices after the last
//! byte, while the guest stands still; with Xen's hotplug scripts that is most of the blackout.  *Early*:
//! it gets the frames without their contents and a first version of the state, believes that this was
//! all, and makes the devices while memory still comes, which goes [straight](super::fill) into the
//! domain's frames from then on.  Either way the toolstack leaves the domain paused, under its final
//! name, and has done its work when [`Incoming::finish`] returns: nothing but an unpause is left, so no
//! end of this process can take the domain with it.

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
use super::fill::{Record, State, fill, records};
use super::handshake::{Answers, BANNER, GO, READY, REPORT};
use crate::job::{Batch, Digests, Error, Result, Sink, StateDigests, Stop};
use crate::save::{INCOMING, Memory, XenGuest};
use crate::verify::Told;
use crate::xen::config;
use crate::xen::domain::Xen;
use crate::xen::store::Store;
use crate::xen::toolstack;

/// Longest time for anything that takes the toolstack a moment.
const MOMENT: Duration = Duration::from_secs(120);
/// Longest time for making a domain's devices: scripts have limits of their own.
const BUILD: Duration = Duration::from_secs(600);
/// The pipe's size: each filling of it wakes the toolstack.
const PIPE: libc::c_int = 1 << 20;

/// Where the stream stands.
#[derive(Debug)]
enum StreamPhase {
    /// The image header has not come.
    Headers,
    /// The toolstack gets everything.
    Toolstack(State),
    /// The toolstack has got its end; pages go into the domain.
    Filling(State),
    /// All has come, and is where it belongs; the state was this.
    Done(StateDigests),
}

/// `xl migrate-receive` at work.
pub(super) struct Incoming {
    xen: Xen,
    store: Arc<dyn Store>,
    /// The domain's name while it comes, and its UUID.
    name: String,
    uuid: String,
    job: String,
    is_early: bool,
    /// If contents of pages have come.  A toolstack that has got some gets all of them.
    has_contents: AtomicBool,
    child: Mutex<Child>,
    complaints: Complaints,
    answers: Mutex<Answers>,
    canonical: Canonical<Feed>,
    give_up: GiveUp,
    phase: RwLock<StreamPhase>,
    domid: OnceLock<u16>,
    /// The number of the domain that the toolstack has built.
    ready: OnceLock<u16>,
    told: Mutex<Told>,
}

impl Incoming {
    /// Starts the toolstack.  `config` is the domain's, with the name that it is to have in the end.
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
        // Paused, so that letting it run is a step of its own.
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

    /// Waits until the toolstack has built the domain, makes it end its work, and compares the domain with what
    /// the source has told of it; gives its number.
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

    /// Ends the toolstack's work, unless it is finished: it destroys what it has built when its input ends.
    /// Whoever still writes is stopped.  Does nothing if this was done already.
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
            // There is no event for the end of a child that could be waited for with a limit.
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the toolstack said, for a log.
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

    /// The domain's number, as soon as the toolstack does not touch its memory any more: it tells
    /// xenstore where the domain's ring is when it has read the stream to its end.
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

    /// One record, in its place.
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
        // With its devices still being made, the domain is not one to stop the guest for.  That is for the
        // end of a round; one that only keeps several connections in order comes before all contents.
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
        // It has ended long ago, and is to be no zombie.
        if let Err(error) = self.child.get_mut().try_wait() {
            log::debug!("xl migrate-receive: {error}");
        }
    }
}

fn enlarge(pipe: &ChildStdin) {
    // What cannot be enlarged is merely slower.
    let result = crate::xen::sys::set_pipe_size(pipe.as_fd(), PIPE);
    if let Err(error) = result {
        log::debug!("cannot enlarge the pipe to xl: {error}");
    }
}
