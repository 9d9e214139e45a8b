//! Fields of libxc records, checked against their length.

use crate::error::Defect;
use crate::libxc::{Content, P2mFrames, PvInfo, RecordType, TscInfo, VcpuPart};
use crate::record::{Fields, RecordHeader};

/// As many bytes of a body are needed to check it (those of X86_TSC_INFO).
pub(crate) const PREFIX: usize = 24;

/// Bytes of a vCPU record's own header.
const VCPU_HEADER: u32 = 8;
/// Size of the largest extended vCPU context.
const VCPU_EXTENDED: u32 = 128;

/// Reads a record's fields from the first bytes of its body and checks its length against them.
///
/// Of PAGE_DATA only the count is looked at; [`Content::PageData::pages`] is 0 until the entries are
/// counted.
///
/// `prefix` is the first [`PREFIX`] bytes, or all there are.
pub(crate) fn parse(
    header: RecordHeader,
    prefix: &[u8],
    guest: Option<PvInfo>,
    strict: bool,
) -> Result<Content, Defect> {
    let length = header.length;
    let mut fields = Fields(prefix);
    let empty = |content| match length {
        0 => Ok(content),
        _ => Err(Defect::length(length, "0")),
    };
    Ok(match RecordType(header.kind) {
        RecordType::END => empty(Content::End)?,
        RecordType::PAGE_DATA => {
            at_least(length, 16)?;
            let count = fields.u32();
            reserved(fields.u32(), "the head of the record", strict)?;
            if count == 0 || u64::from(length) < 8 + 8 * u64::from(count) {
                return Err(Defect::Value {
                    field: "the number of pages in a record of this length",
                    value: count.into(),
                });
            }
            Content::PageData { count, pages: 0 }
        }
        RecordType::X86_PV_INFO => {
            exactly(length, 8)?;
            let (width, levels) = (fields.u8(), fields.u8());
            let rest = u64::from(fields.u16()) << 32 | u64::from(fields.u32());
            if strict && rest != 0 {
                return Err(Defect::Reserved {
                    field: "the record",
                    value: rest,
                });
            }
            match (width, levels) {
                (4, 3) => Content::PvInfo(PvInfo::Bits32),
                (8, 4) => Content::PvInfo(PvInfo::Bits64),
                _ => {
                    return Err(Defect::Value {
                        field: "width and page-table levels",
                        value: u64::from(width) << 8 | u64::from(levels),
                    });
                }
            }
        }
        RecordType::X86_PV_P2M_FRAMES => {
            at_least(length, 16)?;
            let (first, last) = (fields.u32(), fields.u32());
            if first > last {
                return Err(Defect::Value {
                    field: "the first frame, which is beyond the last one,",
                    value: first.into(),
                });
            }
            let frames = P2mFrames { first, last };
            if let Some(guest) = guest {
                exactly(length, 8 + 8 * frames.pages(guest))?;
            }
            Content::P2mFrames(frames)
        }
        RecordType::X86_PV_VCPU_BASIC => vcpu(VcpuPart::Basic, length, fields, guest, strict)?,
        RecordType::X86_PV_VCPU_EXTENDED => {
            vcpu(VcpuPart::Extended, length, fields, guest, strict)?
        }
        RecordType::X86_PV_VCPU_XSAVE => vcpu(VcpuPart::Xsave, length, fields, guest, strict)?,
        RecordType::X86_PV_VCPU_MSRS => vcpu(VcpuPart::Msrs, length, fields, guest, strict)?,
        RecordType::SHARED_INFO => {
            exactly(length, 4096)?;
            Content::SharedInfo
        }
        RecordType::X86_TSC_INFO => {
            exactly(length, 24)?;
            let info = TscInfo {
                mode: fields.u32(),
                khz: fields.u32(),
                elapsed_ns: fields.u64(),
                incarnation: fields.u32(),
            };
            reserved(fields.u32(), "the record", strict)?;
            Content::TscInfo(info)
        }
        RecordType::HVM_CONTEXT => {
            at_least(length, 1)?;
            Content::HvmContext
        }
        RecordType::HVM_PARAMS => {
            at_least(length, 8)?;
            let count = fields.u32();
            reserved(fields.u32(), "the head of the record", strict)?;
            exactly(length, 8 + 16 * u64::from(count))?;
            Content::HvmParams { count }
        }
        RecordType::VERIFY => empty(Content::Verify)?,
        RecordType::CHECKPOINT => empty(Content::Checkpoint)?,
        RecordType::STATIC_DATA_END => empty(Content::StaticDataEnd)?,
        RecordType::X86_CPUID_POLICY => Content::CpuidPolicy {
            leaves: items(length, 24)?,
        },
        RecordType::X86_MSR_POLICY => Content::MsrPolicy {
            entries: items(length, 16)?,
        },
        RecordType::TOOLSTACK => {
            return Err(Defect::Unsupported(
                "no release ever wrote such a record, and no receiver takes it",
            ));
        }
        RecordType::CHECKPOINT_DIRTY_PFN_LIST => {
            return Err(Defect::Unsupported(
                "it belongs on COLO's way back, from the secondary to the primary",
            ));
        }
        kind if kind.is_optional() => Content::Optional,
        kind => return Err(Defect::UnknownRecord(kind.0)),
    })
}

fn vcpu(
    part: VcpuPart,
    length: u32,
    mut fields: Fields<'_>,
    guest: Option<PvInfo>,
    strict: bool,
) -> Result<Content, Defect> {
    at_least(length, VCPU_HEADER)?;
    let id = fields.u32();
    reserved(fields.u32(), "the head of the record", strict)?;
    let size = length - VCPU_HEADER;
    let fits = match part {
        _ if size == 0 => true,
        VcpuPart::Basic => guest.is_none_or(|guest| size == guest.vcpu_context()),
        VcpuPart::Extended => size <= VCPU_EXTENDED,
        VcpuPart::Xsave => size >= 16,
        VcpuPart::Msrs => size.is_multiple_of(16),
    };
    if !fits {
        let expected = match part {
            VcpuPart::Basic => "that of the guest's registers",
            VcpuPart::Extended => "at most 136",
            VcpuPart::Xsave => "at least 24",
            VcpuPart::Msrs => "8 and a multiple of 16",
        };
        return Err(Defect::length(length, expected));
    }
    Ok(Content::Vcpu { part, id, size })
}

fn exactly(length: u32, expected: u64) -> Result<(), Defect> {
    if u64::from(length) == expected {
        return Ok(());
    }
    Err(Defect::length(length, expected.to_string()))
}

fn at_least(length: u32, least: u32) -> Result<(), Defect> {
    if length >= least {
        return Ok(());
    }
    Err(Defect::length(length, format!("at least {least}")))
}

/// How many items of `size` bytes there are, at least one.
fn items(length: u32, size: u32) -> Result<u32, Defect> {
    if length > 0 && length.is_multiple_of(size) {
        return Ok(length / size);
    }
    Err(Defect::length(length, format!("a multiple of {size}")))
}

fn reserved(value: u32, field: &'static str, strict: bool) -> Result<(), Defect> {
    if strict && value != 0 {
        return Err(Defect::Reserved {
            field,
            value: value.into(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{PREFIX, parse};
    use crate::libxc::{Content, P2mFrames, PvInfo, TscInfo, VcpuPart};
    use crate::record::RecordHeader;

    /// Parses a body, for a 32-bit PV guest where that matters.
    fn body(kind: u32, bytes: &[u8]) -> Result<Content, String> {
        let header = RecordHeader {
            kind,
            length: u32::try_from(bytes.len()).unwrap(),
        };
        let prefix = &bytes[..bytes.len().min(PREFIX)];
        parse(header, prefix, Some(PvInfo::Bits32), true).map_err(|defect| defect.to_string())
    }

    #[test]
    fn literal_bytes() {
        let tsc = b"\x01\0\0\0\x02\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0";
        let info = TscInfo {
            mode: 1,
            khz: 2,
            elapsed_ns: 3,
            incarnation: 4,
        };
        assert_eq!(body(0x08, tsc), Ok(Content::TscInfo(info)));
        assert_eq!(&info.encode(), tsc);
        for (bytes, info) in [
            (b"\x04\x03\0\0\0\0\0\0", PvInfo::Bits32),
            (b"\x08\x04\0\0\0\0\0\0", PvInfo::Bits64),
        ] {
            assert_eq!(body(0x02, bytes), Ok(Content::PvInfo(info)));
            assert_eq!(&info.encode(), bytes);
        }
        // Frames 1023 and 1024 of a 32-bit guest are in two pages of the P2M.
        let mut p2m = b"\xff\x03\0\0\0\x04\0\0".to_vec();
        p2m.extend([0; 16]);
        let range = P2mFrames {
            first: 1023,
            last: 1024,
        };
        assert_eq!(body(0x03, &p2m), Ok(Content::P2mFrames(range)));
        assert!(body(0x03, &p2m[..16]).unwrap_err().contains("must be 24"));
        let vcpu = [&[9, 0, 0, 0, 0, 0, 0, 0][..], &[0; 0xaf0]].concat();
        let content = Content::Vcpu {
            part: VcpuPart::Basic,
            id: 9,
            size: 0xaf0,
        };
        assert_eq!(body(0x04, &vcpu), Ok(content));
        assert_eq!(body(0x0a, &[0; 8]), Ok(Content::HvmParams { count: 0 }));
        assert_eq!(body(0x8000_0001, &[1, 2, 3]), Ok(Content::Optional));
    }

    #[test]
    fn wrong_lengths_and_fields_are_named() {
        let wrong = |kind, bytes: &[u8]| body(kind, bytes).unwrap_err();
        for kind in [0x00, 0x0d, 0x0e, 0x10] {
            assert!(wrong(kind, &[0]).contains("must be 0"));
        }
        assert!(wrong(0x01, &[0; 15]).contains("at least 16"));
        assert!(wrong(0x01, &[0; 16]).contains("number of pages"));
        assert!(wrong(0x01, &[9; 24]).contains("reserved"));
        assert!(wrong(0x02, &[8, 3, 0, 0, 0, 0, 0, 0]).contains("0x803"));
        assert!(wrong(0x02, &[8, 4, 0, 0, 0, 0, 0, 1]).contains("reserved"));
        assert!(wrong(0x04, &[0; 0x1438]).contains("that of the guest's registers"));
        assert!(wrong(0x05, &[0; 137]).contains("at most 136"));
        assert!(wrong(0x06, &[0; 23]).contains("at least 24"));
        assert!(wrong(0x0c, &[0; 25]).contains("multiple of 16"));
        assert!(wrong(0x07, &[0; 4095]).contains("must be 4096"));
        assert!(wrong(0x08, &[0; 23]).contains("must be 24"));
        assert!(wrong(0x09, &[]).contains("at least 1"));
        assert!(wrong(0x0a, &[1, 0, 0, 0, 0, 0, 0, 0]).contains("must be 24"));
        assert!(wrong(0x0b, &[]).contains("no release"));
        assert!(wrong(0x0f, &[0; 8]).contains("COLO"));
        assert!(wrong(0x11, &[0; 25]).contains("multiple of 24"));
        assert!(wrong(0x12, &[]).contains("multiple of 16"));
        assert!(wrong(0x13, &[]).contains("type 0x00000013"));
        let count = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert!(wrong(0x0a, &count).contains("must be 68719476728"));
    }
}
