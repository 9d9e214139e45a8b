//! Why a journal does not say where its session stands.

use std::fmt;

/// What is wrong with a journal.  Nothing follows from one that is damaged but that an operator is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Both files are gone, or the disk does not give them.
    Unreadable(String),
    /// Something in the files was not done by a crash.
    Spoilt(String),
    /// It is whole, and has records that this agent does not know.
    Newer,
    /// It is whole, and what it says cannot be continued as it is on this disk.
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
