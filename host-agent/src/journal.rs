//! The journal on the disk: one file for each session, one line for each record.
//!
//! A record is in force when its line is whole and both file and folder have been told to the disk
//! (`fsync`); only then [`Journal::append`] returns.  A line is the CRC-32 of the text behind it, a space
//! and JSON.  A crash can leave the last line torn: it was never in force, and is cut off when the file is
//! opened again.  Anything else that is not right was not done by a crash, and is refused.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::session::SessionId;

/// The end of a journal's file name.
const SUFFIX: &str = "journal";
/// The end of the name of one that was put away.
const DONE: &str = "done";

/// A session's journal.
#[derive(Debug)]
pub struct Journal<R> {
    path: PathBuf,
    file: Option<File>,
    /// Where the next line begins.
    end: u64,
    record: PhantomData<R>,
}

impl<R: Serialize + DeserializeOwned> Journal<R> {
    /// A new journal; the file is made with the first record.
    #[must_use]
    pub fn new(folder: &Path, session: SessionId) -> Self {
        Self {
            path: folder.join(format!("{session}.{SUFFIX}")),
            file: None,
            end: 0,
            record: PhantomData,
        }
    }

    /// Reads a journal.
    ///
    /// # Errors
    /// If it cannot be read, or anything but its last line is damaged.
    pub fn open(folder: &Path, session: SessionId) -> io::Result<(Self, Vec<R>)> {
        let mut journal = Self::new(folder, session);
        let bytes = fs::read(&journal.path)?;
        let mut records = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = rest.iter().position(|byte| *byte == b'\n');
            let (line, after) = match length {
                Some(length) => (&rest[..length], &rest[length + 1..]),
                None => (rest, &rest[rest.len()..]),
            };
            match parse(line) {
                Some(record) if length.is_some() => records.push(record),
                _ if after.is_empty() => break,
                _ => {
                    let what = format!(
                        "{}: line {} is damaged",
                        journal.path.display(),
                        records.len() + 1
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
            }
            journal.end += (line.len() + 1) as u64;
            rest = after;
        }
        Ok((journal, records))
    }

    /// How long ago the last record was written, by the clock of the host.
    ///
    /// # Errors
    /// If there is none.
    pub fn age(&self) -> io::Result<Duration> {
        age(&self.path)
    }

    /// Writes a record; it is on the disk when this returns.
    ///
    /// # Errors
    /// If it is not, or may not be.
    pub fn append(&mut self, record: &R) -> io::Result<()> {
        let json = serde_json::to_string(record)?;
        let line = format!("{:08x} {json}\n", crc32(json.as_bytes()));
        let (file, is_new) = match self.file.take() {
            Some(file) => (file, false),
            None => {
                let mut options = OpenOptions::new();
                // It holds the token: nobody else is to read it.
                options.write(true).create(true).mode(0o600);
                (options.open(&self.path)?, true)
            }
        };
        let mut file = file;
        // Over whatever an append that failed has left.
        file.set_len(self.end)?;
        file.seek(SeekFrom::Start(self.end))?;
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        if is_new && let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        self.end += line.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    /// Lets go of the file until the next record: sessions that are over stay known, files are few.
    pub fn close(&mut self) {
        self.file = None;
    }

    /// Puts the journal away: the session is over at both ends.
    ///
    /// # Errors
    /// If the file cannot be renamed.
    pub fn retire(&mut self) -> io::Result<()> {
        self.file = None;
        fs::rename(&self.path, self.path.with_extension(DONE))
    }
}

/// Makes a folder for journals, one that a loss of power does not take away.
///
/// # Errors
/// If it cannot be made.
pub fn folder(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let missing = path.ancestors().filter(|folder| !folder.exists());
    let parents: Vec<_> = missing.filter_map(Path::parent).collect();
    fs::create_dir_all(&path)?;
    parents
        .into_iter()
        .try_for_each(|parent| File::open(parent)?.sync_all())
}

/// Removes journals that were put away, and written last, longer ago than this.
///
/// # Errors
/// If the folder cannot be read, or a file cannot be removed.
pub fn prune(folder: &Path, kept: Duration) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == DONE) && age(&path)? > kept {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// A clock that was set back since makes a file young, and so it stays longer.
fn age(path: &Path) -> io::Result<Duration> {
    Ok(fs::metadata(path)?
        .modified()?
        .elapsed()
        .unwrap_or_default())
}

/// The sessions whose journals are in this folder.
///
/// # Errors
/// If the folder cannot be read.
pub fn sessions(folder: &Path) -> io::Result<Vec<SessionId>> {
    let mut sessions = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_journal = path.extension().is_some_and(|suffix| suffix == SUFFIX);
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if let (true, Some(Ok(session))) = (is_journal, stem.map(str::parse)) {
            sessions.push(session);
        }
    }
    sessions.sort_unstable();
    Ok(sessions)
}

fn parse<R: DeserializeOwned>(line: &[u8]) -> Option<R> {
    let line = std::str::from_utf8(line).ok()?;
    let (sum, json) = line.split_once(' ')?;
    let is_right = u32::from_str_radix(sum, 16).ok()? == crc32(json.as_bytes());
    is_right.then(|| serde_json::from_str(json).ok())?
}

/// The CRC-32 of IEEE 802.3, bit by bit: a journal has a dozen short lines.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xEDB8_8320 * (sum & 1))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{DONE, Journal, crc32, prune, sessions};
    use crate::session::{SessionId, SourceRecord};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    const SESSION: SessionId = SessionId::new([3; 16]);

    #[test]
    fn journals_that_were_put_away_are_kept_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let month = Duration::from_secs(30 * 24 * 3600);
        for (name, age) in [
            ("old.done", month * 2),
            ("new.done", month / 2),
            ("old.journal", month * 2),
        ] {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        prune(folder.path(), month).unwrap();
        assert!(!folder.path().join("old").with_extension(DONE).exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    fn held(reason: &str) -> SourceRecord {
        SourceRecord::Held {
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn the_sum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn records_are_found_again_and_a_torn_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(folder.path(), SESSION);
        let records = [
            SourceRecord::Suspending,
            SourceRecord::HandedOver,
            held("x"),
        ];
        for record in &records {
            journal.append(record).unwrap();
            journal.close();
        }
        assert_eq!(sessions(folder.path()).unwrap(), [SESSION]);
        let path = folder.path().join(format!("{SESSION}.journal"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let whole = fs::read(&path).unwrap();
        let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let starts: Vec<_> = (0..whole.len())
            .filter(|at| *at == 0 || whole[at - 1] == b'\n')
            .collect();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, found) =
                Journal::<SourceRecord>::open(folder.path(), SESSION).unwrap();
            let expected = starts.iter().skip(1).filter(|start| **start <= cut).count()
                + usize::from(cut == whole.len());
            assert_eq!(found, records[..expected], "cut at {cut}");
            journal.append(&held("after")).unwrap();
            let (_, found) = Journal::<SourceRecord>::open(folder.path(), SESSION).unwrap();
            assert_eq!(found.last(), Some(&held("after")));
            assert_eq!(found.len(), expected + 1);
        }
        let mut damaged = whole;
        damaged[second] ^= 1;
        fs::write(&path, damaged).unwrap();
        Journal::<SourceRecord>::open(folder.path(), SESSION).unwrap_err();
    }

    #[test]
    fn a_session_that_is_over_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(folder.path(), SESSION);
        journal.append(&SourceRecord::Done).unwrap();
        journal.retire().unwrap();
        assert_eq!(sessions(folder.path()).unwrap(), []);
    }
}
