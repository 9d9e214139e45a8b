//! What two copies of a journal say together.
//!
//! A record is written to the first file, then to the second, and is in force when both have it.  So there
//! is one crash between the two at most, and what it leaves is told from damage:
//!
//! | first file | second file | is |
//! |---|---|---|
//! | *n* records and a piece of a line | *n* records | a crash: the piece was never in force, and is nothing |
//! | *n* + 1 records | *n* records, or a piece more | a crash: nothing has followed from the last; it counts |
//! | a line is bad, or more is | has it | one file is damaged: the other counts |
//! | ends badly, or is not there | ends badly, or is not there | damage that can hide a record which was in force |
//! | a record is missing in both, or not the same | | damage |
//!
//! That the last record counts though nothing has followed from it is safe: it was decided, and whoever dies
//! just before he writes it down decides the same or less.  It is made to be in both before it is acted on.

use std::collections::BTreeMap;
use std::io;

use super::damage::Damage;
use super::line::{HEADER, Line, parse, parse_first};

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    Clean,
    /// With a piece of a line.
    Torn,
    /// With a line that is bad.
    Bad,
}

/// One of the two files.
#[derive(Debug)]
pub(super) enum Side {
    Missing,
    Unreadable(String),
    Read(Lines),
}

/// What could be read of one file.
#[derive(Debug)]
pub(super) struct Lines {
    /// By generation and number.
    good: BTreeMap<(u32, u32), String>,
    is_newer: bool,
    /// Some line is not good, or comes twice.
    is_spoilt: bool,
    /// A number that two records have.
    doubled: Option<u32>,
    /// It is of version 1, all of it, or empty.
    is_first: bool,
    tail: Tail,
}

/// What both say.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) generation: u32,
    /// All good records of the generation, in order.
    pub(super) words: Vec<String>,
    pub(super) damage: Option<Damage>,
    /// Both files are as they are to be.
    pub(super) is_settled: bool,
}

impl Side {
    pub(super) fn new(read: io::Result<Vec<u8>>) -> Self {
        match read {
            Ok(bytes) => Self::Read(Lines::new(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::Missing,
            Err(error) => Self::Unreadable(error.to_string()),
        }
    }

    const fn lines(&self) -> Option<&Lines> {
        match self {
            Self::Read(lines) => Some(lines),
            Self::Missing | Self::Unreadable(_) => None,
        }
    }
}

impl Lines {
    fn new(bytes: &[u8]) -> Self {
        let lines = || bytes.split(|byte| *byte == b'\n');
        let mut this = Self {
            good: BTreeMap::new(),
            is_newer: false,
            is_spoilt: false,
            doubled: None,
            is_first: !lines().any(|line| line.starts_with(b"#")),
            tail: Tail::Clean,
        };
        let mut lines = lines().zip(1..).peekable();
        while let Some((line, number)) = lines.next() {
            // Behind the last end of a line is nothing, or a piece.
            if lines.peek().is_none() {
                if !line.is_empty() {
                    // A disk that has lost it gives zeros: that is no piece of what was written.
                    let is_piece = line.iter().all(|byte| matches!(byte, b' '..=b'~' | 0x80..));
                    this.tail = if is_piece { Tail::Torn } else { Tail::Bad };
                }
                break;
            }
            this.take(line, number);
        }
        this
    }

    fn take(&mut self, line: &[u8], number: u32) {
        if number == 1 && line == HEADER.as_bytes() {
            return;
        }
        let line = match parse_first(line).filter(|_| self.is_first) {
            Some(words) => Line::Good {
                generation: 0,
                number,
                words,
            },
            None => parse(line),
        };
        self.tail = Tail::Clean;
        match line {
            Line::Good {
                generation,
                number,
                words,
            } => {
                let before = self.good.insert((generation, number), words.to_owned());
                self.is_spoilt |= before.is_some();
                if before.is_some_and(|before| before != words) {
                    self.doubled = Some(number);
                }
            }
            Line::Newer(_) => self.is_newer = true,
            Line::Bad => {
                self.is_spoilt = true;
                self.tail = Tail::Bad;
            }
        }
    }

    fn of(&self, generation: u32) -> impl Iterator<Item = (u32, &String)> {
        let range = (generation, 0)..=(generation, u32::MAX);
        self.good
            .range(range)
            .map(|((_, number), words)| (*number, words))
    }

    fn is_whole(&self, generation: u32, records: usize) -> bool {
        !self.is_spoilt
            && self.tail == Tail::Clean
            && !self.is_first
            && self.good.len() == records
            && self.of(generation).count() == records
    }
}

/// Puts the two together.
pub(super) fn merge(first: &Side, second: &Side) -> Merged {
    let sides = [first.lines(), second.lines()];
    let found = || sides.into_iter().flatten();
    let latest = found().filter_map(|lines| lines.good.last_key_value());
    let generation = latest.map(|((generation, _), _)| *generation).max();
    let mut merged = Merged {
        generation: generation.unwrap_or(0),
        ..Merged::default()
    };
    let mut records = BTreeMap::new();
    let mut differs = found().find_map(|lines| lines.doubled);
    for (number, words) in found().flat_map(|lines| lines.of(merged.generation)) {
        let known = records.entry(number).or_insert(words);
        if *known != words {
            differs = Some(number);
        }
    }
    let gap = (1..)
        .zip(records.keys())
        .find(|(due, number)| due != *number);
    merged.words = records.values().map(|words| (*words).clone()).collect();
    // A file of an older generation was to be replaced: it says nothing.
    let tail = |lines: &Lines| {
        let counts = generation.is_none() || lines.of(merged.generation).next().is_some();
        counts.then_some(lines.tail)
    };
    let tails = sides.map(|lines| lines.and_then(tail));
    let is_missing = matches!(second, Side::Missing);
    // The only one there was, or the first that was to be written.
    let is_alone = sides[0].is_some_and(|lines| lines.is_first || generation.is_none());
    let is_ended = tails.contains(&Some(Tail::Clean))
        || is_missing && is_alone && tails[0] == Some(Tail::Torn);
    let spoilt = |what: String| Some(Damage::Spoilt(what));
    merged.damage = if found().any(|lines| lines.is_newer) {
        Some(Damage::Newer)
    } else if let Some(number) = differs {
        spoilt(format!("there are two records {number}"))
    } else if let Some((due, _)) = gap {
        spoilt(format!("record {due} is lost"))
    } else if let [None, None] = sides {
        Some(Damage::Unreadable(why(first, second)))
    } else if !is_ended || merged.generation == 0 && !is_missing {
        let number = records.len() + 1;
        spoilt(format!("record {number} is unreadable, if there was one"))
    } else {
        None
    };
    let is_whole = |lines: &Lines| lines.is_whole(merged.generation, merged.words.len());
    merged.is_settled = sides.iter().all(|lines| lines.is_some_and(is_whole));
    merged
}

fn why(first: &Side, second: &Side) -> String {
    match (first, second) {
        (Side::Unreadable(why), _) | (_, Side::Unreadable(why)) => why.clone(),
        _ => "its files are missing".to_owned(),
    }
}
