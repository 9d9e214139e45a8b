//! Lists what is in a stream, one line per header or record; runs of page records share a line.

use std::fmt::Write as _;
use std::io::{Read, Write};

use crate::error::{Defect, Error, Part};
use crate::input::Input;
use crate::libxc;
use crate::libxl;
use crate::reader::{Event, Format, Kind, Reader, Record, Reserved};

/// Longest text of the sender that is shown.
const SHOWN: usize = 2000;
/// Most parameters that are shown; there are not as many.
const SHOWN_PARAMS: u32 = 256;

/// Page records that follow each other.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    offset: u64,
    records: u64,
    frames: u64,
    pages: u64,
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
    let mut reader = Reader::new(input, format, Reserved::Ignore);
    let mut run = Run::default();
    loop {
        let start = reader.offset();
        let event = match reader.next_event() {
            Ok(Some(event)) => event,
            end => {
                run.end(out)?;
                end?;
                break;
            }
        };
        match event {
            Event::Record(mut record) => {
                if let Kind::Libxc(libxc::Content::PageData { count, pages }) = record.kind() {
                    run.add(record.offset(), count, pages);
                    continue;
                }
                run.end(out)?;
                let text = details(&mut record)?;
                let layer = match record.part() {
                    Part::LibxlRecord { kind, .. } => format!("libxl {kind}"),
                    Part::LibxcRecord { kind, .. } => format!("libxc {kind}"),
                    other => other.to_string(),
                };
                let length = record.header().length;
                line(
                    out,
                    record.offset(),
                    &format!("{layer}, {length} bytes{text}"),
                )?;
            }
            Event::Save(header) => {
                let config = header.config().map(String::from_utf8_lossy);
                let text = config.as_deref().unwrap_or("no configuration");
                let shown: String = text.chars().take(SHOWN).collect();
                line(out, start, &format!("xl header: {}", shown.escape_debug()))?;
            }
            Event::Libxl(header) => {
                let from = if header.from_legacy {
                    ", converted"
                } else {
                    ""
                };
                line(out, start, &format!("libxl header{from}"))?;
            }
            Event::Libxc(image, domain) => {
                let libxc::DomainHeader {
                    kind,
                    xen_major,
                    xen_minor,
                } = domain;
                let version = image.version;
                let text = match xen_major {
                    0 => format!("libxc version {version}, {kind}, converted"),
                    _ => format!("libxc version {version}, {kind}, Xen {xen_major}.{xen_minor}"),
                };
                line(out, start, &text)?;
            }
        }
    }
    Ok(())
}

impl Run {
    fn add(&mut self, offset: u64, count: u32, pages: u32) {
        if self.records == 0 {
            self.offset = offset;
        }
        self.records += 1;
        self.frames += u64::from(count);
        self.pages += u64::from(pages);
    }

    fn end(&mut self, out: &mut impl Write) -> Result<(), Error> {
        let Self {
            offset,
            records,
            frames,
            pages,
        } = std::mem::take(self);
        if records == 0 {
            return Ok(());
        }
        let text = format!("libxc PAGE_DATA, {records} records, {frames} frames, {pages} pages");
        line(out, offset, &text)
    }
}

/// What a record says, beyond its name and length.
fn details<R: Read>(record: &mut Record<'_, R>) -> Result<String, Error> {
    let mut text = String::new();
    match record.kind() {
        Kind::Libxc(content) => match content {
            libxc::Content::PvInfo(info) => {
                let _ = write!(text, ": {}-bit guest", info.width() * 8);
            }
            libxc::Content::P2mFrames(range) => {
                let _ = write!(text, ": frames {:#x} to {:#x}", range.first, range.last);
            }
            libxc::Content::Vcpu { id, size, .. } => {
                let _ = write!(text, ": vCPU {id}, {size} bytes");
            }
            libxc::Content::TscInfo(info) => {
                let _ = write!(
                    text,
                    ": mode {}, {} kHz, {} ns, incarnation {}",
                    info.mode, info.khz, info.elapsed_ns, info.incarnation
                );
            }
            libxc::Content::CpuidPolicy { leaves: count }
            | libxc::Content::MsrPolicy { entries: count } => {
                let _ = write!(text, ": {count} entries");
            }
            libxc::Content::HvmParams { count } if count <= SHOWN_PARAMS => {
                let body = record.bytes()?;
                for pair in body[8..].chunks_exact(16) {
                    let (index, value) = pair.split_at(8);
                    let number = |b: &[u8]| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
                    let _ = write!(text, "{}", if text.is_empty() { ": " } else { ", " });
                    let _ = write!(text, "{}={:#x}", number(index), number(value));
                }
            }
            _ => {}
        },
        Kind::Libxl(content) => match content {
            libxl::Content::XenstoreData { emulator, index } => {
                let _ = write!(text, ": {emulator:?} {index}");
                let body = record.bytes()?;
                let mut strings = body[8..].split(|byte| *byte == 0);
                while let (Some(key), Some(value)) = (strings.next(), strings.next()) {
                    let (key, value) =
                        (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
                    let _ = write!(text, ", {key} = \"{}\"", value.escape_debug());
                }
            }
            libxl::Content::EmulatorContext { emulator, index } => {
                let _ = write!(text, ": {emulator:?} {index}");
            }
            libxl::Content::CheckpointState(state) => {
                let _ = write!(text, ": {state:?}");
            }
            _ => {}
        },
    }
    Ok(text)
}

fn line(out: &mut impl Write, offset: u64, text: &str) -> Result<(), Error> {
    writeln!(out, "{offset:>12}  {text}")
        .map_err(|error| Error::new(offset, Part::RecordHeader, Defect::Output(error)))
}
