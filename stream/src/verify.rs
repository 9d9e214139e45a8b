//! Verifies a stream from its first byte to its last, and tells what is in it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use serde::Serialize;

use crate::error::{Defect, Error, Part};
use crate::input::Input;
use crate::libxc::{self, DomainType};
use crate::libxl;
use crate::reader::{Event, Format, Kind, Reader, Reserved};

/// What Xen's converter puts behind an HVM guest's libxc stream when it writes no libxl stream.
pub(crate) const DEVICE_MODEL: &[u8; 21] = b"DeviceModelRecord0002";

/// What is in a stream that has nothing wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Layers, from the outermost: xl, libxl, libxc.
    pub layers: Vec<String>,
    /// Bytes of all.
    pub bytes: u64,
    /// Version of the libxc stream.
    pub version: u32,
    /// "x86 PV" or "x86 HVM".
    pub domain: String,
    /// Version of the Xen that wrote it; none if it was converted from a legacy stream.
    pub xen: Option<String>,
    /// Records by name.
    pub records: BTreeMap<String, u64>,
    /// Frames in page records.
    pub frames: u64,
    /// Those of them that have contents.
    pub pages: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// What is allowed and yet odd.
    pub notes: Vec<String>,
}

/// Reads all of a stream and refuses everything that the format does not allow.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn verify<R: Read>(input: Input<R>, format: Format) -> Result<Report, Error> {
    let mut reader = Reader::new(input, format, Reserved::Refuse);
    let mut report = Report::default();
    if let Some(container) = reader.container()? {
        report.notes.push(format!(
            "{} has put a header of {} bytes before the stream",
            container.name, container.length
        ));
    }
    while let Some(event) = reader.next_event()? {
        report.note_event(&event);
    }
    if report.layers == ["libxc"] && report.domain == DomainType::Hvm.to_string() {
        skip_device_model(&mut reader, &mut report)?;
    }
    reader.expect_end()?;
    if reader.input().is_device() {
        let note = "on a device, what follows the end is not looked at";
        report.notes.push(note.to_owned());
    }
    report.bytes = reader.offset();
    report.note_whole();
    Ok(report)
}

/// Skips the device model's state that the converter leaves behind the end.
fn skip_device_model<R: Read>(reader: &mut Reader<R>, report: &mut Report) -> Result<(), Error> {
    let offset = reader.offset();
    let mut skip = || {
        let input = reader.input();
        if input.peek(DEVICE_MODEL.len())? != DEVICE_MODEL {
            return Ok(());
        }
        input.consume(DEVICE_MODEL.len());
        let length = u32::from_le_bytes(input.array()?);
        report.notes.push(format!(
            "a device model's state of {length} bytes follows, as Xen's converter leaves it"
        ));
        input.skip(length.into())
    };
    skip().map_err(|defect: Defect| Error::new(offset, Part::End, defect))
}

impl Report {
    fn note_event<R: Read>(&mut self, event: &Event<'_, R>) {
        match event {
            Event::Save(_) => self.layers.push("xl".to_owned()),
            Event::Libxl(_) => self.layers.push("libxl".to_owned()),
            Event::Libxc(image, domain) => {
                self.layers.push("libxc".to_owned());
                self.version = image.version;
                self.domain = domain.kind.to_string();
                self.xen = (domain.xen_major != 0)
                    .then(|| format!("{}.{}", domain.xen_major, domain.xen_minor));
            }
            Event::Record(record) => {
                if let Some(note) = oddity(record.kind()) {
                    self.notes.push(format!(
                        "at byte {} ({}): {note}",
                        record.offset(),
                        record.part()
                    ));
                }
                match record.kind() {
                    Kind::Libxc(libxc::Content::PageData { count, pages }) => {
                        self.frames += u64::from(count);
                        self.pages += u64::from(pages);
                    }
                    Kind::Libxc(libxc::Content::Checkpoint) => self.checkpoints += 1,
                    _ => {}
                }
                self.count(record.part());
            }
        }
    }

    fn count(&mut self, part: Part) {
        // Most records are of pages, and are many: no new name for each.
        let known = match part {
            Part::LibxcRecord { kind, .. } => kind.name(),
            _ => None,
        };
        if let Some(count) = known.and_then(|name| self.records.get_mut(name)) {
            *count += 1;
            return;
        }
        let name = match part {
            Part::LibxlRecord { kind, .. } => format!("libxl {kind}"),
            Part::LibxcRecord { kind, .. } => kind.to_string(),
            _ => return,
        };
        *self.records.entry(name).or_default() += 1;
    }

    fn note_whole(&mut self) {
        let has = |name: &str| self.records.contains_key(name);
        let is_pv = self.domain == DomainType::Pv.to_string();
        if is_pv && !has("SHARED_INFO") {
            self.notes.push("there is no SHARED_INFO".to_owned());
        }
        if !has("PAGE_DATA") {
            self.notes.push("there is no memory".to_owned());
        }
    }
}

/// What is odd about a record though it is allowed.
fn oddity(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Libxc(
            libxc::Content::Vcpu { size: 0, .. } | libxc::Content::HvmParams { count: 0 },
        ) => Some("the record is empty and should have been left out"),
        Kind::Libxc(libxc::Content::Optional) => Some("not known; receivers may ignore it"),
        Kind::Libxl(libxl::Content::Optional) => {
            Some("not known; receivers may ignore it, but libxl refuses it")
        }
        _ => None,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "layers:   {}", self.layers.join(", "))?;
        let writer = match &self.xen {
            Some(version) => format!("written by Xen {version}"),
            None => "converted from a legacy stream".to_owned(),
        };
        writeln!(
            f,
            "domain:   {}, version {}, {writer}",
            self.domain, self.version
        )?;
        writeln!(f, "memory:   {} frames, {} pages", self.frames, self.pages)?;
        writeln!(f, "bytes:    {}", self.bytes)?;
        if self.checkpoints > 0 {
            writeln!(f, "checkpoints: {}", self.checkpoints)?;
        }
        for (name, count) in &self.records {
            writeln!(f, "{count:>8}  {name}")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}
