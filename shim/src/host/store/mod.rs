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

pub use connection::StoreConnection;
pub use replace::HostStore;
pub use tree_reader::TreeReader;
