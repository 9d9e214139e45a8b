//! The journal on the disk: two files for each session, one line for each record in both.
//!
//! A record is in force when its line is whole in both files and they and the folder have been told to the
//! disk (`fsync`); only then [`Journal::append`] returns.  What a crash can leave is told from what it can
//! not by [`reading`]; a line is described in [`line`].
//!
//! What is damaged is never guessed at.  An operator decides, and his decision begins the journal
//! [anew](Journal::begin_anew): as the next generation, with what was bad kept beside it.

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

/// The ends of the two files' names, in the order in which they are written.
const SUFFIXES: [&str; 2] = ["journal", "mirror"];
/// The end of the name of one that was put away.
const DONE: &str = "done";
/// The end of the name of one that could not be continued.
const DAMAGED: &str = "damaged";
/// The end of the name of one that is being written anew.
const NEW: &str = "new";
/// What is longer was not written by an agent: a dozen records, with a guest's configuration in one.
const LONGEST: u64 = 64 << 20;

/// A session's journal.
#[derive(Debug)]
pub struct Journal<R> {
    paths: [PathBuf; 2],
    files: Option<[File; 2]>,
    generation: u32,
    /// All records.
    words: Vec<String>,
    /// The files have these records, and nothing else but behind them.
    is_settled: bool,
    /// What is there is damaged, and is to be kept when it is written anew.
    is_damaged: bool,
    /// The files are this one's: it has made them, or read them.
    is_known: bool,
    record: PhantomData<R>,
}

/// What was read of a session's journal.
#[derive(Clone, Debug)]
pub struct Reading<R> {
    /// All records; if it is damaged, those that could be read.
    pub records: Vec<R>,
    /// Why these do not say where the session stands.
    pub damage: Option<Damage>,
}

impl<R: Serialize + DeserializeOwned> Journal<R> {
    /// A new journal; the files are made with the first record.
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

    /// Reads a journal; nothing is changed.
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

    /// Reads a journal that says where its session stands; nothing is changed.
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

    /// Makes sure that both files have every record: only then may be acted on what was read.
    ///
    /// # Errors
    /// If they do not, or may not; the reading stands.
    pub fn settle(&mut self) -> io::Result<()> {
        if self.is_settled || self.words.is_empty() {
            return Ok(());
        }
        // When it was last at work counts, not when it was put right.
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

    /// What is damaged is to go on from these records: they are written with the next one, and in force with
    /// it.
    ///
    /// # Errors
    /// If they cannot be put into words.
    pub fn begin_anew(&mut self, records: &[R]) -> io::Result<()> {
        let words: Result<_, _> = records.iter().map(serde_json::to_string).collect();
        self.words = words?;
        self.is_damaged = true;
        Ok(())
    }

    /// How long ago the last record was written, by the clock of the host.
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

    /// Writes a record; it is on the disk, twice, when this returns.
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
            // The second is made when the first has its record: two without any would look like damage.
            let mut file = match open.next() {
                Some(file) => file,
                None => self.file(index, is_known)?,
            };
            // Over whatever an append that failed has left.
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

    /// One of the files, to be written to; `is_known` if an earlier attempt may have made it.
    fn file(&mut self, index: usize, is_known: bool) -> io::Result<File> {
        let is_new = self.words.is_empty();
        let mut options = OpenOptions::new();
        // It holds the token: nobody else is to read it.
        options.write(true).create(is_new).mode(0o600);
        // What a session of this name has left must not be lost for one that takes itself for new.
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
        // If it fails, what is there of it already is of a generation that the next attempt passes over.
        self.write_anew(&all)?;
        self.words = all;
        (self.is_settled, self.is_damaged) = (true, false);
        Ok(())
    }

    /// Writes both files: whoever reads finds the old or the new of each.
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

    /// Lets go of the files until the next record: sessions that are over stay known, files are few.
    pub fn close(&mut self) {
        self.files = None;
    }

    /// Puts the journal away: the session is over at both ends.
    ///
    /// # Errors
    /// If a file cannot be renamed or removed.
    pub fn retire(&mut self) -> io::Result<()> {
        self.put_away(DONE)
    }

    /// Puts a damaged journal away: an operator has seen to what it was about.
    ///
    /// # Errors
    /// If a file cannot be renamed or removed.
    pub fn put_aside(&mut self) -> io::Result<()> {
        self.put_away(DAMAGED)
    }

    /// Both files until the last moment: one that is left alone says as much as both.
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
    // Their sums are right, so somebody meant these words.
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

/// Removes journals that were put away, or never came into force, and were written last longer ago than this.
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

/// A clock that was set back since makes a file young, and so it stays longer.
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
