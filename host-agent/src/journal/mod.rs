//! The journal on the disk: two files for each session, with one line for each record in both.
//!
//! A record is in force when its line is complete in both files and they and the folder are on the disk
//! (`fsync`).  [`Journal::append`] returns only then.  [`reading`] tells what a crash can leave from damage;
//! [`line`] describes a line.
//!
//! The agent never guesses at damage.  An operator decides, and the decision starts the journal
//! [anew](Journal::begin_anew), as the next generation, with the damaged files kept beside it.

mod damage;
mod line;
mod reading;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::reading::{Merged, Side, merge};
use crate::session::SessionId;

pub use self::damage::Damage;

/// Suffixes of the two files, in the order in which they are written.
const SUFFIXES: [&str; 2] = ["journal", "mirror"];
/// Suffix of a journal that was set aside.
const DONE: &str = "done";
/// Suffix of a journal that could not be continued.
const DAMAGED: &str = "damaged";
/// Suffix of a journal that is being rewritten.
const NEW: &str = "new";
/// Largest file that an agent writes: a dozen records, with a guest's configuration in one.
const LONGEST: u64 = 64 << 20;

/// A session's journal.
#[derive(Debug)]
pub struct Journal<R> {
    paths: [PathBuf; 2],
    files: Option<[File; 2]>,
    generation: u32,
    /// All records.
    words: Vec<String>,
    /// The files have these records, and perhaps something incomplete after them.
    is_settled: bool,
    /// The files are damaged, and are kept when the journal is rewritten.
    is_damaged: bool,
    /// This journal has created or read the files.
    is_known: bool,
    record: PhantomData<R>,
}

/// The result of reading a session's journal.
#[derive(Clone, Debug)]
pub struct Reading<R> {
    /// All records; of a damaged journal, the readable ones.
    pub records: Vec<R>,
    /// Why the records do not tell the session's state.
    pub damage: Option<Damage>,
}

impl<R: Serialize + DeserializeOwned> Journal<R> {
    /// A new journal; the first record creates the files.
    #[must_use]
    pub fn new(folder: &Path, session: SessionId) -> Self {
        Self {
            paths: SUFFIXES.map(|suffix| folder.join(format!("{session}.{suffix}"))),
            files: None,
            generation: 1,
            words: Vec::new(),
            is_settled: true,
            is_damaged: false,
            is_known: false,
            record: PhantomData,
        }
    }

    /// Reads a journal without changing it.
    #[must_use]
    pub fn read(folder: &Path, session: SessionId) -> (Self, Reading<R>) {
        let mut journal = Self::new(folder, session);
        let (merged, reading) = understand(journal.paths.each_ref().map(|path| bytes(path)));
        journal.generation = merged.generation.max(1);
        journal.words = merged.words;
        journal.is_settled = merged.is_settled;
        journal.is_damaged = reading.damage.is_some();
        journal.is_known = true;
        if !journal.is_damaged && !journal.is_settled && !journal.words.is_empty() {
            log::warn!(
                "{}: does not read back as it was written",
                journal.paths[0].display()
            );
        }
        (journal, reading)
    }

    /// Reads a journal that tells its session's state, without changing it.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn open(folder: &Path, session: SessionId) -> io::Result<(Self, Vec<R>)> {
        let (journal, Reading { records, damage }) = Self::read(folder, session);
        if let Some(damage) = damage {
            let what = format!("{}: {damage}", journal.paths[0].display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok((journal, records))
    }

    /// Makes sure that both files have every record, before anything acts on what was read.
    ///
    /// # Errors
    /// If a file cannot be written; what was read stays valid.
    pub fn settle(&mut self) -> io::Result<()> {
        if self.is_settled || self.words.is_empty() {
            return Ok(());
        }
        // The age counts from the last record, not from the repair.
        let modified = self.modified();
        self.write_anew(&self.words)?;
        if let Ok(modified) = modified {
            File::options()
                .write(true)
                .open(&self.paths[0])?
                .set_modified(modified)?;
        }
        self.is_settled = true;
        Ok(())
    }

    /// Starts a damaged journal anew with these records.  They are written with the next record, and are in
    /// force with it.
    ///
    /// # Errors
    /// If they cannot be serialised.
    pub fn begin_anew(&mut self, records: &[R]) -> io::Result<()> {
        let words: Result<_, _> = records.iter().map(serde_json::to_string).collect();
        self.words = words?;
        self.is_damaged = true;
        Ok(())
    }

    /// The age of the last record, by the host's clock.
    ///
    /// # Errors
    /// If there is none.
    pub fn age(&self) -> io::Result<Duration> {
        Ok(self.modified()?.elapsed().unwrap_or_default())
    }

    fn modified(&self) -> io::Result<std::time::SystemTime> {
        let modified = |path: &PathBuf| fs::metadata(path)?.modified();
        modified(&self.paths[0]).or_else(|_| modified(&self.paths[1]))
    }

    /// Writes a record.  It is on the disk, in both files, when this returns.
    ///
    /// # Errors
    /// If it is not, or may not be.
    pub fn append(&mut self, record: &R) -> io::Result<()> {
        let words = serde_json::to_string(record)?;
        if self.is_damaged {
            return self.append_anew(words);
        }
        self.settle()?;
        let number = number(self.words.len() + 1)?;
        let line = line::write(self.generation, number, &words);
        let end = self.text(&self.words)?.len() as u64;
        let is_known = self.is_known;
        let mut open = self.files.take().into_iter().flatten();
        let mut files = Vec::with_capacity(2);
        for index in 0..2 {
            // The second file is created when the first has its record: two empty files would look like
            // damage.
            let mut file = match open.next() {
                Some(file) => file,
                None => self.file(index, is_known)?,
            };
            // Overwrites what a failed append may have left.
            file.set_len(end)?;
            file.seek(SeekFrom::Start(end))?;
            file.write_all(line.as_bytes())?;
            file.sync_all()?;
            files.push(file);
        }
        if self.words.is_empty() {
            self.sync_folder()?;
        }
        self.files = files.try_into().ok();
        self.words.push(words);
        Ok(())
    }

    /// Opens one of the files for writing; `is_known` if an earlier attempt may have created it.
    fn file(&mut self, index: usize, is_known: bool) -> io::Result<File> {
        let is_new = self.words.is_empty();
        let mut options = OpenOptions::new();
        // It holds the token, so only its owner may read it.
        options.write(true).create(is_new).mode(0o600);
        // A new session must not overwrite what an earlier one of this name has left.
        options.create_new(is_new && !is_known);
        let mut file = options.open(&self.paths[index])?;
        self.is_known = true;
        if is_new {
            file.write_all(self.text(&[])?.as_bytes())?;
        }
        Ok(file)
    }

    /// As the next generation, beside what it takes the place of.
    fn append_anew(&mut self, words: String) -> io::Result<()> {
        for path in &self.paths {
            let kept = format!("{}.{}.{DAMAGED}", path.display(), self.generation);
            match fs::hard_link(path, kept) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                linked => linked?,
            }
        }
        let mut all = self.words.clone();
        all.push(words);
        self.generation += 1;
        self.files = None;
        // After a failure, the next attempt ignores the files, because they have a generation of their own.
        self.write_anew(&all)?;
        self.words = all;
        (self.is_settled, self.is_damaged) = (true, false);
        Ok(())
    }

    /// Rewrites both files: a reader finds the old or the new one of each.
    fn write_anew(&self, words: &[String]) -> io::Result<()> {
        let text = self.text(words)?;
        for path in &self.paths {
            let new = path.with_extension(NEW);
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(new, path)?;
            self.sync_folder()?;
        }
        Ok(())
    }

    fn text(&self, words: &[String]) -> io::Result<String> {
        text(self.generation, words)
    }

    fn sync_folder(&self) -> io::Result<()> {
        let folder = self.paths[0].parent();
        folder.map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    /// Closes the files until the next record: finished sessions are remembered, but file descriptors are
    /// scarce.
    pub fn close(&mut self) {
        self.files = None;
    }

    /// Sets the journal aside: the session is over at both ends.
    ///
    /// # Errors
    /// If a file cannot be renamed or removed.
    pub fn retire(&mut self) -> io::Result<()> {
        self.put_away(DONE)
    }

    /// Sets a damaged journal aside: an operator has taken care of its guest.
    ///
    /// # Errors
    /// If a file cannot be renamed or removed.
    pub fn put_aside(&mut self) -> io::Result<()> {
        self.put_away(DAMAGED)
    }

    /// Keeps both files until the last moment: a single one says as much as both.
    fn put_away(&mut self, suffix: &str) -> io::Result<()> {
        self.files = None;
        for (path, kept) in self.paths.iter().zip(["", "mirror."]) {
            match fs::rename(path, path.with_extension(format!("{kept}{suffix}"))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
        }
        Ok(())
    }
}

/// What is in both files when these records are; for tests that do without files.
///
/// # Errors
/// If the records cannot be put into words.
pub fn written<R: Serialize>(records: &[R]) -> io::Result<String> {
    let words: Result<Vec<_>, _> = records.iter().map(serde_json::to_string).collect();
    text(1, &words?)
}

/// What is understood of the two files.
#[must_use]
pub fn understood<R: DeserializeOwned>(files: [io::Result<Vec<u8>>; 2]) -> Reading<R> {
    understand(files).1
}

fn understand<R: DeserializeOwned>(files: [io::Result<Vec<u8>>; 2]) -> (Merged, Reading<R>) {
    let [first, second] = files.map(Side::new);
    let mut merged = merge(&first, &second);
    let parsed = merged.words.iter().map(|words| serde_json::from_str(words));
    let (records, unknown): (Vec<_>, Vec<_>) = parsed.partition(Result::is_ok);
    // The checksums are right, so these records were written on purpose.
    let newer = (!unknown.is_empty()).then_some(Damage::Newer);
    let reading = Reading {
        records: records.into_iter().flatten().collect(),
        damage: merged.damage.take().or(newer),
    };
    (merged, reading)
}

fn text(generation: u32, words: &[String]) -> io::Result<String> {
    let mut text = format!("{}\n", line::HEADER);
    for (words, index) in words.iter().zip(1..) {
        text += &line::write(generation, number(index)?, words);
    }
    Ok(text)
}

fn number(index: usize) -> io::Result<u32> {
    u32::try_from(index).map_err(io::Error::other)
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = File::open(path)?
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)?;
    if length as u64 > LONGEST {
        return Err(io::Error::other("it is too long"));
    }
    Ok(bytes)
}

/// Creates a folder for journals that survives a power loss.
///
/// # Errors
/// If it cannot be created.
pub fn folder(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let missing = path.ancestors().filter(|folder| !folder.exists());
    let parents: Vec<_> = missing.filter_map(Path::parent).collect();
    fs::create_dir_all(&path)?;
    parents
        .into_iter()
        .try_for_each(|parent| File::open(parent)?.sync_all())
}

/// Removes journals that were set aside, or never came into force, and are older than this.
///
/// # Errors
/// If the folder cannot be read, or a file cannot be removed.
pub fn prune(folder: &Path, kept: Duration) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_away = path
            .extension()
            .is_some_and(|suffix| suffix == DONE || suffix == DAMAGED || suffix == NEW);
        if is_away && age(&path)? > kept {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// If the clock was set back since, the file seems younger and stays longer.
fn age(path: &Path) -> io::Result<Duration> {
    Ok(fs::symlink_metadata(path)?
        .modified()?
        .elapsed()
        .unwrap_or_default())
}

/// The sessions whose journals are in this folder.
///
/// # Errors
/// If the folder cannot be read.
pub fn sessions(folder: &Path) -> io::Result<Vec<SessionId>> {
    let mut sessions = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_journal = path
            .extension()
            .is_some_and(|suffix| SUFFIXES.iter().any(|known| suffix == *known));
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        match (is_journal, stem.map(str::parse)) {
            (true, Some(Ok(session))) => {
                sessions.insert(session);
            }
            (true, _) => log::warn!("{}: not the name of a session", path.display()),
            _ => {}
        }
    }
    Ok(sessions.into_iter().collect())
}

#[cfg(test)]
mod tests;
