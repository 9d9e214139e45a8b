//! The daemon: carries out what the sessions' machines decide.
//!
//! | file | is |
//! |---|---|
//! | `outgoing` | a guest that leaves: runs the source's machine |
//! | `incoming` | a guest that comes: runs the destination's machine |
//! | `peers` | takes connections from other agents |
//! | `link` | makes connections to them |
//! | `files` | a guest that is written to a file, or read from one |
//! | `decide` | takes what an operator decides |
//! | `inquiry` | asks the other end first, and answers it |
//! | `doubt` | holds sessions whose journals are damaged |
//! | `recover` | takes up what another run of the daemon left |
//! | `stop` | finishes or undoes what is under way before the daemon ends |
//! | `refusals` | keeps strangers and peers from filling the audit log |
//! | `handshakes` | bounds the connections that have not said who they are |
//! | [`local`] | takes orders from the command on this host |
//! | `metrics` | tells Prometheus |
//!
//! Threads and blocking calls: there are few connections, and what they wait for is a disk, the toolstack
//! or a network.  Killing the daemon is safe at any moment; but a guest that stands still then does so until it
//! runs again, and so an orderly end lets none stand.

mod decide;
mod doubt;
mod files;
mod handshakes;
mod history;
mod incoming;
mod inquiry;
mod job;
mod lanes;
mod link;
pub mod local;
mod metrics;
mod outgoing;
mod peers;
mod recover;
mod refusals;
mod stop;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;

use crate::audit::Audit;
use crate::config::Config;
use crate::file_lock::FileLock;
use crate::job::{Control, Error, Host, JobOptions, Needs, Result};
use crate::journal::{self, Journal};
use crate::predict::Prediction;
use crate::session::{SessionId, SourceRecord};
use crate::storage::Storage;
use crate::transport::tls::Identity;
use crate::xen::config::arrived as configuration;

pub use job::{Direction, Job, JobStatus, Report};
pub use stop::LONGEST;

use history::History;
use incoming::Incoming;
use refusals::{Refusals, unaccepted};
use stop::Stop;

/// The file in the state folder that its daemon locks.
const LOCK: &str = "lock";

/// Jobs that are over are remembered so long as there are not more than this.
const REMEMBERED: usize = 100;

/// A session that is over is remembered so long, lest a late or replayed call begins it again.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Longest time that a job waits until a guest that was left watched has been let go.
const A_MOMENT: Duration = Duration::from_secs(10);

/// The daemon of a host.
pub struct Daemon {
    config: Config,
    identity: Identity,
    /// On the state folder.
    _lock: FileLock,
    host: Arc<dyn Host>,
    audit: Audit,
    history: History,
    jobs: Mutex<Vec<Arc<Job>>>,
    incoming: Mutex<BTreeMap<SessionId, Arc<Incoming>>>,
    /// UUIDs of guests that a job reads.
    leaving: Mutex<Vec<String>>,
    /// Held while a guest is only let go that a dead run has left watched: a moment.
    unwatching: Mutex<()>,
    /// Sessions of guests that left, of whose journals not even the beginning can be read.
    unknown: Mutex<BTreeMap<SessionId, Journal<SourceRecord>>>,
    /// Ends at which it is not known which sessions there are, and why.
    unlisted: Mutex<Vec<(Direction, String)>>,
    /// Of other hosts, and of users of this one.
    refusals: Refusals,
    refusals_here: Refusals,
    /// What peers do.
    calls: Refusals,
    /// If it is about to end.
    stop: Stop,
    /// For each peer, held by each of its control connections too.
    controls: Mutex<BTreeMap<String, Arc<()>>>,
}

/// What `check` found.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Checked {
    /// The guest.
    pub domain: String,
    /// Where to.
    pub host: String,
    /// What it needs there.
    pub memory_bytes: u64,
    /// How it behaves.
    pub estimate: crate::job::Estimate,
    /// What is to be expected.
    pub prediction: Prediction,
}

impl Daemon {
    /// Reads certificates, opens the audit log; nothing is done yet.
    ///
    /// # Errors
    /// If a file is missing or wrong, or another daemon works with the same state; says which.
    pub fn new(config: Config, host: Arc<dyn Host>) -> Result<Arc<Self>> {
        let identity = config.identity()?;
        for folder in ["source", "destination"] {
            let folder = config.state.join(folder);
            journal::folder(&folder)
                .map_err(Error::io(format!("cannot create {}", folder.display())))?;
        }
        // Another daemon's records say what it is doing now.  This one would take them for those of a dead one,
        // and discard a guest that is being received.
        let lock = FileLock::take(&config.state.join(LOCK), || {
            format!(
                "another unmovedd works with the state folder {}: stop that one first, or give this one a \
                 folder of its own (`state` in the configuration)",
                config.state.display()
            )
        })?;
        let audit = Audit::open(&config.state);
        let history = History::open(&config.state);
        Ok(Arc::new(Self {
            config,
            identity,
            _lock: lock,
            host,
            audit,
            history,
            jobs: Mutex::default(),
            incoming: Mutex::default(),
            leaving: Mutex::default(),
            unwatching: Mutex::default(),
            unknown: Mutex::default(),
            unlisted: Mutex::default(),
            refusals: Refusals::default(),
            refusals_here: Refusals::default(),
            calls: Refusals::of_peers(),
            stop: Stop::default(),
            controls: Mutex::default(),
        }))
    }

    /// Takes up what another run of the daemon left, behind its back, and listens for other agents at once;
    /// gives the address.
    ///
    /// # Errors
    /// If the address cannot be used, or no thread begun.  Guests may have been taken up by then:
    /// [`Daemon::stop`] waits for them.
    pub fn start(self: &Arc<Self>) -> Result<SocketAddr> {
        self.recover()?;
        let listener = TcpListener::bind(self.config.listen).map_err(Error::io(format!(
            "cannot listen at {}",
            self.config.listen
        )))?;
        let address = listener.local_addr().map_err(Error::io("listening"))?;
        let daemon = self.clone();
        spawn("peers", move || peers::serve(&daemon, &listener))?;
        if let Some(address) = self.config.metrics {
            let listener = TcpListener::bind(address)
                .map_err(Error::io(format!("cannot serve metrics at {address}")))?;
            let daemon = self.clone();
            spawn("metrics", move || metrics::serve(&daemon, &listener))?;
        }
        Ok(address)
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Begins a migration; gives the job.
    ///
    /// # Errors
    /// If there is no such domain or peer, or the guest is leaving already.
    pub fn migrate(
        self: &Arc<Self>,
        who: &str,
        domain: &str,
        host: &str,
        mut options: JobOptions,
    ) -> Result<Arc<Job>> {
        let bound = &mut options.max_blackout_ms;
        bound.get_or_insert(JobOptions::MAX_BLACKOUT_MS);
        options.verify.get_or_insert(self.config.verify);
        self.goes_on()?;
        self.knows_its_own(Direction::Outgoing)?;
        let peer = self.config.peer(host)?.clone();
        let source = self.host.source(domain)?;
        let claim = self.claim(source.uuid())?;
        let session = SessionId::new(random()?);
        let control = Arc::new(Control::new(options));
        let job = Job::new(
            session.to_string(),
            Direction::Outgoing,
            domain.to_owned(),
            peer.name.clone(),
            control,
        );
        self.audit.write(
            who,
            "migrate",
            &json!({ "job": job.id, "domain": domain, "to": host }),
        );
        job.hold(claim);
        self.add_new(&job)?;
        let (daemon, running) = (self.clone(), job.clone());
        spawn("migrate", move || {
            outgoing::run(&daemon, &running, session, source, &peer);
        })
        .inspect_err(|error| job.end(Err(error.to_string())))?;
        Ok(job)
    }

    /// The job is over, and that is written down.
    fn over(&self, job: &Job, result: std::result::Result<(), String>) {
        let more = json!({ "job": job.id, "failed": result.as_ref().err() });
        self.audit.write("agent", "ended", &more);
        job.end(result);
    }

    /// Does what a migration does up to where it would have an effect, and predicts the rest.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn check(
        self: &Arc<Self>,
        domain: &str,
        host: &str,
        mut options: JobOptions,
    ) -> Result<Checked> {
        options.verify.get_or_insert(self.config.verify);
        let control = Arc::new(Control::new(options));
        self.look(&control)?;
        let peer = self.config.peer(host)?.clone();
        let mut source = self.host.source(domain)?;
        let _claim = self.claim(source.uuid())?;
        let checked = outgoing::check(self, &mut *source, &peer, &control);
        // With it goes what it switched on to watch the guest, before others may have the guest.
        drop(source);
        let (prepared, prediction) = checked?;
        Ok(Checked {
            domain: domain.to_owned(),
            host: host.to_owned(),
            memory_bytes: prepared.needs.memory_bytes,
            estimate: prepared.estimate,
            prediction,
        })
    }

    /// All jobs, the oldest first.
    #[must_use]
    pub fn jobs(&self) -> Vec<Arc<Job>> {
        self.jobs.lock().clone()
    }

    /// The job whose name begins so.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn job(&self, id: &str) -> Result<Arc<Job>> {
        let jobs = self.jobs.lock();
        let mut found = jobs.iter().filter(|job| job.id.starts_with(id));
        match (found.next(), found.next()) {
            (Some(job), None) => Ok(job.clone()),
            (None, _) => Err(Error::Refused(format!("there is no job {id}"))),
            (Some(_), Some(_)) => Err(Error::Refused(format!(
                "more than one job begins with {id}"
            ))),
        }
    }

    fn add(&self, job: &Arc<Job>) {
        let mut jobs = self.jobs.lock();
        if jobs.len() >= REMEMBERED
            && let Some(oldest) = jobs.iter().position(|job| job.result().is_some())
        {
            jobs.remove(oldest);
        }
        jobs.push(job.clone());
    }

    /// Makes sure that only one job at a time reads a guest: Xen records for one what it writes.
    ///
    /// # Errors
    /// If another job has it.
    pub(crate) fn claim(self: &Arc<Self>, uuid: &str) -> Result<Claim> {
        // Whoever has it for a moment only is waited for.
        drop(self.unwatching.try_lock_for(A_MOMENT));
        self.claim_now(uuid)
    }

    fn claim_now(self: &Arc<Self>, uuid: &str) -> Result<Claim> {
        let mut leaving = self.leaving.lock();
        if leaving.iter().any(|other| other == uuid) {
            return Err(Error::Refused(
                "another job is migrating or saving this guest".to_owned(),
            ));
        }
        leaving.push(uuid.to_owned());
        drop(leaving);
        Ok(Claim {
            daemon: self.clone(),
            uuid: uuid.to_owned(),
        })
    }

    /// Whether a guest of this peer may come: it has nothing of this host but what is allowed, and its
    /// disks are the same storage here as there.
    fn admits(&self, peer: &str, needs: &Needs) -> Result<()> {
        let config = configuration(&needs.config)?;
        self.config
            .allowed(peer)
            .admits(&config)
            .map_err(Error::Refused)?;
        if peer == self.config.name {
            // By its certificate it is this host: a path leads to one place only.
            return Ok(());
        }
        for disk in &needs.disks {
            let there = needs.storage.iter().find(|storage| storage.disk == *disk);
            let unknown = Storage {
                disk: disk.clone(),
                ..Storage::default()
            };
            let here = self.host.storage(disk);
            there
                .unwrap_or(&unknown)
                .is_shared_with(&here)
                .map_err(Error::Refused)?;
        }
        Ok(())
    }

    fn folder(&self, end: &str) -> PathBuf {
        self.config.state.join(end)
    }
}

/// A guest that is one job's as long as this exists.
pub(crate) struct Claim {
    daemon: Arc<Daemon>,
    uuid: String,
}

impl fmt::Debug for Claim {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("Claim").field(&self.uuid).finish()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.daemon
            .leaving
            .lock()
            .retain(|other| *other != self.uuid);
    }
}

/// Random bytes from the system.
fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let read = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::Refused(format!("cannot get random numbers: {error}")))?;
    if read < N {
        return Err(Error::Refused("got too few random numbers".to_owned()));
    }
    Ok(bytes)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(Error::io("cannot start a thread"))
}
