//! What only PV guests have: extended info, P2M frames and the tail with vCPUs.

use std::io::{Read, Write};

use crate::error::{Defect, Error};
use crate::legacy::source::Source;
use crate::libxc::{self, P2mFrames, PvInfo, RecordType, VcpuPart};

/// Longest extended info; real ones have some 5 KiB.
const MAX_INFO: u32 = 64 << 10;
/// Longest XSAVE state of a vCPU; real ones have some KiB.
const MAX_XSAVE: u32 = 1 << 20;
/// Bytes of an extended vCPU context.
const EXTENDED: usize = 128;

/// How vCPUs are laid out in the tail.
#[derive(Debug)]
pub(super) struct Layout {
    guest: PvInfo,
    has_extended: bool,
    /// Bytes of XSAVE state with its own header of 16, or 0.
    xsave: u32,
}

/// Reads the extended info; writes X86_PV_INFO.
pub(super) fn extended_info<R: Read, W: Write>(
    source: &mut Source<R>,
    out: &mut libxc::Writer<W>,
) -> Result<Layout, Error> {
    let layout = source.part("extended info", read_info)?;
    out.pv_info(layout.guest)?;
    Ok(layout)
}

fn read_info<R: Read>(source: &mut Source<R>) -> Result<Layout, Defect> {
    let mark = source.word()?;
    if mark != u64::MAX >> (64 - source.width().bits()) {
        return Err(Defect::Magic {
            expected: "extended info, without which (before Xen 3.0) a PV guest is not supported",
            found: mark,
        });
    }
    let total = source.u32()?;
    if total > MAX_INFO {
        return Err(Defect::length(total, format!("at most {MAX_INFO}")));
    }
    let (mut guest, mut has_extended, mut xsave) = (None, false, 0);
    let mut left = total;
    while left > 0 {
        let name: [u8; 4] = source.array()?;
        let length = source.u32()?;
        let Some(rest) = left
            .checked_sub(8)
            .and_then(|left| left.checked_sub(length))
        else {
            return Err(Defect::length(
                length,
                format!("at most {left} with its head"),
            ));
        };
        left = rest;
        match &name {
            b"vcpu" => {
                guest = [PvInfo::Bits32, PvInfo::Bits64]
                    .into_iter()
                    .find(|guest| guest.vcpu_context() == length);
                if guest.is_none() {
                    return Err(Defect::length(length, "that of the registers of a vCPU"));
                }
                source.skip(length.into())?;
            }
            b"extv" => {
                has_extended = true;
                source.skip(length.into())?;
            }
            b"xcnt" if length >= 4 => {
                xsave = source.u32()?;
                if xsave != 0 && !(16..=MAX_XSAVE).contains(&xsave) {
                    return Err(Defect::length(xsave, format!("16 to {MAX_XSAVE}")));
                }
                source.skip((length - 4).into())?;
            }
            _ => {
                return Err(Defect::Value {
                    field: "the name of a block (or its length)",
                    value: u32::from_be_bytes(name).into(),
                });
            }
        }
    }
    Ok(Layout {
        guest: guest.ok_or(Defect::Missing("the vcpu block"))?,
        has_extended,
        xsave,
    })
}

/// Converts the list of frames that hold the P2M.
pub(super) fn p2m_frames<R: Read, W: Write>(
    source: &mut Source<R>,
    out: &mut libxc::Writer<W>,
    layout: &Layout,
    p2m_size: u64,
) -> Result<(), Error> {
    let range = source.part("p2m_size", |_| match p2m_size.checked_sub(1) {
        Some(last) => Ok(P2mFrames {
            first: 0,
            last: u32::try_from(last).unwrap_or(u32::MAX),
        }),
        None => Err(Defect::Value {
            field: "the number of frames",
            value: 0,
        }),
    })?;
    let count = range.pages(layout.guest);
    let mut prefix = [0; 8];
    prefix[4..].copy_from_slice(&range.last.to_le_bytes());
    let length = u32::try_from(8 + 8 * count).unwrap_or(u32::MAX);
    out.begin_long(RecordType::X86_PV_P2M_FRAMES, length, &prefix)?;
    source.part("P2M frames", |source| {
        let out = out.get_mut();
        out.write_all(&prefix).map_err(Defect::Output)?;
        let mut wide = Vec::new();
        source.words(count, |words| {
            wide.clear();
            words.for_each(|word| wide.extend_from_slice(&word.to_le_bytes()));
            out.write_all(&wide).map_err(Defect::Output)
        })
    })
}

/// Converts vCPUs and the shared info page.
pub(super) fn tail<R: Read, W: Write>(
    source: &mut Source<R>,
    out: &mut libxc::Writer<W>,
    layout: &Layout,
    vcpus: &[u32],
) -> Result<(), Error> {
    source.part("unmapped frames", |source| {
        let count = source.u32()?;
        source.skip(u64::from(count) * source.width().bytes() as u64)?;
        if vcpus.first() == Some(&0) {
            return Ok(());
        }
        Err(Defect::Missing("vCPU 0 (or the VCPU_INFO chunk)"))
    })?;
    for id in vcpus {
        let basic = source.part("vCPU", |source| {
            source.bytes(layout.guest.vcpu_context() as usize)
        })?;
        out.vcpu(VcpuPart::Basic, *id, &basic)?;
        if layout.has_extended {
            let extended = source.part("vCPU, extended", |source| source.bytes(EXTENDED))?;
            out.vcpu(VcpuPart::Extended, *id, &extended)?;
        }
        if layout.xsave > 0 {
            let state = source.part("vCPU, XSAVE", |source| read_xsave(source, layout.xsave))?;
            // Records without contents are not written.
            if !state.is_empty() {
                out.vcpu(VcpuPart::Xsave, *id, &state)?;
            }
        }
    }
    let page = source.part("shared info", Source::array)?;
    out.shared_info(&page)
}

fn read_xsave<R: Read>(source: &mut Source<R>, total: u32) -> Result<Vec<u8>, Defect> {
    let _mask = source.u64()?;
    let size = source.u64()?;
    // Not the other way round: `size` may be anything.
    let expected = total - 16;
    if size != expected.into() {
        return Err(Defect::length(size, expected.to_string()));
    }
    source.bytes(expected as usize)
}
