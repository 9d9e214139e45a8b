//! Network services of the guest and the programs that drive them from a host.
//!
//! The guest only answers ([`services`]); what is lost, late, out of order or changed on the way is
//! found by the peer ([`tcp_peer`], [`udp_peer`]), for the peer does not migrate.

pub mod bulk;
pub mod configure;
pub mod datagram;
pub mod services;
pub mod stream;
pub mod tcp_peer;
pub(crate) mod thread;
pub mod udp_peer;

#[cfg(test)]
mod tests;

/// The guest's TCP echo.
pub const ECHO_PORT: u16 = 7007;
/// The guest's UDP counter.
pub const COUNTER_PORT: u16 = 7008;
/// The guest's control connection: orders in, reports out.
pub const CONTROL_PORT: u16 = 7009;
/// Sink and source of bulk data, on the guest and on the peer.
pub const BULK_PORT: u16 = 7010;

use std::io;

/// Whether an error only says that nothing happened within the time-out.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
