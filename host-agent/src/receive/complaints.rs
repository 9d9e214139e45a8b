//! The toolstack's standard error: it says why something failed, which the operator needs to know.

use std::io::Read;
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use crate::job::{Error, Result};
use crate::xen::toolstack;

/// Bytes that are kept.
const MOST: usize = 64 << 10;

/// The last part of the output.
#[derive(Clone, Debug, Default)]
pub(super) struct Complaints {
    said: Arc<Mutex<String>>,
}

impl Complaints {
    /// Collects and logs the output until it ends.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(super) fn listen(mut from: impl Read + Send + 'static) -> Result<Self> {
        let new = Self::default();
        let said = new.said.clone();
        let work = move || {
            let mut piece = [0; 4096];
            while let Ok(len @ 1..) = from.read(&mut piece) {
                let text = String::from_utf8_lossy(&piece[..len]);
                log::debug!("xl: {}", text.trim_end());
                let mut said = said.lock();
                said.push_str(&text);
                if said.len() > 2 * MOST {
                    let keep = said.ceil_char_boundary(said.len() - MOST);
                    said.drain(..keep);
                }
            }
        };
        let thread = thread::Builder::new().name("xl".to_owned());
        thread
            .spawn(work)
            .map_err(Error::io("cannot start a thread"))?;
        Ok(new)
    }

    /// Everything that is kept, for a log.
    pub(super) fn text(&self) -> String {
        self.said.lock().clone()
    }

    /// Adds the toolstack's message to an error that follows from it.
    pub(super) fn explain(&self, error: Error) -> Error {
        if matches!(error, Error::Aborted) {
            return error;
        }
        let said = self.said.lock();
        if !said.contains("rror") {
            return error;
        }
        Error::Xen(format!("{error}; xl said: {}", toolstack::complaint(&said)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::time::{Duration, Instant};

    use super::{Complaints, MOST};
    use crate::job::Error;

    fn heard(text: &str) -> Complaints {
        let complaints = Complaints::listen(Cursor::new(text.to_owned())).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        // The listening thread drops its half at the end.
        while std::sync::Arc::strong_count(&complaints.said) > 1 && Instant::now() < until {
            std::thread::yield_now();
        }
        complaints
    }

    #[test]
    fn an_error_is_explained_by_what_was_said_before() {
        let lost = || Error::Xen("it has ended".to_owned());
        let quiet = heard("all is well\n").explain(lost()).to_string();
        assert!(!quiet.contains("xl said"), "{quiet}");
        let loud = heard("libxl: error: no memory\n").explain(lost());
        assert!(loud.to_string().contains("no memory"), "{loud}");
    }

    #[test]
    fn only_the_last_is_kept() {
        let kept = heard(&"ä".repeat(4 * MOST)).text();
        assert!(
            (MOST..=2 * MOST + 4096).contains(&kept.len()),
            "{}",
            kept.len()
        );
    }
}
