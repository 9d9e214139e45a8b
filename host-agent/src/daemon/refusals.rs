//! Logs refusals, but not without limit.
//!
//! Anyone who reaches the daemon's port can be refused any number of times, and the audit log shares a disk
//! with the journals.  So only some refusals in each minute are logged in full; the others are counted.

use std::time::{Duration, Instant};
use std::{io, thread};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::audit::Audit;

/// Refusals of one kind that are logged in full each minute.
const MOST: u32 = 30;
/// Calls of peers that are logged in full each minute: more than a busy evacuation needs.
const OF_PEERS: u32 = 1200;
const MINUTE: Duration = Duration::from_secs(60);

/// The limit for one kind of refusals, or for the calls of peers.
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

/// How to log a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Telling {
    /// In full, after this many that were only counted.
    Full(u64),
    /// As the first that is only counted.
    Enough,
    Nothing,
}

impl Refusals {
    /// For calls of peers.
    pub(super) fn of_peers() -> Self {
        Self::with(OF_PEERS)
    }

    fn with(most: u32) -> Self {
        Self {
            minute: Mutex::default(),
            most,
        }
    }

    /// Logs a refusal.
    pub(super) fn tell(&self, audit: &Audit, who: &str, why: &str) {
        if self.note(audit, who, "refused", json!({ "why": why })) {
            log::warn!("{who}: refused: {why}");
        }
    }

    /// Logs an action with its details; `false` if it was only counted.
    pub(super) fn note(&self, audit: &Audit, who: &str, what: &str, more: Value) -> bool {
        // The lock is released here, so that a slow disk delays nobody else.
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

/// Logs that a connection could not be accepted; what is missing (files, memory) may be available again in a
/// moment.
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
