//! What a disk does to a journal between a crash and the restart.
//!
//! The two files are made of the records as the agent makes them, harmed, and read by the agent's own reader.
//! Not here is what no reader can find out: a disk that takes back a whole record from both files and leaves
//! all else as it was.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use unmoved::journal::{Reading, understood, written};
use unmoved::session::{
    DestinationSession, Request, SourceEffect, SourceEvent, SourceRecord, SourceSession, Token,
};

use crate::explore::Script;
use crate::world::{Destination, Source, World};

/// What has happened to the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// A bit of the last record is flipped in one file.
    Flip(usize),
    /// One file ends within the last record.
    Cut(usize),
    /// The disk does not give one file.
    Unreadable(usize),
    /// The last record is spoilt in both.
    BothFlipped,
    /// Both end within the last record.
    BothCut,
    /// The disk gives neither.
    BothUnreadable,
    /// A newer agent has added words that this one does not know.
    Newer,
    /// The first record is spoilt in both: nothing is known of the guest.
    NoBeginning,
}

impl Harm {
    const ALL: [Self; 11] = [
        Self::Flip(0),
        Self::Flip(1),
        Self::Cut(0),
        Self::Cut(1),
        Self::Unreadable(0),
        Self::Unreadable(1),
        Self::BothFlipped,
        Self::BothCut,
        Self::BothUnreadable,
        Self::Newer,
        Self::NoBeginning,
    ];

    /// The other file makes it good.
    const fn is_made_good(self) -> bool {
        matches!(self, Self::Flip(_) | Self::Cut(_) | Self::Unreadable(_))
    }

    /// The files that hold these records, after it.
    fn files<R: Serialize>(self, records: &[R]) -> [io::Result<Vec<u8>>; 2] {
        let text = |records: &[R]| written(records).expect("records have words").into_bytes();
        let (whole, before) = (text(records), text(&records[..records.len() - 1]));
        let last = (before.len() + whole.len()) / 2;
        [0, 1].map(|file| {
            let mut bytes = whole.clone();
            match self {
                Self::Flip(at) if at == file => bytes[last] ^= 4,
                Self::Cut(at) if at == file => bytes.truncate(last),
                Self::Unreadable(at) if at == file => return Err(io::Error::other("EIO")),
                Self::BothFlipped => bytes[last] ^= 4,
                Self::BothCut => bytes.truncate(last),
                Self::BothUnreadable => return Err(io::Error::other("EIO")),
                Self::Newer => bytes.extend(unknown(records.len())),
                Self::NoBeginning => bytes[text(&[]).len() + 20] ^= 4,
                Self::Flip(_) | Self::Cut(_) | Self::Unreadable(_) => {}
            }
            Ok(bytes)
        })
    }

    /// One of them, or none.
    fn choose(script: &mut Script, left: &mut usize) -> Option<Self> {
        if *left == 0 {
            return None;
        }
        let chosen = script.choose(Self::ALL.len() + 1).checked_sub(1)?;
        *left -= 1;
        Some(Self::ALL[chosen])
    }
}

/// The line of a record that comes after so many.
fn unknown(records: usize) -> Vec<u8> {
    let records = vec!["pondering"; records + 1];
    let text = written(&records).expect("texts have words");
    format!("{}\n", text.lines().last().unwrap_or_default()).into_bytes()
}

/// What the agent reads of these records.
fn read<R: Clone + Serialize + DeserializeOwned>(
    harm: &mut Option<Harm>,
    records: &[R],
) -> Result<Reading<R>, String> {
    let Some(harmed) = *harm else {
        return Ok(Reading {
            records: records.to_vec(),
            damage: None,
        });
    };
    let reading: Reading<R> = understood(harmed.files(records));
    if harmed.is_made_good() {
        if reading.damage.is_some() || reading.records.len() != records.len() {
            return Err(format!("{harm:?} was not made good"));
        }
        // Before anything follows from it, both files are made whole.
        *harm = None;
    } else if reading.damage.is_none() {
        return Err(format!("{harm:?} was not found"));
    }
    Ok(reading)
}

/// Why an end is in doubt, where nothing else is known.
const DOUBT: &str = "the journal is damaged";

impl World<'_> {
    /// The source's end as a new run of the agent finds it; `None`: it finds nothing.
    pub fn found_source(&mut self) -> Result<Option<SourceSession>, String> {
        let source = &mut self.source;
        if source.journal.is_empty() {
            return Ok(None);
        }
        if source.harm.is_none() {
            source.harm = Harm::choose(self.script, &mut self.damages_left);
            self.was_harmed |= source.harm.is_some();
        }
        let reading = read(&mut source.harm, &source.journal)?;
        source.anew = None;
        if reading.damage.is_none() {
            return Ok(SourceSession::recover(reading.records));
        }
        match SourceSession::doubted(reading.records, DOUBT.to_owned()) {
            Some(session) => {
                source.anew = Some(session.anew());
                Ok(Some(session))
            }
            None => {
                // No machine takes what an operator decides.
                source.effect = Some(SourceEffect::Wait {
                    reason: DOUBT.to_owned(),
                    is_held: true,
                });
                Ok(Some(nobody()))
            }
        }
    }

    /// The destination's end as a new run of the agent finds it; `None`: it finds nothing.
    pub fn found_destination(&mut self) -> Result<Option<DestinationSession>, String> {
        let here = &mut self.destination;
        if here.journal.is_empty() {
            return Ok(None);
        }
        if here.harm.is_none() {
            here.harm = Harm::choose(self.script, &mut self.damages_left);
            self.was_harmed |= here.harm.is_some();
        }
        let reading = read(&mut here.harm, &here.journal)?;
        here.anew = None;
        if reading.damage.is_none() {
            return Ok(DestinationSession::recover(reading.records));
        }
        let session = DestinationSession::doubted(reading.records, DOUBT.to_owned());
        here.anew = Some(session.anew());
        Ok(Some(session))
    }
}

/// A session that nothing can be done with.
fn nobody() -> SourceSession {
    let token = Token::new([7; 32]);
    let request = Request {
        needs: unmoved::job::Needs::default(),
        leave_paused: false,
        parallel: 1,
        seal: token.seal(),
    };
    let mut session = SourceSession::new(Box::new(request), token, String::new());
    // It waits for a record that nobody writes.
    let _ = session.step(SourceEvent::Begin);
    session
}

impl Source {
    /// What is damaged is begun anew with the record that follows.
    pub fn write(&mut self, record: SourceRecord) {
        if let Some(anew) = self.anew.take() {
            self.journal = anew;
            self.harm = None;
        }
        self.journal.push(record);
    }
}

impl Destination {
    /// As [`Source::write`].
    pub fn write(&mut self, record: unmoved::session::DestinationRecord) {
        if let Some(anew) = self.anew.take() {
            self.journal = anew;
            self.harm = None;
        }
        self.journal.push(record);
    }
}
