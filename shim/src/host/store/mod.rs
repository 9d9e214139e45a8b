//! The asynchronous client of the real xenstored.
//!
//! | module | holds |
//! |---|---|
//! | [`pipe`] | a byte stream through a page |
//! | [`message`] | messages out of bytes, and bytes out of messages |
//! | [`connection`] | requests, replies and watch events over the domain's ring page |
//! | [`replace`] | the one operation that needs a transaction |
//! | [`tree_reader`] | reading whole subtrees |

pub mod connection;
pub mod message;
pub mod pipe;
pub mod replace;
pub mod tree_reader;

#[cfg(test)]
mod tests;

use xen_abi::Errno;

pub use connection::StoreConnection;
pub use replace::HostStore;
pub use tree_reader::TreeReader;

/// Whether the real store answers like this when something of the domain's is at its bound:
/// xenstored's `ENOSPC` (nodes, and bytes of one node) and `ENOMEM` (bytes in all, since 4.19), and
/// oxenstored's `EQUOTA`, which is read as `ENOSPC`.
pub fn is_full(error: Errno) -> bool {
    matches!(error, Errno::ENOSPC | Errno::ENOMEM)
}
