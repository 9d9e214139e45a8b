//! The host agent: moves a running Xen domain to another host, safe at every step.
//!
//! One agent, the daemon `unmovedd`, runs in the control domain of each host; the command `unmoved` asks
//! the one on its own host.  Agents are peers: for each job one of them is the source, the other the
//! destination.  The rooms:
//!
//! | module | is |
//! |---|---|
//! | [`cli`] | the command `unmoved` |
//! | [`job`] | the door between the halves: what a source and a destination of a guest can do, and how a job is watched, limited and aborted |
//! | [`session`] | the protocol between the two ends of a job: pure state machines |
//! | [`stock`] | moves with an agent at one end only: files, and Xen's own tools |
//! | `xen`, `save`, `receive` | the half that knows Xen: hypercalls and xenstore, a live domain as a source, the toolstack at the destination; [`XenHost`] is what the other half sees of it |
//! | `verify` | whether the copy at the destination is the guest, before the hand-over |
//! | [`transport`] | TLS, streams, compression, the limit on bandwidth |
//! | [`daemon`] | carries out what the sessions decide: jobs, peers, the local socket |
//! | [`journal`], [`audit`] | what must be on the disk, and who did what |
//! | [`capabilities`], [`predict`] | what both ends can do, and what is to be expected |
//! | [`config`], [`pki`] | the configuration, and the certification authority |
//! | [`policy`], [`storage`], [`text`] | what of a peer is believed: what its guests may have here, which disks are shared, what it says |
//!
//! What touches Xen is behind the traits of [`job`]; what decides is pure and knows neither Xen nor
//! sockets, so that every order of messages and crashes can be played through in a test.

pub mod audit;
pub mod capabilities;
pub mod cli;
pub mod config;
pub mod daemon;
mod file_lock;
mod host;
pub mod job;
pub mod journal;
pub mod pki;
pub mod policy;
pub mod predict;
mod receive;
mod records;
mod save;
pub mod session;
pub mod stock;
pub mod storage;
pub mod text;
pub mod transport;
mod verify;
mod xen;

pub use host::XenHost;
