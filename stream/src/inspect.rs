//! Lists what is in a stream, one entry per header or record; page records that follow each other share one.

use std::fmt::{self, Write as _};
use std::io::{self, Read, Write};

use serde::Serialize;

use crate::error::{Defect, Error, Part};
use crate::input::Input;
use crate::libxc;
use crate::libxl;
use crate::reader::{Event, Format, Kind, Reader, Record, Reserved};

/// Longest text of the sender that is shown.
const SHOWN: usize = 2000;
/// Most parameters that are shown; there are not as many.
const SHOWN_PARAMS: u32 = 256;

/// What a listing says of a header, of a record, or of page records that follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Bytes of the stream before it.
    pub offset: u64,
    /// xl, libxl or libxc; or whose header stands before these.
    pub layer: &'static str,
    /// Name of the record's type, in the specification's words; none for a header.
    pub record: Option<String>,
    /// Number of the record's type.
    #[serde(rename = "type")]
    pub number: Option<u32>,
    /// Bytes of the body, or of the whole header; the sum for page records.
    pub length: u64,
    /// How many page records share this entry, and what is in them.
    #[serde(flatten)]
    pub pages: Option<Run>,
    /// What else there is to say.
    pub about: String,
}

/// Page records that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// How many.
    pub records: u64,
    /// Frames in them.
    pub frames: u64,
    /// Those of them that have contents.
    pub pages: u64,
}

/// Lists a stream; ends with the error if something is wrong, after all that came before.
///
/// # Errors
/// If the stream is not one that could be restored, or `out` cannot be written.
pub fn inspect<R: Read>(
    input: Input<R>,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    entries(input, format, |entry| {
        writeln!(out, "{:>12}  {entry}", entry.offset)
    })
}

/// Hands out what a listing says, one entry after the other; holds no more than one.
///
/// # Errors
/// As [`inspect`], with what `each` says in place of `out`.
pub fn entries<R: Read>(
    input: Input<R>,
    format: Format,
    mut each: impl FnMut(&Entry) -> io::Result<()>,
) -> Result<(), Error> {
    let mut hand_out = |entry: Entry| {
        each(&entry)
            .map_err(|error| Error::new(entry.offset, Part::RecordHeader, Defect::Output(error)))
    };
    let mut reader = Reader::new(input, format, Reserved::Ignore);
    if let Some(container) = reader.container()? {
        hand_out(Entry {
            offset: 0,
            layer: container.name,
            record: None,
            number: None,
            length: container.length,
            pages: None,
            about: String::new(),
        })?;
    }
    let mut gathered: Option<Entry> = None;
    loop {
        let start = reader.offset();
        let event = match reader.next_event() {
            Ok(Some(event)) => event,
            end => {
                gathered.take().map_or(Ok(()), &mut hand_out)?;
                end?;
                break;
            }
        };
        let (layer, about) = match event {
            Event::Record(mut record) => {
                if let Kind::Libxc(libxc::Content::PageData { count, pages }) = record.kind() {
                    let entry = match &mut gathered {
                        Some(entry) => entry,
                        none => none.insert(of_record(&record)),
                    };
                    entry.add(record.header().length, count, pages);
                    continue;
                }
                gathered.take().map_or(Ok(()), &mut hand_out)?;
                let entry = of_record(&record);
                let length = u64::from(record.header().length);
                let about = details(&mut record)?;
                hand_out(Entry {
                    length,
                    about,
                    ..entry
                })?;
                continue;
            }
            Event::Save(header) => {
                let config = header.config().map(String::from_utf8_lossy);
                let text = config.as_deref().unwrap_or("no configuration");
                let shown: String = text.chars().take(SHOWN).collect();
                ("xl", shown.escape_debug().to_string())
            }
            Event::Libxl(header) => {
                let from = if header.from_legacy { "converted" } else { "" };
                ("libxl", from.to_owned())
            }
            Event::Libxc(image, domain) => {
                let libxc::DomainHeader {
                    kind,
                    xen_major,
                    xen_minor,
                } = domain;
                let version = image.version;
                let about = match xen_major {
                    0 => format!("version {version}, {kind}, converted"),
                    _ => format!("version {version}, {kind}, Xen {xen_major}.{xen_minor}"),
                };
                ("libxc", about)
            }
        };
        hand_out(Entry {
            offset: start,
            layer,
            record: None,
            number: None,
            length: reader.offset() - start,
            pages: None,
            about,
        })?;
    }
    Ok(())
}

/// The entry of a record, without what is in it.
fn of_record<R: Read>(record: &Record<'_, R>) -> Entry {
    let number = record.header().kind;
    let (layer, name) = match record.kind() {
        Kind::Libxl(_) => ("libxl", libxl::RecordType(number).to_string()),
        Kind::Libxc(_) => ("libxc", libxc::RecordType(number).to_string()),
    };
    Entry {
        offset: record.offset(),
        layer,
        record: Some(name),
        number: Some(number),
        length: 0,
        pages: None,
        about: String::new(),
    }
}

impl Entry {
    /// Another page record.
    fn add(&mut self, length: u32, frames: u32, pages: u32) {
        let run = self.pages.get_or_insert(Run {
            records: 0,
            frames: 0,
            pages: 0,
        });
        run.records += 1;
        run.frames += u64::from(frames);
        run.pages += u64::from(pages);
        self.length += u64::from(length);
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            layer,
            length,
            about,
            ..
        } = self;
        let (record, between) = match (&self.record, *layer) {
            (Some(record), _) => (record.as_str(), ": "),
            (None, "xl" | "libvirt" | "xend") => ("header", ": "),
            (None, "libxl") => ("header", ", "),
            // Version and kind are all that there is to say of these two.
            (None, _) => return write!(f, "{layer} {about}"),
        };
        write!(f, "{layer} {record}")?;
        if let Some(Run {
            records,
            frames,
            pages,
        }) = self.pages
        {
            return write!(f, ", {records} records, {frames} frames, {pages} pages");
        }
        if self.record.is_some() {
            write!(f, ", {length} bytes")?;
        }
        if about.is_empty() {
            return Ok(());
        }
        write!(f, "{between}{about}")
    }
}

/// What a record says, beyond its name and length.
fn details<R: Read>(record: &mut Record<'_, R>) -> Result<String, Error> {
    let mut text = String::new();
    match record.kind() {
        Kind::Libxc(content) => match content {
            libxc::Content::PvInfo(info) => {
                let _ = write!(text, "{}-bit guest", info.width() * 8);
            }
            libxc::Content::P2mFrames(range) => {
                let _ = write!(text, "frames {:#x} to {:#x}", range.first, range.last);
            }
            libxc::Content::Vcpu { id, size, .. } => {
                let _ = write!(text, "vCPU {id}, {size} bytes");
            }
            libxc::Content::TscInfo(info) => {
                let _ = write!(
                    text,
                    "mode {}, {} kHz, {} ns, incarnation {}",
                    info.mode, info.khz, info.elapsed_ns, info.incarnation
                );
            }
            libxc::Content::CpuidPolicy { leaves: count }
            | libxc::Content::MsrPolicy { entries: count } => {
                let _ = write!(text, "{count} entries");
            }
            libxc::Content::HvmParams { count } if count <= SHOWN_PARAMS => {
                let body = record.bytes()?;
                for pair in body[8..].chunks_exact(16) {
                    let (index, value) = pair.split_at(8);
                    let number = |b: &[u8]| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
                    let _ = write!(text, "{}", if text.is_empty() { "" } else { ", " });
                    let _ = write!(text, "{}={:#x}", number(index), number(value));
                }
            }
            _ => {}
        },
        Kind::Libxl(content) => match content {
            libxl::Content::XenstoreData { emulator, index } => {
                let _ = write!(text, "{emulator:?} {index}");
                let body = record.bytes()?;
                let mut strings = body[8..].split(|byte| *byte == 0);
                while let (Some(key), Some(value)) = (strings.next(), strings.next()) {
                    let (key, value) =
                        (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
                    let (key, value) = (key.escape_debug(), value.escape_debug());
                    let _ = write!(text, ", {key} = \"{value}\"");
                }
            }
            libxl::Content::EmulatorContext { emulator, index } => {
                let _ = write!(text, "{emulator:?} {index}");
            }
            libxl::Content::CheckpointState(state) => {
                let _ = write!(text, "{state:?}");
            }
            _ => {}
        },
    }
    Ok(text)
}
