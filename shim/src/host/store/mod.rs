//! The asynchronous client of the real xenstored.

pub mod pipe;
