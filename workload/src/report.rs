//! JSON lines on a console that others write to as well.
//!
//! A report is one line, `@unmoved {"n":7,"pid":2,"ev":"ready",…}`, handed to the kernel in one
//! write.  Kernel messages can still land in the middle of it, so a reader ([`parse_line`]) looks
//! for the mark anywhere in a line and tells a damaged report from no report; `n` counts the
//! reports of one process, so a lost one shows as a hole.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

/// What every report begins with.
pub const MARK: &str = "@unmoved ";

/// Where one process's reports go.  Cheap to clone; clones share the sink and the numbering.
#[derive(Clone)]
pub struct Reporter {
    sink: Arc<Mutex<Box<dyn Write + Send>>>,
    next: Arc<AtomicU64>,
    tag: Option<Arc<str>>,
}

impl Reporter {
    /// Reports go to `sink`; a sink that fails loses reports, never the program.
    pub fn new(sink: impl Write + Send + 'static) -> Self {
        Self {
            sink: Arc::new(Mutex::new(Box::new(sink))),
            next: Arc::default(),
            tag: None,
        }
    }

    /// The same sink, with `"re": tag` in every report: the answer to a tagged order.
    #[must_use]
    pub fn answering(&self, tag: Option<&str>) -> Self {
        Self {
            tag: tag.map(Arc::from),
            ..self.clone()
        }
    }

    /// Writes one report.  `body`'s members (if it is an object) follow the event's name; anything
    /// else becomes the member `value`.
    pub fn event(&self, name: &str, body: Value) {
        let mut line = Map::new();
        line.insert("pid".into(), std::process::id().into());
        line.insert("ev".into(), name.into());
        if let Some(tag) = &self.tag {
            line.insert("re".into(), tag.as_ref().into());
        }
        match body {
            Value::Object(members) => line.extend(members),
            Value::Null => {}
            other => {
                line.insert("value".into(), other);
            }
        }
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        // Numbered under the lock: the order on the wire is the order of the numbers.
        line.insert("n".into(), self.next.fetch_add(1, Ordering::Relaxed).into());
        let text = format!("{MARK}{}\n", Value::Object(line));
        let _ = sink.write_all(text.as_bytes());
        let _ = sink.flush();
    }

    /// Reports that something went wrong while doing `what`.
    pub fn error(&self, what: &str, why: impl std::fmt::Display) {
        self.event(
            "error",
            serde_json::json!({ "what": what, "why": why.to_string() }),
        );
    }
}

/// A line that carries the mark but not one whole JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged(pub String);

/// Finds the report in a line of console output.
///
/// `None`: the line is somebody else's.
///
/// # Errors
/// [`Damaged`] if the mark is there but what follows was torn by another writer.
pub fn parse_line(line: &str) -> Option<Result<Value, Damaged>> {
    let at = line.rfind(MARK)?;
    let text = line[at + MARK.len()..].trim_end();
    Some(match serde_json::from_str::<Value>(text) {
        Ok(value) if value.is_object() => Ok(value),
        _ => Err(Damaged(text.to_owned())),
    })
}

/// A sink that keeps what was written, for whoever wants to look at reports in the same process.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    /// All whole reports written so far.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes)
            .lines()
            .filter_map(|line| parse_line(line)?.ok())
            .collect()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Damaged, Kept, Reporter, parse_line};
    use serde_json::json;

    #[test]
    fn a_report_survives_noise_around_it() {
        let kept = Kept::default();
        let reporter = Reporter::new(kept.clone());
        reporter.event("ready", json!({"boot_ms": 12}));
        reporter.answering(Some("a1")).event("done", json!(5));
        let events = kept.events();
        assert_eq!(events[0]["ev"], "ready");
        assert_eq!(events[0]["boot_ms"], 12);
        assert_eq!(
            (&events[1]["n"], &events[1]["re"]),
            (&json!(1), &json!("a1"))
        );
        assert_eq!(events[1]["value"], 5);

        let noisy = "[    1.2] xvda: @unmoved {\"ev\":\"x\"}\r\n";
        assert_eq!(parse_line(noisy), Some(Ok(json!({"ev":"x"}))));
    }

    #[test]
    fn a_torn_report_is_told_from_none() {
        assert_eq!(parse_line("[ 0.1] Linux version"), None);
        let torn = "@unmoved {\"ev\":[    3.1] net eth0: up";
        assert!(matches!(parse_line(torn), Some(Err(Damaged(_)))));
    }
}
