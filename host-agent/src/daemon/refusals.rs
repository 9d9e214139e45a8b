//! Who is refused is written down, but not without limit.
//!
//! Anybody who reaches the daemon's port can be refused as often as he likes, and the audit log is on the
//! disk that the journals need.  So only so many refusals a minute are told in full; of the others their
//! number is.

use std::time::{Duration, Instant};
use std::{io, thread};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::audit::Audit;

/// So many are told in full in each minute of those who are refused at a door.
const MOST: u32 = 30;
/// So many of what peers do, who are known: what a busy evacuation takes and more.
const OF_PEERS: u32 = 1200;
const MINUTE: Duration = Duration::from_secs(60);

/// The refusals of one door, or what peers do.
#[derive(Debug)]
pub(super) struct Refusals {
    minute: Mutex<Minute>,
    most: u32,
}

impl Default for Refusals {
    fn default() -> Self {
        Self::with(MOST)
    }
}

#[derive(Debug, Default)]
struct Minute {
    begun: Option<Instant>,
    told: u32,
    untold: u64,
}

/// What is to be written of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Telling {
    /// All of it; so many before it have not been told.
    Full(u64),
    /// That it is the first that is not told.
    Enough,
    Nothing,
}

impl Refusals {
    /// For what peers do.
    pub(super) fn of_peers() -> Self {
        Self::with(OF_PEERS)
    }

    fn with(most: u32) -> Self {
        Self {
            minute: Mutex::default(),
            most,
        }
    }

    /// Writes down who was refused, and why.
    pub(super) fn tell(&self, audit: &Audit, who: &str, why: &str) {
        if self.note(audit, who, "refused", json!({ "why": why })) {
            log::warn!("{who}: refused: {why}");
        }
    }

    /// Writes down what somebody did, with what belongs to it; `false` if that was only counted.
    pub(super) fn note(&self, audit: &Audit, who: &str, what: &str, more: Value) -> bool {
        // The lock is given up here: who waits for the disk keeps nobody else.
        let telling = self.minute.lock().count(Instant::now(), self.most);
        match telling {
            Telling::Full(untold) => {
                if untold > 0 {
                    log::warn!("{untold} more were {what}");
                    audit.write(
                        "agent",
                        &format!("{what} more"),
                        &json!({ "number": untold }),
                    );
                }
                audit.write(who, what, &more);
                true
            }
            Telling::Enough => {
                let why = "too many in a minute: only counted from here on";
                log::warn!("{what}: {why}");
                audit.write("agent", &format!("{what} more"), &json!({ "why": why }));
                false
            }
            Telling::Nothing => false,
        }
    }
}

impl Minute {
    fn count(&mut self, now: Instant, most: u32) -> Telling {
        let is_over = self
            .begun
            .is_none_or(|begun| now.saturating_duration_since(begun) >= MINUTE);
        if is_over {
            let untold = std::mem::take(&mut self.untold);
            self.begun = Some(now);
            self.told = 1;
            return Telling::Full(untold);
        }
        if self.told < most {
            self.told += 1;
            return Telling::Full(0);
        }
        self.untold += 1;
        if self.untold == 1 {
            Telling::Enough
        } else {
            Telling::Nothing
        }
    }
}

/// A connection could not be taken: what is wanting (files, memory) may be there again in a moment.
pub(super) fn unaccepted(error: &io::Error) {
    log::error!("cannot accept a connection: {error}");
    thread::sleep(Duration::from_millis(100));
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{MINUTE, MOST, Minute, Refusals, Telling};
    use crate::audit::Audit;

    #[test]
    fn so_many_are_told_and_the_others_counted() {
        let mut minute = Minute::default();
        let begun = Instant::now();
        for _ in 0..MOST {
            assert_eq!(minute.count(begun, MOST), Telling::Full(0));
        }
        assert_eq!(minute.count(begun, MOST), Telling::Enough);
        assert_eq!(minute.count(begun, MOST), Telling::Nothing);
        assert_eq!(minute.count(begun + MINUTE, MOST), Telling::Full(2));
        assert_eq!(minute.count(begun + MINUTE, MOST), Telling::Full(0));
        assert_eq!(minute.count(begun + MINUTE * 3, MOST), Telling::Full(0));
    }

    #[test]
    fn strangers_do_not_fill_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::open(folder.path());
        let refusals = Refusals::default();
        for _ in 0..10_000 {
            refusals.tell(&audit, "192.0.2.1:7", "no certificate");
        }
        let text = std::fs::read_to_string(folder.path().join("audit.log")).unwrap();
        assert!(text.lines().count() <= 2 * MOST as usize + 2);
    }
}
