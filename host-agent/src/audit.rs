//! The audit log: who asked for what, and what came of it.  Lines are only ever added.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};

/// The log.
#[derive(Debug)]
pub struct Audit(Mutex<File>);

impl Audit {
    /// Opens or begins the log in this folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        Ok(Self(Mutex::new(options.open(folder.join("audit.log"))?)))
    }

    /// Adds a line: time, who (`uid 0`, `peer b`), what, and whatever belongs to it.
    pub fn write(&self, who: &str, what: &str, more: &Value) {
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let time = u64::try_from(time).unwrap_or(u64::MAX);
        let line = json!({ "time_ms": time, "who": who, "what": what, "more": more });
        let mut file = self.0.lock();
        // In one call, so that lines never mix.
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            log::error!("the audit log cannot be written: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Audit;
    use serde_json::{Value, json};

    #[test]
    fn lines_are_added_and_none_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..2 {
            let audit = Audit::open(folder.path()).unwrap();
            audit.write("uid 0", "migrate", &json!({ "job": number }));
        }
        let text = std::fs::read_to_string(folder.path().join("audit.log")).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["more"]["job"], 1);
    }
}
