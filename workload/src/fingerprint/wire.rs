//! A fingerprint as a series of bounded reports, and back.
//!
//! `fingerprint-part` reports hold `entries: [[key, value], …]`; a value that is too long for one
//! report goes on in the next as `["", more]`.  `fingerprint` ends the series with the number of
//! entries and the hash, so that a reader knows whether it has everything.

use serde_json::{Value, json};

use super::Fingerprint;
use crate::report::Reporter;

/// About how many bytes of keys and values one report carries.
const PART: usize = 800;

/// Reports a fingerprint; with `whole` false only its hashes.
pub fn send(reporter: &Reporter, print: &Fingerprint, whole: bool) {
    let mut parts = 0_u64;
    if whole {
        let mut entries: Vec<Value> = Vec::new();
        let mut size = 0;
        let mut flush = |entries: &mut Vec<Value>| {
            if !entries.is_empty() {
                reporter.event(
                    "fingerprint-part",
                    json!({ "part": parts, "entries": std::mem::take(entries) }),
                );
                parts += 1;
            }
        };
        for (key, value) in print.entries() {
            // Escaped text is ASCII, so any byte is a place to cut.
            let mut pieces = value.as_bytes().chunks(PART);
            let mut piece = pieces.next().unwrap_or_default();
            let mut name = key;
            loop {
                if size + name.len() + piece.len() > PART {
                    flush(&mut entries);
                    size = 0;
                }
                size += name.len() + piece.len() + 6;
                entries.push(json!([name, String::from_utf8_lossy(piece)]));
                let Some(next) = pieces.next() else { break };
                (piece, name) = (next, "");
            }
        }
        flush(&mut entries);
    }
    reporter.event(
        "fingerprint",
        json!({
            "parts": parts, "entries": print.len(), "sha256": print.hash(),
            "sections": print.section_hashes(),
        }),
    );
}

/// Collects reports into a fingerprint.
#[derive(Debug, Default)]
pub struct Collector {
    print: Fingerprint,
    last: String,
    next: u64,
}

/// Why a series of reports is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete(pub String);

impl Collector {
    /// Takes a report.  Others than a fingerprint's are ignored; the fingerprint when its end has
    /// come, and the collector is ready for the next one.
    ///
    /// # Errors
    /// [`Incomplete`] if parts are missing or damaged.
    pub fn take(&mut self, report: &Value) -> Option<Result<Fingerprint, Incomplete>> {
        match report["ev"].as_str()? {
            "fingerprint-part" => {
                if report["part"] == 0 {
                    *self = Self::default();
                }
                // A hole is noticed at the end, by the number of parts.
                self.next += u64::from(report["part"] == self.next);
                for entry in report["entries"].as_array()? {
                    let (Some(key), Some(value)) = (entry[0].as_str(), entry[1].as_str()) else {
                        continue;
                    };
                    if !key.is_empty() {
                        self.last = key.to_owned();
                    }
                    let text = self.print.entries.entry(self.last.clone()).or_default();
                    text.push_str(value);
                }
                None
            }
            "fingerprint" => {
                let this = std::mem::take(self);
                if report["parts"] == 0 {
                    return None;
                }
                Some(if report["parts"] != this.next {
                    Err(Incomplete(format!(
                        "{} of {} parts",
                        this.next, report["parts"]
                    )))
                } else if report["sha256"] != this.print.hash() {
                    Err(Incomplete("the hash does not fit the parts".into()))
                } else {
                    Ok(this.print)
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Collector, send};
    use crate::fingerprint::Fingerprint;
    use crate::report::{Kept, Reporter};
    use serde_json::Value;

    fn sent() -> (Fingerprint, Vec<Value>) {
        let mut print = Fingerprint::default();
        for index in 0..200 {
            print.set(
                &format!("section{}/key{index}", index % 3),
                vec![b'x'; index * 20],
            );
        }
        let kept = Kept::default();
        send(&Reporter::new(kept.clone()), &print, true);
        (print, kept.events())
    }

    #[test]
    fn a_fingerprint_survives_the_console() {
        let (print, events) = sent();
        assert!(events.len() > 100);
        let longest = events.iter().map(|event| event.to_string().len()).max();
        assert!(longest < Some(2000), "{longest:?}");
        let mut collector = Collector::default();
        let ends: Vec<_> = events
            .iter()
            .filter_map(|event| collector.take(event))
            .collect();
        assert_eq!(ends, [Ok(print)]);
    }

    #[test]
    fn a_lost_or_changed_part_is_noticed() {
        let (_, mut events) = sent();
        events.remove(5);
        let mut collector = Collector::default();
        let end = events.iter().find_map(|event| collector.take(event));
        assert!(end.expect("an end").is_err());

        let (_, mut events) = sent();
        events[4]["entries"][0][1] = "other".into();
        let end = events.iter().find_map(|event| collector.take(event));
        assert!(end.expect("an end").is_err());
    }
}
