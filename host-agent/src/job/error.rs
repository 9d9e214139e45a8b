//! What can go wrong with a job, in the classes that decide what is done next.

use std::io;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a step failed.  Messages are for the operator: what happened, to what, and what the system said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody asked for it.
    #[error("aborted")]
    Aborted,
    /// It took longer than the operator allows.
    #[error("{0} took too long")]
    TimedOut(String),
    /// It will not be tried, for a reason that was found before anything was changed.
    #[error("{0}")]
    Refused(String),
    /// Xen, xenstore or the toolstack failed.
    #[error("{0}")]
    Xen(String),
    /// The peer, or the way to it, failed.
    #[error("{0}")]
    Peer(String),
    /// The operating system failed; says at what.
    #[error("{what}: {said}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said; part of the message, and so no source: chains of errors are printed whole.
        said: io::Error,
    },
}

impl Error {
    /// For `map_err`: says what was being done when the system failed.
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
