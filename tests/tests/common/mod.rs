//! What the comparison of stream tools needs: Xen's tools at the other end of a pipe, and damage.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use unmoved_lab::stream_tools::StreamTools;
use unmoved_stream::legacy::Width;
use unmoved_stream::libxc::PvInfo;
use unmoved_stream::testing::{Guest, LegacySample};
use unmoved_stream::{Error, Event, Format, Input, Reader, Reserved};

pub const GUESTS: [Guest; 3] = [
    Guest::Pv(PvInfo::Bits64),
    Guest::Pv(PvInfo::Bits32),
    Guest::Hvm,
];

/// Legacy streams of all widths and types that both converters take.
pub fn legacy_samples() -> Vec<LegacySample> {
    let mut all = Vec::new();
    for width in [Width::Bits32, Width::Bits64] {
        for guest in GUESTS {
            for (extended, xsave, odd) in [(true, 852, true), (false, 0, false), (true, 0, false)] {
                for (pages, batch) in [(7, 2), (1100, 1024)] {
                    all.push(LegacySample {
                        pages,
                        batch,
                        extended,
                        xsave,
                        odd,
                        ..LegacySample::new(width, guest)
                    });
                }
            }
        }
    }
    all
}

/// The kind of an error's defect.
pub fn defect(error: &Error) -> String {
    let text = format!("{:?}", error.defect);
    let end = text.find(|c: char| !c.is_alphanumeric());
    text[..end.unwrap_or(text.len())].to_owned()
}

/// Xen's tools, in one Python.
pub struct XenTools {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
}

impl XenTools {
    pub fn start() -> Self {
        let tools = StreamTools::get().unwrap();
        let driver = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/stream_tools.py");
        let mut child = tools
            .python()
            .arg(driver)
            .arg(tools.programs())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            orders: child.stdin.take().unwrap(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            folder: tempfile::tempdir().unwrap(),
            child,
        }
    }

    /// What `verify-stream-v2` says of these bytes: "ok" or why not.
    pub fn verify(&mut self, format: &str, bytes: &[u8]) -> String {
        let file = self.folder.path().join("stream");
        fs::write(&file, bytes).unwrap();
        self.order(&["verify", format, file.to_str().unwrap()])
    }

    /// What `convert-legacy-stream` says of these bytes, and makes of them.
    pub fn convert(&mut self, sample: &LegacySample, to: &str, bytes: &[u8]) -> (String, Vec<u8>) {
        let file = self.folder.path().join("legacy");
        let out = self.folder.path().join("converted");
        fs::write(&file, bytes).unwrap();
        let width = sample.width.bits().to_string();
        let guest = match sample.guest {
            Guest::Pv(_) => "pv",
            Guest::Hvm => "hvm",
        };
        let paths = [file.to_str().unwrap(), out.to_str().unwrap()];
        let answer = self.order(&["convert", &width, guest, to, paths[0], paths[1]]);
        (answer, fs::read(out).unwrap())
    }

    fn order(&mut self, words: &[&str]) -> String {
        writeln!(self.orders, "{}", words.join("\t")).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "Xen's tools have ended");
        answer.trim_end().to_owned()
    }
}

impl Drop for XenTools {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes damaged variants of a stream, the same ones each time.
pub struct Mutator {
    whole: Vec<u8>,
    /// Where records begin, and where the last one ends; nothing for other streams.
    records: Vec<usize>,
    state: u64,
}

impl Mutator {
    /// Knows bytes only.
    pub fn bytes(whole: &[u8]) -> Self {
        Self {
            whole: whole.to_vec(),
            records: Vec::new(),
            state: 0x1234_5678_9abc_def1 ^ whole.len() as u64,
        }
    }

    /// Knows records too.
    pub fn new(whole: &[u8], format: Format) -> Self {
        let mut reader = Reader::new(Input::new(whole), format, Reserved::Refuse);
        let mut records = Vec::new();
        while let Some(event) = reader.next_event().unwrap() {
            if let Event::Record(record) = event {
                records.push(usize::try_from(record.offset()).unwrap());
            }
        }
        records.push(whole.len());
        Self {
            records,
            ..Self::bytes(whole)
        }
    }

    /// The next variant.
    pub fn variant(&mut self) -> Vec<u8> {
        let mut bytes = self.whole.clone();
        let choice = if self.records.is_empty() { 4 } else { 0 };
        match choice + self.below(7 - choice) {
            0 => {
                let (from, to) = self.record();
                bytes.drain(from..to);
            }
            1 => {
                let (from, to) = self.record();
                bytes.splice(from..from, self.whole[from..to].iter().copied());
            }
            2 => {
                // To another place.
                let (from, to) = self.record();
                let (at, _) = self.record();
                let moved: Vec<u8> = bytes.drain(from..to).collect();
                let at = if at > from { at - (to - from) } else { at };
                bytes.splice(at..at, moved);
            }
            3 => {
                // A type that nobody knows, optional or not.
                let (from, _) = self.record();
                bytes[from + 3] |= if self.below(4) > 0 { 0x80 } else { 0x40 };
            }
            4 => bytes.truncate(self.below(self.whole.len())),
            5 => bytes.extend([0; 8]),
            _ => {
                for _ in 0..=self.below(2) {
                    let at = self.place();
                    let value = [0, 1, 0xff, bytes[at] ^ 1, bytes[at] ^ 0x80][self.below(5)];
                    bytes[at] = value;
                }
            }
        }
        bytes
    }

    /// A byte that says something: at the beginnings and ends of the stream and of records.
    fn place(&mut self) -> usize {
        let count = self.records.len();
        let near = match self.below(count.max(3)) {
            index if index < count => self.records[index],
            0 => 0,
            1 => self.whole.len() - 1,
            _ => self.below(self.whole.len()),
        };
        (near + self.below(32)).min(self.whole.len() - 1)
    }

    fn record(&mut self) -> (usize, usize) {
        let index = self.below(self.records.len() - 1);
        (self.records[index], self.records[index + 1])
    }

    fn below(&mut self, end: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state >> 11).unwrap() % end
    }
}
