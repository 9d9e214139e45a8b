//! What is done to a migration, when, and what came of it: the words of the table.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// The source's agent is killed.
    SourceAgent,
    /// The destination's agent is killed.
    DestinationAgent,
    /// The source is switched off.
    SourceHost,
    /// The destination is switched off.
    DestinationHost,
    /// The cable is pulled.
    Lan,
}

/// When it happens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// After this state is in the source's audit log; `None`: after the order.
    pub state: Option<&'static str>,
    /// So much later.
    pub later: Duration,
    /// Until all is put in order again.
    pub down: Duration,
}

/// What became of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It runs at the destination.
    Moved,
    /// It runs at the source.
    Stayed,
    /// It was on the host that was switched off.
    DiedWithItsHost,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Run {
    /// What happened.
    pub cut: Cut,
    /// When.
    pub moment: Moment,
    /// What became of the guest.
    pub end: End,
    /// Whether somebody had to decide.
    pub is_decided: bool,
    /// From when all was in order again until all jobs were over.
    pub settled: Duration,
    /// What the agents say of the job: source, destination.
    pub said: [String; 2],
}

impl Cut {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::SourceAgent,
        Self::DestinationAgent,
        Self::SourceHost,
        Self::DestinationHost,
        Self::Lan,
    ];
}

impl fmt::Display for Cut {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.pad(match self {
            Self::SourceAgent => "source's agent killed",
            Self::DestinationAgent => "destination's agent killed",
            Self::SourceHost => "source switched off",
            Self::DestinationHost => "destination switched off",
            Self::Lan => "LAN cut",
        })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.state.unwrap_or("the order");
        let (later, down) = (self.later.as_secs_f64(), self.down.as_secs_f64());
        write!(to, "{later:.2} s after {since}, for {down:.0} s")
    }
}

impl Run {
    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "cut": self.cut.to_string(),
            "moment": self.moment.to_string(),
            "end": format!("{:?}", self.end),
            "decided": self.is_decided,
            "settled_ms": u64::try_from(self.settled.as_millis()).unwrap_or(u64::MAX),
            "source": self.said[0],
            "destination": self.said[1],
        })
    }

    /// The row of the table that it counts for.
    #[must_use]
    pub fn row(&self) -> (Cut, &'static str) {
        (self.cut, self.moment.state.unwrap_or("copying"))
    }

    /// The column of the table that it counts for.
    #[must_use]
    pub const fn column(&self) -> &'static str {
        match (self.end, self.is_decided) {
            (End::Moved, false) => "moved",
            (End::Stayed, false) => "stayed",
            (End::DiedWithItsHost, false) => "died with its host",
            (End::Moved, true) => "moved, decided",
            (End::Stayed, true) => "stayed, decided",
            (End::DiedWithItsHost, true) => "died with its host, decided",
        }
    }
}
