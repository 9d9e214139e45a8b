//! Where the time of a test goes: each command, copy and wait of a host, with how long it took and how
//! much processor time the host used meanwhile, in `trace.log` of the host's folder.
//!
//! Other work on the machine stretches times, but hardly the processor time: a wait that used little of it
//! is a wait for a clock, and one worth looking at.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Ticks of `/proc` in a second; Linux has had no other number for programs.
const TICKS: f64 = 100.0;

/// The notes of one host; clones write to the same file.
#[derive(Clone, Debug)]
pub struct Trace {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: Mutex<Option<File>>,
    begun: Instant,
    process: u32,
}

impl Trace {
    /// Notes about the host that is this process, in `folder`.
    #[must_use]
    pub fn new(folder: &Path, process: u32) -> Self {
        let shared = Shared {
            // A host that is switched on again goes on with them.  Without them all works as well.
            file: Mutex::new(
                File::options()
                    .append(true)
                    .create(true)
                    .open(folder.join("trace.log"))
                    .ok(),
            ),
            begun: Instant::now(),
            process,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Something begins; it is noted when the value is dropped.
    #[must_use]
    pub fn begin(&self, what: impl Into<String>) -> Span {
        Span {
            trace: self.clone(),
            what: what.into(),
            begun: Instant::now(),
            used: self.used(),
        }
    }

    /// Seconds of processor time that the host has used.
    fn used(&self) -> f64 {
        processor_time(self.shared.process)
    }
}

/// Seconds of processor time that a process has used; 0 when it is gone.
pub(crate) fn processor_time(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"));
    stat.ok().and_then(|stat| used(&stat)).unwrap_or_default()
}

/// `utime` and `stime` of `/proc/PID/stat`; the name in parentheses may have blanks.
fn used(stat: &str) -> Option<f64> {
    let mut words = stat.rsplit_once(") ")?.1.split_ascii_whitespace().skip(11);
    let mut next = || words.next()?.parse::<u32>().ok();
    Some(f64::from(next()? + next()?) / TICKS)
}

/// Something under way.
#[derive(Debug)]
pub struct Span {
    trace: Trace,
    what: String,
    begun: Instant,
    used: f64,
}

impl Drop for Span {
    fn drop(&mut self) {
        let (took, used) = (self.begun.elapsed(), self.trace.used() - self.used);
        let at = self.begun.duration_since(self.trace.shared.begun);
        let what: String = self.what.chars().take(200).collect();
        let line = format!(
            "{:8.2} {:8.2} {used:8.2} {}\n",
            at.as_secs_f64(),
            took.as_secs_f64(),
            what.replace(['\n', '\r'], " ")
        );
        let file = self.trace.shared.file.lock();
        if let Some(file) = &mut *file.unwrap_or_else(PoisonError::into_inner) {
            // A full disk must not end the run.
            let _ = file.write_all(line.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Trace, used};

    #[test]
    fn what_ended_is_noted_with_its_times() {
        let folder = tempfile::tempdir().unwrap();
        let trace = Trace::new(folder.path(), std::process::id());
        drop(trace.begin("xl list\nof all"));
        drop(trace.begin("ready"));
        let text = fs::read_to_string(folder.path().join("trace.log")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 2 && lines[0].ends_with(" xl list of all"));
        assert_eq!(lines[1].split_whitespace().count(), 4);
    }

    #[test]
    fn processor_time_is_read() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 89 0 0 0 250 50 0 0 20 0";
        assert_eq!(used(stat), Some(3.0));
        assert_eq!(used(""), None);
    }
}
