//! The door between the two halves of the agent: what can be done with a guest at either end.
//!
//! One half knows Xen: it reads a live domain, and has one built by the stock toolstack.  The other half
//! knows the peer: session, journal, transport.  They meet only in the traits of this module.  The order
//! in which a job uses them, by the [session](crate::session)'s steps (*journal* means written and on the
//! disk):
//!
//! | step | destination | source |
//! |---|---|---|
//! | 0 meet | [`Host::facts`] | [`Source::prepare`]: looks; what it does to the guest ends with it |
//! | 1 reserve | journal; [`Destination::reserve`] | |
//! | | [`Destination::receive`], bytes into its [`Sink`] | [`Source::copy_live`] into the wire's [`Sink`] |
//! | | | journal; [`Source::copy_rest`] |
//! | 2 receive | [`Destination::finish`]: the whole domain stands there, paused; journal | |
//! | | | journal *handed over*: **the point of no return** |
//! | 3 take over | journal with that token; [`Destination::unpause`] | journal; [`Source::destroy`] |
//! | 4 retire | the session is forgotten | |
//!
//! Up to the point of no return the guest is the source's: whatever fails, [`Source::resume_here`] and
//! [`Destination::discard`].  After it the guest is the destination's, and the source keeps its copy
//! paused until the destination has said that it runs.  The fencing token, in the journal since *begun*,
//! goes to the destination after the point of no return, and never before.
//!
//! Methods of a source or destination block; they are called by one thread, one after the other, but
//! [`Control::abort`] comes from another.  An agent can die between any two of them, even within one;
//! so everything that undoes or finishes can be called again, and [`Host::find_source`] and
//! [`Host::find_destination`] take up a job that another run of the agent began.

mod batch;
mod control;
mod digest;
mod error;
mod options;
mod reservations;
mod statistics;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use batch::{Batch, PAGE_SIZE, Sink, has_content, is_zero};
pub use control::{Control, Event, Phase, Stop};
pub use digest::{Chunk, Digest, Digests, StateDigests, digest};
pub use error::{Error, Result};
pub use options::{Compression, JobOptions, OnTimeout};
pub use reservations::{FreeMemory, Reservations};
pub use statistics::Statistics;

use crate::storage::Storage;

/// A domain in a list.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct DomainEntry {
    /// Name in the toolstack.
    pub name: String,
    /// Domain ID on this host.
    pub domid: u32,
    /// UUID, in the usual form with hyphens.
    pub uuid: String,
    /// Current memory.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// `running`, `blocked`, `paused`, `shutdown`, `crashed` or `dying`.
    pub state: String,
}

/// What a host tells its peers about itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct HostFacts {
    /// Version of Xen, as `4.17.5`.
    pub xen_version: String,
    /// Memory that a new domain can have.
    pub free_memory_bytes: u64,
    /// Physical CPUs.
    pub cpus: u32,
    /// Version of the libxc stream that the toolstack writes.
    pub stream_version: u32,
}

/// What a domain needs at its destination.  It goes over the network and into the journal.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Needs {
    /// Name at the source.
    pub name: String,
    /// Name at the destination; differs only on request.
    pub destination_name: String,
    /// UUID.
    pub uuid: String,
    /// Domain ID at the source; tells the two copies apart if both ends are the same host.
    pub source_domid: u32,
    /// Most memory that the domain may ever have, including overhead.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Disks as the toolstack's configuration names them, read-only ones left out.
    pub disks: Vec<String>,
    /// What the source knows of the storage behind them.
    #[serde(default)]
    pub storage: Vec<Storage>,
    /// Version of Xen at the source, as `4.17.5`.
    pub xen_version: String,
    /// The optional data of an `xl` save file: the domain's configuration as JSON with its final NUL.
    pub config: Vec<u8>,
}

/// The result of [`Source::prepare`].
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Prepared {
    /// What the guest needs at the destination.
    pub needs: Needs,
    /// The guest's recent behaviour.
    pub estimate: Estimate,
}

/// A guest's behaviour, measured on the live domain, as the input of predictions.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Estimate {
    /// Frames with content that the first round sends.
    pub pages: u64,
    /// Fraction of these that is all zero, from 0 to 1.
    pub zero_share: f64,
    /// Size of the others after Zstandard, relative to before, from 0 to 1.
    pub compressed_share: f64,
    /// Speed of that compression, in bytes per second.
    pub compress_bytes_per_second: f64,
    /// How fast the guest's memory can be read, in bytes per second.
    pub read_bytes_per_second: f64,
    /// Distinct frames dirtied per second, while the guest was watched.
    pub dirty_pages_per_second: f64,
    /// Frames that are dirtied again and again: every round will find them dirty.
    pub hot_pages: u64,
    /// Bytes that are sent whatever the guest does: headers, CPU and device state.
    pub constant_bytes: u64,
}

/// A domain's memory target and limit.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct MemoryLimits {
    /// The toolstack's target, KiB (`memory/target` in xenstore).
    pub target_kib: u64,
    /// Xen's limit, pages (`max_pages` of `XEN_DOMCTL_getdomaininfo`).
    pub most_pages: u64,
}

/// What a source did, for the report.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Copied {
    /// Rounds over the memory, including the last one with the guest suspended.
    pub rounds: u32,
    /// Pages sent, including repetitions.
    pub pages: u64,
    /// From the suspend request until the guest was suspended.
    pub suspend_ms: f64,
    /// The final limits of its memory, which an operator may have changed during the job.
    pub limits: Option<MemoryLimits>,
}

/// The state of a domain when an agent looks for it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// There is no domain.
    Absent,
    /// Under construction, or left incomplete.
    Partial,
    /// Complete, with no vCPU running; a suspended source counts, too.
    Paused,
    /// Running.
    Running,
}

/// An operation without a journal: if its process dies, only a marker on its domain tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standalone {
    /// A save to a file.
    Save,
    /// A send to a host that has only Xen's own tools.
    Send,
}

/// A host: where sources and destinations come from.
pub trait Host: Send + Sync {
    /// What it tells its peers.
    ///
    /// # Errors
    /// If Xen or the toolstack does not answer.
    fn facts(&self) -> Result<HostFacts>;

    /// What this host knows of the storage behind a disk of this name in a domain's configuration.
    fn storage(&self, disk: &str) -> Storage;

    /// Anything that prevents this host from migrating guests.  May take a while.
    fn problems(&self) -> Vec<String>;

    /// Its domains, domain 0 left out.
    ///
    /// # Errors
    /// If Xen or the toolstack does not answer.
    fn domains(&self) -> Result<Vec<DomainEntry>>;

    /// What domains on their way to this host hold of it, whichever way they come.
    fn reservations(&self) -> &Reservations;

    /// Opens the running domain of this name (or number) as a source.  Has no effect on it.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is none, or it cannot be moved.
    fn source(&self, domain: &str) -> Result<Box<dyn Source>>;

    /// As [`Host::source`], for an operation without a journal.  A guest that it leaves suspended is marked
    /// so that an operator, and nobody else, can resume it.
    ///
    /// # Errors
    /// As [`Host::source`].
    fn standalone_source(&self, domain: &str, _operation: Standalone) -> Result<Box<dyn Source>> {
        self.source(domain)
    }

    /// A destination for one domain.  Nothing is reserved yet.
    ///
    /// # Errors
    /// If the toolstack is not usable.
    fn destination(&self) -> Result<Box<dyn Destination>>;

    /// Recovers the source of a job that another run of the agent began.  `needs` is what [`Source::prepare`]
    /// returned then.  Finds the domain by UUID *and* `source_domid`, whatever its current name is; an absent
    /// domain is no error.
    ///
    /// # Errors
    /// If Xen or the toolstack does not answer.
    fn find_source(&self, needs: &Needs) -> Result<Box<dyn Source>>;

    /// Recovers the destination of a job that another run of the agent began; `job` and `needs` are what
    /// [`Destination::reserve`] got.  An absent domain is no error.  The caller has restored the job's
    /// [reservation](Reservations::restore) and releases it.
    ///
    /// # Errors
    /// If Xen or the toolstack does not answer.
    fn find_destination(&self, job: &str, needs: &Needs) -> Result<Box<dyn Destination>>;
}

/// A guest at its source.
pub trait Source: Send {
    /// The guest's UUID.
    fn uuid(&self) -> &str;

    /// Inspects the guest, and watches for a moment how fast it dirties memory.  Its effects are a
    /// lock, a marker in xenstore and log-dirty mode, all of which end with the source; a stale suspend request of an
    /// earlier run is settled first.
    ///
    /// # Errors
    /// [`Error::Refused`] with what prevents a migration.
    fn prepare(&mut self, options: &JobOptions, control: &Control) -> Result<Prepared>;

    /// Sends everything up to the last round with the guest running: stream headers, static data, and memory
    /// round by round, with a [`Sink::barrier`] after each.  Returns when another round does not pay, or, if
    /// the options say so, at the time-out.
    ///
    /// # Errors
    /// [`Error::Aborted`], [`Error::TimedOut`], the sink's error, or Xen's.
    fn copy_live(&mut self, sink: &dyn Sink, control: &Control) -> Result<()>;

    /// Suspends the guest; sends the rest of its memory, its state, and the end of the stream; then a
    /// [`Sink::barrier`]; and, if [`JobOptions::verify`] says so, [digests](Sink::digests) of all that.
    /// Leaves the guest suspended.
    ///
    /// # Errors
    /// As [`Source::copy_live`].  The guest may be suspended or not; [`Source::resume_here`] takes care of
    /// it.
    fn copy_rest(&mut self, sink: &dyn Sink, control: &Control) -> Result<Copied>;

    /// Makes the guest run here as before: resumes it if an agent suspended it, switches log-dirty mode off
    /// if an agent switched it on, and restores its name.  Does nothing for a running guest.  May be
    /// repeated.
    ///
    /// # Errors
    /// If it is gone, does not run afterwards, or was suspended by someone else.
    fn resume_here(&mut self) -> Result<()>;

    /// Destroys the copy here, because the guest runs at the destination.  Does nothing if it is gone.
    ///
    /// # Errors
    /// If it still exists afterwards.
    fn destroy(&mut self) -> Result<()>;

    /// Its current state.
    ///
    /// # Errors
    /// If Xen does not answer.
    fn presence(&mut self) -> Result<Presence>;
}

/// A guest at its destination.
pub trait Destination: Send {
    /// [Reserves](Reservations) name, UUID, disks and memory for `job` (a name of letters, digits and
    /// hyphens, unique for ever), and checks that the domain could be built here.  The reservation ends with
    /// this destination at the latest.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; then nothing is reserved.
    fn reserve(&mut self, job: &str, needs: &Needs) -> Result<()>;

    /// Starts the toolstack and returns the sink of the stream.  The stream begins with its image header;
    /// this end makes the `xl` save header itself, from [`Needs::config`].
    ///
    /// # Errors
    /// If the toolstack cannot be started.
    fn receive(&mut self, control: &Control) -> Result<Arc<dyn Sink>>;

    /// Waits until the toolstack has built the complete domain, paused.  No sink is used any more.  If the
    /// sink has received [digests](Sink::digests), compares the domain with them.  Then sets the limits of
    /// its memory, by default those of its configuration.
    ///
    /// # Errors
    /// The toolstack's or Xen's error, or what differs; the caller discards then.
    fn finish(&mut self, limits: Option<MemoryLimits>) -> Result<()>;

    /// Makes the domain the guest: renames it and unpauses it, unless it is to stay paused.  Does nothing if
    /// this was done already.  Releases the reservation.
    ///
    /// # Errors
    /// If the domain is gone, or does not run afterwards.
    fn unpause(&mut self, leave_paused: bool) -> Result<()>;

    /// Stops the toolstack's work, so that whoever feeds its [`Sink`] soon fails and can be waited for.
    /// [`Destination::discard`] must follow.
    fn cancel(&self);

    /// Discards the domain, whatever exists of it, and the reservation.  Does nothing if there is none.
    /// Never touches a running copy.
    ///
    /// # Errors
    /// If something of it still exists afterwards.
    fn discard(&mut self) -> Result<()>;

    /// Its current state.
    ///
    /// # Errors
    /// If Xen does not answer.
    fn presence(&mut self) -> Result<Presence>;
}
