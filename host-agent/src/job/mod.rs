//! The door between the two halves of the agent: what can be done with a guest at either end.
//!
//! One half knows Xen: it reads a live domain, and has one built by the stock toolstack.  The other half
//! knows the peer: session, journal, transport.  They meet only in the traits of this module.  The order
//! in which a job uses them (the session's rounds; *journal* means written and on the disk):
//!
//! | | destination | source |
//! |---|---|---|
//! | meet | [`Host::facts`] | [`Source::prepare`]: looks, has no effect |
//! | reserve | journal; [`Destination::reserve`] | |
//! | transfer | [`Destination::receive`], bytes into its [`Sink`] | [`Source::copy_live`] into the wire's [`Sink`]; journal; [`Source::copy_rest`] |
//! | built | [`Destination::finish`]: the whole domain stands there, paused; journal | |
//! | hand over | | journal with the fencing token: **the point of no return** |
//! | take over | journal with that token; [`Destination::unpause`] | |
//! | release | | journal; [`Source::destroy`] |
//!
//! Up to the point of no return the guest is the source's: whatever fails, [`Source::resume_here`] and
//! [`Destination::discard`].  After it the guest is the destination's, and the source keeps its copy
//! paused until the destination has said that it runs.
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

/// A domain as a list shows it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct DomainEntry {
    /// Name in the toolstack.
    pub name: String,
    /// Number on this host.
    pub domid: u32,
    /// UUID, in the usual form with hyphens.
    pub uuid: String,
    /// Memory it has now.
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
    /// Memory that a new domain could have.
    pub free_memory_bytes: u64,
    /// Physical CPUs.
    pub cpus: u32,
    /// Version of the libxc stream that the toolstack writes.
    pub stream_version: u32,
}

/// What a domain needs at its destination; goes over the wire and into the journal.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Needs {
    /// Name at the source.
    pub name: String,
    /// Name at the destination (another one only if asked for).
    pub destination_name: String,
    /// UUID.
    pub uuid: String,
    /// Number at the source; the same host may be both ends, then it tells the two copies apart.
    pub source_domid: u32,
    /// Most memory that the domain may ever have, its overhead included.
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

/// What [`Source::prepare`] found.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Prepared {
    /// What the destination must have.
    pub needs: Needs,
    /// What the guest has done to its memory lately.
    pub estimate: Estimate,
}

/// How a guest behaves, measured on the live domain; predictions are made from it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Estimate {
    /// Frames with content that the first round sends.
    pub pages: u64,
    /// Of these, the part that is all zero, from 0 to 1.
    pub zero_share: f64,
    /// What Zstandard makes of the others, from 0 to 1.
    pub compressed_share: f64,
    /// How fast it does that, in bytes per second.
    pub compress_bytes_per_second: f64,
    /// How fast the guest's memory can be read, in bytes per second.
    pub read_bytes_per_second: f64,
    /// Distinct frames written per second, while the guest was watched.
    pub dirty_pages_per_second: f64,
    /// Frames that are written again and again: what every round will find dirty.
    pub hot_pages: u64,
    /// Bytes that are sent whatever the guest does: headers, CPU and device state.
    pub constant_bytes: u64,
}

/// How much memory a domain is asked to have, and how much it may have.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct MemoryLimits {
    /// What its toolstack asks it to have, KiB (`memory/target` in xenstore).
    pub target_kib: u64,
    /// What Xen lets it have, pages (`max_pages` of `XEN_DOMCTL_getdomaininfo`).
    pub most_pages: u64,
}

/// What a source did, for the report.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Copied {
    /// Rounds over the memory, the last (with the guest suspended) included.
    pub rounds: u32,
    /// Pages sent, every repetition counted.
    pub pages: u64,
    /// From the request until the guest was suspended.
    pub suspend_ms: f64,
    /// The limits of its memory in the end, which an operator may have changed meanwhile.
    pub limits: Option<MemoryLimits>,
}

/// Where a domain stands when an agent looks for it again.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// There is none.
    Absent,
    /// Under construction, or left half-built.
    Partial,
    /// Whole, and no vCPU runs; a source that is suspended is this too.
    Paused,
    /// Running.
    Running,
}

/// A move that no journal tells of: after the death of its process, only a mark on its domain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standalone {
    /// To a file.
    Save,
    /// To another host, which has only Xen's own tools.
    Send,
}

/// A host: where sources and destinations come from.
pub trait Host: Send + Sync {
    /// What it tells its peers.
    ///
    /// # Errors
    /// If Xen or the toolstack does not answer.
    fn facts(&self) -> Result<HostFacts>;

    /// What it knows of the storage behind a disk, which a domain's configuration names so.
    fn storage(&self, disk: &str) -> Storage;

    /// Anything that makes this host unable to take part now.  May take a while.
    fn problems(&self) -> Vec<String>;

    /// Its domains, domain 0 left out.
    ///
    /// # Errors
    /// If Xen or the toolstack does not answer.
    fn domains(&self) -> Result<Vec<DomainEntry>>;

    /// What domains on their way to this host hold of it, whoever brings them.
    fn reservations(&self) -> &Reservations;

    /// Opens the running domain of this name (or number) as a source.  Has no effect on it.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is none, or it cannot be moved.
    fn source(&self, domain: &str) -> Result<Box<dyn Source>>;

    /// As [`Host::source`], for a move without a journal: a guest that this leaves suspended is marked so
    /// that an operator, and nobody else, may let it go on.
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

    /// Takes up the source of a job that another run of the agent began.  `needs` is what
    /// [`Source::prepare`] gave then.  Finds the domain by UUID *and* `source_domid`, by whatever
    /// name it has now; an absent domain is no error.
    ///
    /// # Errors
    /// If Xen or the toolstack does not answer.
    fn find_source(&self, needs: &Needs) -> Result<Box<dyn Source>>;

    /// Takes up the destination of a job that another run of the agent began; `job` and `needs` are
    /// those that [`Destination::reserve`] got.  An absent domain is no error.  The caller has restored
    /// the job's [reservation](Reservations::restore) and releases it.
    ///
    /// # Errors
    /// If Xen or the toolstack does not answer.
    fn find_destination(&self, job: &str, needs: &Needs) -> Result<Box<dyn Destination>>;
}

/// A guest at its source.
pub trait Source: Send {
    /// The guest's UUID.
    fn uuid(&self) -> &str;

    /// Looks at the guest, and watches it for a moment to see how fast it dirties memory.  Has no effect
    /// on it that outlasts the source, and none but log-dirty mode.
    ///
    /// # Errors
    /// [`Error::Refused`] with what stands in the way.
    fn prepare(&mut self, options: &JobOptions, control: &Control) -> Result<Prepared>;

    /// Sends everything up to and with the last round with the guest running: stream headers, static
    /// data, memory round by round, with a [`Sink::barrier`] after each.  Returns when another round
    /// does not pay any more, or, as the options say, on the time-out.
    ///
    /// # Errors
    /// [`Error::Aborted`], [`Error::TimedOut`], whatever the sink gives, or what Xen said.
    fn copy_live(&mut self, sink: &dyn Sink, control: &Control) -> Result<()>;

    /// Suspends the guest, sends the rest of its memory and its state, and the end of the stream, then
    /// a [`Sink::barrier`], and, if [`JobOptions::verify`] says so, [digests](Sink::digests) of all that.
    /// Afterwards the guest stands still.
    ///
    /// # Errors
    /// As [`Source::copy_live`].  The guest may be suspended or not; [`Source::resume_here`] sees to it.
    fn copy_rest(&mut self, sink: &dyn Sink, control: &Control) -> Result<Copied>;

    /// Makes the guest go on here, as if nothing had been: resumed if an agent had suspended it, log-dirty
    /// mode off if an agent had switched it on, its name its own.  Does nothing for a guest that runs.
    /// May be called again.
    ///
    /// # Errors
    /// If it is not there any more, does not run afterwards, or was suspended by somebody else.
    fn resume_here(&mut self) -> Result<()>;

    /// Destroys the copy here: the guest runs at the destination.  Does nothing if it is gone already.
    ///
    /// # Errors
    /// If it is still there afterwards.
    fn destroy(&mut self) -> Result<()>;

    /// Where it stands now.
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

    /// Starts the toolstack and returns where the stream goes: from its image header on, the `xl` save
    /// header left out (it is made here from [`Needs::config`]).
    ///
    /// # Errors
    /// If the toolstack cannot be started.
    fn receive(&mut self, control: &Control) -> Result<Arc<dyn Sink>>;

    /// Waits until the toolstack has built the whole domain, paused.  No sink is used any more.  If the sink has
    /// got [digests](Sink::digests), compares the domain with them.  Then sets the limits of its memory, those of
    /// its configuration if none are given.
    ///
    /// # Errors
    /// What the toolstack or Xen said, or what differs; the caller discards then.
    fn finish(&mut self, limits: Option<MemoryLimits>) -> Result<()>;

    /// Makes the domain the guest: it gets its own name and runs, or stays paused if that was asked for.
    /// Does nothing if this was done already.  Releases the reservation.
    ///
    /// # Errors
    /// If the domain is not there, or does not run afterwards.
    fn unpause(&mut self, leave_paused: bool) -> Result<()>;

    /// Ends the toolstack's work on what is being received, so that whoever feeds its [`Sink`] fails soon
    /// and can be waited for; to be followed by [`Destination::discard`].
    fn cancel(&self);

    /// Throws away whatever there is of the domain, and the reservation.  Does nothing if there is nothing.
    /// Never touches a copy that runs.
    ///
    /// # Errors
    /// If something of it is still there afterwards.
    fn discard(&mut self) -> Result<()>;

    /// Where it stands now.
    ///
    /// # Errors
    /// If Xen does not answer.
    fn presence(&mut self) -> Result<Presence>;
}
