//! What a crash, a disk, an upgrade and a downgrade do to a journal.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Damage, Journal, Reading, SUFFIXES, line, prune, sessions};
use crate::session::{SessionId, SourceRecord};

const SESSION: SessionId = SessionId::new([3; 16]);

/// A change of one file.
type Harm = Box<dyn Fn(&Path)>;

fn held(reason: &str) -> SourceRecord {
    SourceRecord::Held {
        reason: reason.to_owned(),
    }
}

fn written() -> [SourceRecord; 3] {
    [
        SourceRecord::Suspending,
        held("x"),
        SourceRecord::HandedOver,
    ]
}

/// A folder with a journal of these records.
fn journal(records: &[SourceRecord]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::new(folder.path(), SESSION);
    for record in records {
        journal.append(record).unwrap();
        journal.close();
    }
    folder
}

fn paths(folder: &tempfile::TempDir) -> [PathBuf; 2] {
    SUFFIXES.map(|suffix| folder.path().join(format!("{SESSION}.{suffix}")))
}

fn read(folder: &tempfile::TempDir) -> Reading<SourceRecord> {
    Journal::read(folder.path(), SESSION).1
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).unwrap();
}

fn edit(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    write(path, bytes);
}

/// What one file can suffer from this byte on.
fn harms(from: usize, length: usize) -> Vec<Harm> {
    let mut harms: Vec<Harm> = vec![
        Box::new(|path| fs::remove_file(path).unwrap()),
        Box::new(|path| {
            fs::remove_file(path).unwrap();
            symlink(path, path).unwrap();
        }),
        Box::new(|path| write(path, "rot\n")),
        Box::new(|path| edit(path, |bytes| bytes.fill(0))),
        Box::new(|path| edit(path, |bytes| bytes.extend(b"rot\n"))),
    ];
    for cut in (from..length).step_by(3) {
        let cut = move |path: &Path| edit(path, |bytes| bytes.truncate(cut));
        harms.push(Box::new(cut));
    }
    // One bit of each byte, and never the same.
    for at in from..length {
        let flip = move |path: &Path| edit(path, |bytes| bytes[at] ^= 1 << (at % 8));
        harms.push(Box::new(flip));
    }
    harms
}

#[test]
fn journals_that_were_put_away_are_kept_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let month = Duration::from_secs(30 * 24 * 3600);
    for (name, age) in [
        ("old.done", month * 2),
        ("old.1.damaged", month * 2),
        ("new.done", month / 2),
        ("old.journal", month * 2),
    ] {
        let file = fs::File::create(folder.path().join(name)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }
    prune(folder.path(), month).unwrap();
    assert!(!folder.path().join("old.done").exists());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn records_are_found_again() {
    let folder = journal(&written());
    assert_eq!(sessions(folder.path()).unwrap(), [SESSION]);
    for path in paths(&folder) {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let found = read(&folder);
    assert_eq!(found.records, written());
    assert_eq!(found.damage, None);
}

/// What is in both files.
fn text(records: &[SourceRecord]) -> Vec<u8> {
    fs::read(&paths(&journal(records))[0]).unwrap()
}

/// A folder with these two files, without waiting for a disk.
fn folder(files: [&[u8]; 2]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, bytes) in paths(&folder).iter().zip(files) {
        write(path, bytes);
    }
    folder
}

/// Whatever it is: no record that was in force is lost, and none appears.
#[test]
fn what_one_file_suffers_the_other_makes_good() {
    for side in 0..2 {
        let text = text(&written());
        let harms = harms(0, text.len());
        for (index, harm) in harms.into_iter().enumerate() {
            let folder = folder([&text, &text]);
            harm(&paths(&folder)[side]);
            let (mut journal, found) = Journal::<SourceRecord>::read(folder.path(), SESSION);
            assert_eq!(found.damage, None, "file {side}, harm {index}");
            assert_eq!(found.records, written(), "file {side}, harm {index}");
            if index % 17 > 4 {
                continue;
            }
            journal.append(&SourceRecord::Done).unwrap();
            let [first, second] = paths(&folder).map(|path| fs::read(path).unwrap());
            assert_eq!(first, second, "file {side}, harm {index}");
            assert_eq!(read(&folder).records.last(), Some(&SourceRecord::Done));
        }
    }
}

/// The last record may be hidden, so nothing may follow from the one before.
#[test]
fn what_both_files_suffer_is_damage() {
    let text = text(&written());
    let harms = harms(self::text(&written()[..2]).len(), text.len());
    for (number, first) in harms.iter().enumerate().step_by(3) {
        for (other, second) in harms.iter().enumerate().step_by(2) {
            let folder = folder([&text, &text]);
            let [a, b] = paths(&folder);
            first(&a);
            second(&b);
            let found = read(&folder);
            let is_whole = found.records.len() == 3;
            assert!(
                found.damage.is_some() || is_whole,
                "harms {number} and {other}: {found:?}"
            );
        }
    }
}

#[test]
fn what_a_crash_leaves_is_no_damage() {
    let [before, after] = [&written()[..2], &written()].map(text);
    for cut in [0, 1, 2, 7, 20]
        .map(|cut| before.len() + cut)
        .into_iter()
        .chain([after.len() - 1, after.len()])
    {
        // In the first file, then in the second.
        for (first, second, counts) in [
            (&after[..cut], &before[..], cut == after.len()),
            (&after[..], &after[..cut], true),
        ] {
            let folder = folder([first, second]);
            let [a, b] = paths(&folder);
            let (mut journal, found) =
                Journal::<SourceRecord>::open(folder.path(), SESSION).unwrap();
            assert_eq!(found, written()[..2 + usize::from(counts)], "cut at {cut}");
            journal.settle().unwrap();
            // What counts is in both before anything follows from it.
            let whole = if counts { &after } else { &before };
            assert_eq!(fs::read(&a).unwrap(), *whole);
            assert_eq!(fs::read(&b).unwrap(), *whole);
        }
    }
    let begun = text(&written()[..1]);
    for cut in 0..begun.len() {
        let folder = tempfile::tempdir().unwrap();
        write(&paths(&folder)[0], &begun[..cut]);
        let (_, found) = Journal::<SourceRecord>::open(folder.path(), SESSION).unwrap();
        assert_eq!(found, [], "cut at {cut}");
    }
}

#[test]
fn the_second_file_is_made_when_the_first_has_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = paths(&folder);
    // In its place, so that it cannot be made.
    fs::create_dir(second).unwrap();
    let mut journal = Journal::new(folder.path(), SESSION);
    journal.append(&written()[0]).unwrap_err();
    assert_eq!(fs::read(first).unwrap(), text(&written()[..1]));
}

#[test]
fn what_a_newer_agent_has_written_is_not_taken_for_torn() {
    for text in [
        line::write(1, 4, r#"{"state":"pondering"}"#),
        line::newer(1, 4, r#"{"state":"done"}"#),
    ] {
        let folder = journal(&written());
        for path in paths(&folder) {
            edit(&path, |bytes| bytes.extend(text.as_bytes()));
        }
        let before = paths(&folder).map(|path| fs::read(path).unwrap());
        let (_, found) = Journal::<SourceRecord>::read(folder.path(), SESSION);
        assert_eq!(found.damage, Some(Damage::Newer));
        assert!(found.damage.unwrap().to_string().contains("newer unmovedd"));
        assert_eq!(paths(&folder).map(|path| fs::read(path).unwrap()), before);
    }
}

fn first_version(records: &[SourceRecord]) -> String {
    let words = records
        .iter()
        .map(|record| serde_json::to_string(record).unwrap());
    words.map(|words| line::first(&words)).collect()
}

#[test]
fn a_journal_of_the_first_version_is_read_and_goes_on_as_the_second() {
    let text = first_version(&written());
    let before = first_version(&written()[..2]).len();
    for cut in (before..text.len())
        .step_by(9)
        .chain([text.len() - 1, text.len()])
    {
        let folder = tempfile::tempdir().unwrap();
        write(&paths(&folder)[0], &text.as_bytes()[..cut]);
        let is_whole = cut == text.len();
        let (mut journal, found) = Journal::<SourceRecord>::open(folder.path(), SESSION).unwrap();
        assert_eq!(
            found,
            written()[..2 + usize::from(is_whole)],
            "cut at {cut}"
        );
        journal.append(&SourceRecord::Done).unwrap();
        assert_eq!(read(&folder).records.len(), found.len() + 1);
        assert_eq!(read(&folder).damage, None);
    }
}

#[test]
fn a_journal_of_the_first_version_with_a_bad_line_is_damage() {
    let text = first_version(&written());
    for bit in 0..8 * text.len() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = text.clone().into_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // Without its end the last line is one that a crash has cut.
        if bytes.last() != Some(&b'\n') {
            continue;
        }
        write(&paths(&folder)[0], bytes);
        assert!(read(&folder).damage.is_some(), "bit {bit}");
    }
}

/// It takes a bad line for damage, and leaves everything as it is; only a bad last line it would cut off.
#[test]
fn an_agent_of_the_first_version_finds_damage_at_once() {
    let text = text(&written()[..1]);
    let mut lines = text.split(|byte| *byte == b'\n');
    assert_eq!(line::parse_first(lines.next().unwrap()), None);
    assert!(lines.next().is_some_and(|line| !line.is_empty()));
}

#[test]
fn a_decision_about_a_damaged_journal_outlives_what_was_damaged() {
    let folder = journal(&written());
    for path in paths(&folder) {
        edit(&path, |bytes| bytes.extend(b"rot\n"));
    }
    let bad = fs::read(&paths(&folder)[0]).unwrap();
    let (mut journal, found) = Journal::<SourceRecord>::read(folder.path(), SESSION);
    assert!(matches!(found.damage, Some(Damage::Spoilt(_))));
    assert_eq!(found.records, written());
    journal.begin_anew(&written()[..1]).unwrap();
    assert!(read(&folder).damage.is_some(), "nothing is in force yet");
    journal.append(&SourceRecord::Done).unwrap();
    let decided = [SourceRecord::Suspending, SourceRecord::Done];
    assert_eq!(read(&folder).records, decided);
    assert_eq!(read(&folder).damage, None);
    let kept = format!("{SESSION}.journal.1.damaged");
    assert_eq!(fs::read(folder.path().join(kept)).unwrap(), bad);
    // A crash before the second file was written anew: the old one says nothing any more.
    write(&paths(&folder)[1], bad);
    let (_, found) = Journal::<SourceRecord>::open(folder.path(), SESSION).unwrap();
    assert_eq!(found, decided);
}

#[test]
fn a_session_that_is_over_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::new(folder.path(), SESSION);
    journal.append(&SourceRecord::Done).unwrap();
    journal.retire().unwrap();
    assert_eq!(sessions(folder.path()).unwrap(), []);
    assert!(Journal::<SourceRecord>::open(folder.path(), SESSION).is_err());
}

#[test]
fn a_session_that_is_known_is_not_begun_again_over_its_journal() {
    let folder = journal(&written());
    let mut again = Journal::new(folder.path(), SESSION);
    again.append(&SourceRecord::Suspending).unwrap_err();
    assert_eq!(read(&folder).records, written());
}
