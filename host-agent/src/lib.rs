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
//!
//! What touches Xen is behind the traits of [`job`]; what decides is pure and knows neither Xen nor
//! sockets, so that every order of messages and crashes can be played through in a test.

pub mod cli;
pub mod job;
pub mod session;
