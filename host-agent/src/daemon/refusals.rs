//! Who is refused is written down, but not without limit.
//!
//! Anybody who reaches the daemon's port can be refused as often as he likes, and the audit log is on the
//! disk that the journals need.  So only so many refusals a minute are told in full; of the others their
//! number is.

use std::time::{Duration, Instant};
use std::{io, thread};

use parking_lot::Mutex;
use serde_json::json;

use crate::audit::Audit;

/// So many are told in full in each minute.
const MOST: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);

/// The refusals of one door.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Minute>);

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
    /// Writes down who was refused, and why.
    pub(super) fn tell(&self, audit: &Audit, who: &str, why: &str) {
        // The lock is given up here: who waits for the disk keeps nobody else.
        let telling = self.0.lock().count(Instant::now());
        match telling {
            Telling::Full(untold) => {
                if untold > 0 {
                    log::warn!("{untold} more were refused");
                    audit.write("agent", "refused more", &json!({ "number": untold }));
                }
                log::warn!("{who}: refused: {why}");
                audit.write(who, "refused", &json!({ "why": why }));
            }
            Telling::Enough => {
                let what = "too many are refused: for a minute they are only counted";
                log::warn!("{what}");
                audit.write("agent", "refused more", &json!({ "why": what }));
            }
            Telling::Nothing => {}
        }
    }
}

impl Minute {
    fn count(&mut self, now: Instant) -> Telling {
        let is_over = self
            .begun
            .is_none_or(|begun| now.saturating_duration_since(begun) >= MINUTE);
        if is_over {
            let untold = std::mem::take(&mut self.untold);
            self.begun = Some(now);
            self.told = 1;
            return Telling::Full(untold);
        }
        if self.told < MOST {
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
    log::error!("a connection could not be taken: {error}");
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
            assert_eq!(minute.count(begun), Telling::Full(0));
        }
        assert_eq!(minute.count(begun), Telling::Enough);
        assert_eq!(minute.count(begun), Telling::Nothing);
        assert_eq!(minute.count(begun + MINUTE), Telling::Full(2));
        assert_eq!(minute.count(begun + MINUTE), Telling::Full(0));
        assert_eq!(minute.count(begun + MINUTE * 3), Telling::Full(0));
    }

    #[test]
    fn strangers_do_not_fill_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::open(folder.path()).unwrap();
        let refusals = Refusals::default();
        for _ in 0..10_000 {
            refusals.tell(&audit, "192.0.2.1:7", "no certificate");
        }
        let text = std::fs::read_to_string(folder.path().join("audit.log")).unwrap();
        assert!(text.lines().count() <= 2 * MOST as usize + 2);
    }
}
