//! The way between two agents: TCP, TLS, several connections, compression, a limit on bandwidth.
//!
//! | file | is |
//! |---|---|
//! | `socket` | a TCP connection on which nothing blocks for ever |
//! | [`tls`] | mutual TLS 1.3 with our own certification authority and nobody else's |
//! | `cipher` | which cipher is fastest here |
//! | [`frame`] | messages and headers, every length bounded before it is trusted |
//! | [`Sender`], [`receive`] | a [`Sink`](crate::job::Sink) at one end that comes out as calls of a [`Sink`](crate::job::Sink) at the other |
//! | `digests` | what a guest is to be like where it arrives, in frames |
//! | `lane` | one connection of the sender |
//! | `bucket` | the limit on bandwidth |

mod bucket;
mod cipher;
mod digests;
pub mod frame;
mod lane;
mod receive;
mod send;
mod socket;
pub mod tls;

use std::io::{Read, Write};

pub use receive::{Received, receive};
pub use send::Sender;
pub use socket::{Socket, Watch};

/// A connection in both directions: plain or TLS.
pub trait Duplex: Read + Write + Send {}

impl<T: Read + Write + Send> Duplex for T {}
