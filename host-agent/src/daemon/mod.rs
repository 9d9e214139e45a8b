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
//! | `job`, `history` | what is known of each job, while it lasts and afterwards |
//! | `lanes` | takes the connections that carry streams |
//! | `wire` | messages between agents, checked once |
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

/// Number of finished jobs that are remembered, at most.
const REMEMBERED: usize = 100;

/// How long a finished session is remembered, so that a late or replayed call cannot start it again.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Longest time that a job waits while log-dirty mode of its guest is switched off.
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
    /// Held for the moment in which log-dirty mode, left on by a dead run, is switched off.
    unwatching: Mutex<()>,
    /// Sessions of departed guests whose journals are unreadable from the beginning.
    unknown: Mutex<BTreeMap<SessionId, Journal<SourceRecord>>>,
    /// Ends whose sessions could not be listed, and why.
    unlisted: Mutex<Vec<(Direction, String)>>,
    /// Limits the log of refused connections, and of refused users of this host.
    refusals: Refusals,
    refusals_here: Refusals,
    /// Limits the log of peers' calls.
    calls: Refusals,
    /// Whether the daemon is stopping.
    stop: Stop,
    /// For each peer; each of its control connections holds one, too.
    controls: Mutex<BTreeMap<String, Arc<()>>>,
}

/// The result of `check`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Checked {
    /// The guest.
    pub domain: String,
    /// The destination.
    pub host: String,
    /// What the guest needs there.
    pub memory_bytes: u64,
    /// The guest's behaviour.
    pub estimate: crate::job::Estimate,
    /// The prediction.
    pub prediction: Prediction,
}

impl Daemon {
    /// Reads the certificates and opens the audit log.  Starts nothing.
    ///
    /// # Errors
    /// If a file is missing or wrong, or another daemon uses the same state folder; says which.
    pub fn new(config: Config, host: Arc<dyn Host>) -> Result<Arc<Self>> {
        let identity = config.identity()?;
        for folder in ["source", "destination"] {
            let folder = config.state.join(folder);
            journal::folder(&folder)
                .map_err(Error::io(format!("cannot create {}", folder.display())))?;
        }
        // Another daemon's records say what it is doing now.  This one would take them for a dead daemon's,
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

    /// Recovers what another run of the daemon left, in the background, and listens for other agents at
    /// once.  Returns the address.
    ///
    /// # Errors
    /// If the address cannot be used, or no thread can be started.  Recovery may have begun by then:
    /// [`Daemon::stop`] waits for it.
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

    /// Starts a migration; returns the job.
    ///
    /// # Errors
    /// If there is no such domain or peer, or another job has the guest.
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
        self.refuse_if_stopping()?;
        self.refuse_if_sessions_unlisted(Direction::Outgoing)?;
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

    /// Ends the job and writes that to the audit log.
    fn over(&self, job: &Job, result: std::result::Result<(), String>) {
        let more = json!({ "job": job.id, "failed": result.as_ref().err() });
        self.audit.write("agent", "ended", &more);
        job.end(result);
    }

    /// Does everything of a migration that has no effect, and predicts the rest.
    ///
    /// # Errors
    /// What prevents the migration.
    pub fn check(
        self: &Arc<Self>,
        domain: &str,
        host: &str,
        mut options: JobOptions,
    ) -> Result<Checked> {
        options.verify.get_or_insert(self.config.verify);
        let control = Arc::new(Control::new(options));
        self.register_look(&control)?;
        let peer = self.config.peer(host)?.clone();
        let mut source = self.host.source(domain)?;
        let _claim = self.claim(source.uuid())?;
        let checked = outgoing::check(self, &mut *source, &peer, &control);
        // This switches off log-dirty mode, before another job may have the guest.
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

    /// All jobs, oldest first.
    #[must_use]
    pub fn jobs(&self) -> Vec<Arc<Job>> {
        self.jobs.lock().clone()
    }

    /// The job whose ID starts with `id`.
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

    /// Makes sure that only one job at a time reads a guest, because Xen tracks its writes for one reader.
    ///
    /// # Errors
    /// If another job has it.
    pub(crate) fn claim(self: &Arc<Self>, uuid: &str) -> Result<Claim> {
        // Waits for a holder that needs the guest only for a moment.
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

    /// Whether a peer's guest may arrive: its configuration uses only what is allowed here, and its disks are
    /// the same storage on both hosts.
    fn admits(&self, peer: &str, needs: &Needs) -> Result<()> {
        let config = configuration(&needs.config)?;
        self.config
            .allowed(peer)
            .admits(&config)
            .map_err(Error::Refused)?;
        if peer == self.config.name {
            // The certificate is this host's own, and a path leads to the same disk.
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

/// A job's right to a guest, held as long as this exists.
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
