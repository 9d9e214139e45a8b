//! Errors of a job, in the classes that decide what happens next.

use std::io;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a step failed.  Messages are for the operator: what happened, to what, and the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody aborted the job.
    #[error("aborted")]
    Aborted,
    /// A time limit was reached.
    #[error("{0} took too long")]
    TimedOut(String),
    /// Refused before anything was changed.
    #[error("{0}")]
    Refused(String),
    /// Xen, xenstore or the toolstack failed.
    #[error("{0}")]
    Xen(String),
    /// The peer, or the connection to it, failed.
    #[error("{0}")]
    Peer(String),
    /// The operating system failed.
    #[error("{what}: {said}")]
    Io {
        /// What was being done.
        what: String,
        /// The cause.  It is part of the message and therefore not a source: error chains are printed
        /// completely.
        said: io::Error,
    },
}

impl Error {
    /// For `map_err`: adds what was being done when the operating system failed.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |said| Self::Io { what, said }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::io;

    use super::Error;

    #[test]
    fn what_the_system_said_is_told_once() {
        let error = Error::io("cannot read x")(io::Error::other("gone"));
        assert_eq!(error.to_string(), "cannot read x: gone");
        assert!(error.source().is_none());
        assert_eq!(
            format!("{:#}", anyhow::Error::from(error)),
            "cannot read x: gone"
        );
    }
}
