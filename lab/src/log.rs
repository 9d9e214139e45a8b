//! Text that grows: a console, a command's output.  Kept in memory and in a file, and waited for.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use regex::Regex;

/// A growing text; clones are the same text.
#[derive(Clone, Debug, Default)]
pub struct Log {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct State {
    text: Vec<u8>,
    file: Option<File>,
    closed: bool,
}

impl Log {
    /// A log that is also written to a file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn to_file(path: &Path) -> Result<Self> {
        let log = Self::default();
        log.inner.lock().file = Some(File::create(path)?);
        Ok(log)
    }

    /// Add everything that comes from `source` until it ends, in a thread.
    pub fn read_from(&self, mut source: impl Read + Send + 'static) {
        let log = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 16384];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                log.append(&buffer[..count]);
            }
            log.close();
        });
    }

    /// Add bytes.
    pub fn append(&self, bytes: &[u8]) {
        let mut state = self.inner.lock();
        state.text.extend_from_slice(bytes);
        if let Some(file) = &mut state.file {
            // A full disk must not end the run; the text is still in memory.
            let _ = file.write_all(bytes);
        }
        self.inner.grown.notify_all();
    }

    /// Nothing will be added any more; waiters give up.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.inner.grown.notify_all();
    }

    /// All so far.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.inner.lock().text).into_owned()
    }

    /// All so far, as it came.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.inner.lock().text.clone()
    }

    /// How many bytes there are so far; for [`Log::wait_for_after`].
    #[must_use]
    pub fn mark(&self) -> usize {
        self.inner.lock().text.len()
    }

    /// Wait until the text matches, and give the first match back.
    ///
    /// # Errors
    /// If the limit passes or the log is closed first; the error shows the last lines.
    pub fn wait_for(&self, pattern: &str, limit: Duration) -> Result<String> {
        self.wait_for_after(0, pattern, limit)
    }

    /// Wait until what came after `mark` matches, and give the first match back.
    ///
    /// # Errors
    /// If the limit passes or the log is closed first; the error shows the last lines.
    pub fn wait_for_after(&self, mark: usize, pattern: &str, limit: Duration) -> Result<String> {
        let regex = Regex::new(pattern)?;
        let end = Instant::now() + limit;
        let mut state = self.inner.lock();
        loop {
            // Lossy text of the tail only: a console can be long.
            let tail = String::from_utf8_lossy(state.text.get(mark..).unwrap_or_default());
            if let Some(found) = regex.find(&tail) {
                return Ok(found.as_str().to_owned());
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let lines: Vec<&str> = tail.lines().rev().take(8).collect();
                let lines: Vec<&str> = lines.into_iter().rev().collect();
                let why = if state.closed {
                    "the source ended".to_owned()
                } else {
                    format!("{} s passed", limit.as_secs())
                };
                bail!(
                    "waited for /{pattern}/ but {why}; last lines:\n{}",
                    lines.join("\n")
                );
            }
            state = self
                .inner
                .grown
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Wait for more than `mark` bytes; the new ones, or `None` when the log is closed or the limit passed.
    #[must_use]
    pub fn more(&self, mark: usize, limit: Duration) -> Option<Vec<u8>> {
        let end = Instant::now() + limit;
        let mut state = self.inner.lock();
        loop {
            if let Some(new @ [_, ..]) = state.text.get(mark..) {
                return Some(new.to_vec());
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return None;
            }
            state = self
                .inner
                .grown
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Is it closed?
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.lock().closed
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Log;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_waiter_sees_what_is_added_later() {
        let log = Log::default();
        let writer = log.clone();
        let thread = thread::spawn(move || {
            for part in ["boot", "ed 4", "2 ok\n"] {
                writer.append(part.as_bytes());
            }
        });
        let found = log
            .wait_for(r"booted (\d+) ok", Duration::from_secs(20))
            .unwrap();
        assert_eq!(found, "booted 42 ok");
        thread.join().unwrap();
    }

    #[test]
    fn a_mark_hides_the_past() {
        let log = Log::default();
        log.append(b"ready\n");
        let mark = log.mark();
        let error = log
            .wait_for_after(mark, "ready", Duration::ZERO)
            .unwrap_err();
        assert!(error.to_string().contains("0 s passed"));
    }

    #[test]
    fn a_closed_log_ends_the_wait() {
        let log = Log::default();
        log.append(b"panic!\n");
        log.close();
        let error = log.wait_for("login", Duration::from_secs(600)).unwrap_err();
        assert!(error.to_string().contains("panic!"));
    }
}
