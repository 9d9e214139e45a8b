//! Legacy streams (version 1, Xen before 4.6) and their conversion to version 3.
//!
//! A legacy stream does not say what it is: words have the width of the sender's toolstack, PV and
//! HVM guests have different layouts, and there is no magic.  [`Origin::detect`] finds both out from the
//! first bytes; Xen's own `convert-legacy-stream` has to be told.  What it converts is converted here to
//! the same bytes; what differs is listed in `docs/stream.md`.
//!
//! Nothing but one vCPU's state and xenstore strings is held: pages pass through.

mod chunk;
mod detect;
mod hvm;
mod pv;
mod source;
mod toolstack;

use std::io::{Read, Write};

use serde::Serialize;

pub use detect::{Origin, Width};

use crate::container::Container;
use crate::error::{Defect, Error, Part};
use crate::input::Input;
use crate::legacy::source::Source;
use crate::libxc::{self, DomainHeader, DomainType, ImageHeader};
use crate::libxl::{self, Emulator};
use crate::verify::DEVICE_MODEL;
use crate::xl::{Mandatory, SaveHeader};

/// Version of the converter that a converted stream names, that of Xen's own.
const CONVERTER: u32 = 1;

/// What to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Target {
    /// A libxl stream; behind an xl header if the input has one.
    #[default]
    Libxl,
    /// A bare libxc stream.
    Libxc,
}

/// How to convert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The sender's width, if it is known; otherwise it is detected.
    pub width: Option<Width>,
    /// The kind of guest, if it is known; otherwise it is detected.
    pub guest: Option<DomainType>,
    /// What to write.
    pub target: Target,
    /// Leave out the device model's state, which follows an HVM guest's stream.
    pub skip_device_model: bool,
    /// Refuse bytes that follow the stream: right for a file, not for a peer that waits.
    pub expect_end: bool,
}

/// What was converted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Converted {
    /// Whether there was an xl header.
    pub xl_header: bool,
    /// Width of the sender's toolstack in bits.
    pub width: u32,
    /// "x86 PV" or "x86 HVM".
    pub domain: String,
    /// Frames in page records.
    pub frames: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// What the chunks of a stream leave to be written behind the libxc stream.
#[derive(Debug, Default)]
struct Rest {
    /// Strings for EMULATOR_XENSTORE_DATA.
    xenstore: Vec<u8>,
    frames: u64,
}

/// Converts a legacy stream to version 3.
///
/// # Errors
/// If it is not a legacy stream, is damaged or uses what is not supported (tmem, compressed pages), or
/// if `out` cannot be written.
pub fn convert<R: Read, W: Write>(
    mut input: Input<R>,
    mut out: W,
    options: &Options,
) -> Result<Converted, Error> {
    match Container::pass(&mut input) {
        // Who tells what it is knows better than a few bytes do.
        Err(Defect::Foreign { .. }) if options.width.is_some() && options.guest.is_some() => {}
        passed => drop(passed.map_err(|defect| Error::new(0, Part::Container, defect))?),
    }
    let header = xl_header(&mut input)?;
    if let Some(header) = &header
        && options.target == Target::Libxl
    {
        let mut header = header.clone();
        header.mandatory |= Mandatory::STREAM_V2;
        out.write_all(&header.encode())
            .map_err(|error| Error::new(0, Part::XlHeader, Defect::Output(error)))?;
    }
    let origin = Origin::detect(&mut input, options.width, options.guest)?;
    let mut source = Source::new(input, origin.width);
    let image = ImageHeader { version: 3 };
    let domain = DomainHeader {
        kind: origin.guest,
        xen_major: 0,
        xen_minor: CONVERTER,
    };
    let rest = match options.target {
        Target::Libxc => {
            let mut inner = libxc::Writer::new(out, image, domain)?;
            let rest = body(&mut source, &mut inner, origin.guest)?;
            let mut out = inner.into_inner();
            if origin.guest == DomainType::Hvm && !options.skip_device_model {
                bare_device_model(&mut source, &mut out)?;
            }
            flush(&mut out)?;
            rest
        }
        Target::Libxl => {
            let outer = libxl::Writer::new(out, libxl::Header { from_legacy: true })?;
            let mut inner = outer.libxc_context(image, domain)?;
            let rest = body(&mut source, &mut inner, origin.guest)?;
            let mut outer = inner.into_inner();
            outer.emulator_xenstore_data(Emulator::Unknown, 0, &rest.xenstore)?;
            if origin.guest == DomainType::Hvm && !options.skip_device_model {
                device_model(&mut source, &mut outer)?;
            }
            outer.end()?;
            flush(outer.get_mut())?;
            rest
        }
    };
    if options.expect_end {
        source.expect_end()?;
    }
    Ok(Converted {
        xl_header: header.is_some(),
        width: origin.width.bits(),
        domain: origin.guest.to_string(),
        frames: rest.frames,
        bytes: source.offset(),
    })
}

/// Reads an xl header, if the stream begins with one.
fn xl_header<R: Read>(input: &mut Input<R>) -> Result<Option<SaveHeader>, Error> {
    let mut read = || {
        if !SaveHeader::is_next(input)? {
            return Ok(None);
        }
        let header = SaveHeader::read(input)?;
        if header.mandatory.contains(Mandatory::STREAM_V2) {
            return Err(Defect::Unsupported(
                "this is not a legacy stream, but version 2",
            ));
        }
        Ok(Some(header))
    };
    read().map_err(|defect| Error::new(0, Part::XlHeader, defect))
}

/// Converts what becomes the libxc stream.
fn body<R: Read, W: Write>(
    source: &mut Source<R>,
    out: &mut libxc::Writer<W>,
    guest: DomainType,
) -> Result<Rest, Error> {
    let p2m_size = source.part("p2m_size", |source| {
        let size = source.word()?;
        match u32::try_from(size.saturating_sub(1)) {
            Ok(_) => Ok(size),
            Err(_) => Err(Defect::Value {
                field: "the number of frames",
                value: size,
            }),
        }
    })?;
    let layout = match guest {
        DomainType::Pv => Some(pv::extended_info(source, out)?),
        DomainType::Hvm => None,
    };
    out.static_data_end()?;
    if let Some(layout) = &layout {
        pv::p2m_frames(source, out, layout, p2m_size)?;
    }
    let found = chunk::chunks(source, out, guest)?;
    match &layout {
        Some(layout) => pv::tail(source, out, layout, &found.vcpus)?,
        None => hvm::tail(source, out)?,
    }
    out.end()?;
    Ok(found.rest)
}

/// Reads the device model's signature and length.
fn device_model_head<R: Read>(source: &mut Source<R>) -> Result<u32, Error> {
    source.part("device model", |source| {
        let signature: [u8; DEVICE_MODEL.len()] = source.array()?;
        match &signature {
            DEVICE_MODEL => Ok(u32::from_le_bytes(source.array()?)),
            b"QemuDeviceModelRecord" => Err(Defect::Unsupported(
                "the device model's state has no length, as Xen 3 wrote it",
            )),
            b"RemusDeviceModelState" => Err(Defect::Unsupported(
                "the device model's state is from Remus",
            )),
            other => Err(Defect::Magic {
                expected: "a device model's state",
                found: other.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b)),
            }),
        }
    })
}

/// Leaves the device model's state as it is, behind the libxc stream.
fn bare_device_model<R: Read, W: Write>(source: &mut Source<R>, out: &mut W) -> Result<(), Error> {
    let length = device_model_head(source)?;
    source.part("device model", |source| {
        out.write_all(DEVICE_MODEL).map_err(Defect::Output)?;
        out.write_all(&length.to_le_bytes())
            .map_err(Defect::Output)?;
        source.copy(length.into(), out)
    })
}

/// Makes EMULATOR_CONTEXT from the device model's state.
fn device_model<R: Read, W: Write>(
    source: &mut Source<R>,
    out: &mut libxl::Writer<W>,
) -> Result<(), Error> {
    let length = device_model_head(source)?;
    // Emulator unknown, index 0: Xen's converter does not know better either.
    let head = [0; 8];
    let total = 8 + u64::from(length);
    out.begin_long(libxl::RecordType::EMULATOR_CONTEXT, total, &head)?;
    source.part("device model", |source| {
        let out = out.get_mut();
        out.write_all(&head).map_err(Defect::Output)?;
        source.copy_padded(length, out)
    })
}

fn flush(out: &mut impl Write) -> Result<(), Error> {
    out.flush()
        .map_err(|error| Error::new(0, Part::End, Defect::Output(error)))
}
