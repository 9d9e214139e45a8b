//! The audit log: who asked for what, and how it ended.  Lines are only added.
//!
//! A log that cannot be written or opened stops nothing, because guests may be suspended and wait for this
//! daemon.  The daemon's own log gets the lines instead.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};

/// The log.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    /// `None` while the file cannot be written.
    file: Mutex<Option<File>>,
}

impl Audit {
    /// Opens the log in this folder, or creates it.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let path = folder.join("audit.log");
        let file = Mutex::new(open(&path).ok());
        Self { path, file }
    }

    /// Adds a line: time, who (`uid 0`, `peer b`), what, and the details.
    pub fn write(&self, who: &str, what: &str, more: &Value) {
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let time = u64::try_from(time).unwrap_or(u64::MAX);
        let line = json!({ "time_ms": time, "who": who, "what": what, "more": more });
        let mut held = self.file.lock();
        let file = held.take().map_or_else(|| open(&self.path), Ok);
        let written = file.and_then(|mut file| {
            // One call for each line, so that lines never mix.
            file.write_all(format!("{line}\n").as_bytes())?;
            Ok(file)
        });
        match written {
            Ok(file) => *held = Some(file),
            Err(error) => log::error!("the audit log cannot be written: {error}: {line}"),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::Audit;
    use serde_json::{Value, json};

    #[test]
    fn lines_are_added_and_none_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..2 {
            let audit = Audit::open(folder.path());
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

    #[test]
    fn a_log_that_cannot_be_opened_is_opened_when_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        std::fs::create_dir(&path).unwrap();
        let audit = Audit::open(folder.path());
        audit.write("uid 0", "migrate", &json!({ "job": 0 }));
        std::fs::remove_dir(&path).unwrap();
        audit.write("uid 0", "migrate", &json!({ "job": 1 }));
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 1);
    }
}
