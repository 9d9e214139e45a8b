//! Why a journal does not tell the state of its session.

use std::fmt;

/// What is wrong with a journal.  A damaged journal has only one effect: an operator is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Both files are missing or unreadable.
    Unreadable(String),
    /// The files contain something that no crash explains.
    Spoilt(String),
    /// It is intact, and has records of a newer format.
    Newer,
    /// It is intact, but cannot be continued on this disk.
    Unwritable(String),
}

impl fmt::Display for Damage {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(to, "cannot read the journal ({why})"),
            Self::Spoilt(what) => write!(to, "the journal is damaged ({what})"),
            Self::Newer => to.write_str(
                "the journal was written by a newer unmovedd: start that version again to continue",
            ),
            Self::Unwritable(why) => write!(
                to,
                "cannot write the journal ({why}): free some disk space and restart unmovedd to continue"
            ),
        }
    }
}
