//! The asynchronous client of the real xenstored.
