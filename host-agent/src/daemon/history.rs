//! Measurements of earlier jobs with a peer, used for predictions.
//!
//! What a prediction cannot know (how long the destination's toolstack builds, what else the processors do)
//! is similar for all migrations to the same host.  So each predicted job corrects the next one.  The file
//! has the last few for each peer.  It serves nothing else: read and write errors are only logged.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::predict::Past;

/// Number of jobs that are kept for each peer.
const REMEMBERED: usize = 5;

type Peers = BTreeMap<String, Vec<Past>>;

/// The file and its contents.
#[derive(Debug)]
pub(super) struct History {
    path: PathBuf,
    peers: Mutex<Peers>,
}

impl History {
    /// Reads the history in this folder, if there is one.
    pub(super) fn open(folder: &Path) -> Self {
        let path = folder.join("history.json");
        let mut peers = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                log::warn!("{}: {error}; starting a new one", path.display());
                Peers::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Peers::new(),
            Err(error) => {
                log::warn!("{}: {error}", path.display());
                Peers::new()
            }
        };
        for known in peers.values_mut() {
            known.retain(Past::is_sound);
        }
        peers.retain(|_, known| !known.is_empty());
        Self {
            path,
            peers: Mutex::new(peers),
        }
    }

    /// The expected figures for a migration to this peer: the median of each earlier figure, or that of all
    /// peers if there is none for this one.
    pub(super) fn of(&self, peer: &str) -> Past {
        let peers = self.peers.lock();
        let known: Vec<&Past> = match peers.get(peer) {
            Some(known) => known.iter().collect(),
            None => peers.values().flatten().collect(),
        };
        let median = |figure: fn(&Past) -> f64| {
            let mut all: Vec<f64> = known.iter().map(|past| figure(past)).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied()
        };
        let unknown = Past::default();
        Past {
            preparing_ms: median(|past| past.preparing_ms).unwrap_or(unknown.preparing_ms),
            slowness: median(|past| past.slowness).unwrap_or(unknown.slowness),
            blackout_ms: median(|past| past.blackout_ms).unwrap_or(unknown.blackout_ms),
        }
    }

    /// Records a finished job.
    pub(super) fn add(&self, peer: &str, past: Past) {
        let mut peers = self.peers.lock();
        let known = peers.entry(peer.to_owned()).or_default();
        if known.len() >= REMEMBERED {
            known.remove(0);
        }
        known.push(past);
        if let Err(error) = self.write(&peers) {
            log::warn!("{}: {error}", self.path.display());
        }
    }

    /// A reader finds the old file or the new one.
    fn write(&self, peers: &Peers) -> io::Result<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(peers)?)?;
        fs::rename(new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::{History, REMEMBERED};
    use crate::predict::Past;

    fn past(slowness: f64) -> Past {
        Past {
            slowness,
            ..Past::default()
        }
    }

    #[test]
    fn the_median_of_the_last_jobs_counts_and_outlives_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path());
        assert_eq!(history.of("b"), Past::default());
        for slowness in [9.0, 9.0, 9.0, 2.0, 3.0, 4.0, 5.0, 6.0] {
            history.add("b", past(slowness));
        }
        let again = History::open(folder.path());
        assert_eq!(again.of("b").slowness, 4.0);
        assert_eq!(again.peers.lock()["b"].len(), REMEMBERED);
        assert_eq!(again.of("nobody yet"), again.of("b"));
    }

    #[test]
    fn figures_that_cannot_be_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"b": [{"preparing_ms": -1, "slowness": 1, "blackout_ms": 1},
                             {"preparing_ms": 5, "slowness": 3, "blackout_ms": 1},
                             {"preparing_ms": 1, "slowness": 1e300, "blackout_ms": 1}],
                       "c": [{"preparing_ms": 1, "slowness": 0, "blackout_ms": 1}]}"#;
        std::fs::write(folder.path().join("history.json"), text).unwrap();
        let history = History::open(folder.path());
        assert_eq!(history.of("b").preparing_ms, 5.0);
        assert_eq!(history.of("c"), history.of("b"));
    }

    #[test]
    fn a_file_that_makes_no_sense_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("history.json"), "[1]").unwrap();
        let history = History::open(folder.path());
        assert_eq!(history.of("b"), Past::default());
        history.add("b", past(2.0));
        assert_eq!(History::open(folder.path()).of("b").slowness, 2.0);
    }
}
