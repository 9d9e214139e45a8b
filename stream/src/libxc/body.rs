//! Fields of libxc records, checked against their length.
//!
//! Only the first bytes of a body are looked at: blobs (vCPU contexts, HVM context, policies) belong
//! to the hypervisor and pass through.

use crate::error::Defect;
use crate::libxc::{DomainType, RecordType};
use crate::record::{Fields, RecordHeader};

/// As many bytes of a body are needed to check it (those of X86_TSC_INFO).
pub(crate) const PREFIX: usize = 24;

/// Bytes of a vCPU record's own header.
const VCPU_HEADER: u32 = 8;
/// Size of `vcpu_guest_context` of a 64-bit guest.
pub(crate) const VCPU_BASIC_64: u32 = 0x1430;
/// Size of `vcpu_guest_context` of a 32-bit guest.
pub(crate) const VCPU_BASIC_32: u32 = 0xaf0;
/// Size of the largest extended context.
pub(crate) const VCPU_EXTENDED: u32 = 128;

/// Width of a PV guest; page-table levels follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PvInfo {
    /// 32 bits, three levels.
    Bits32,
    /// 64 bits, four levels.
    Bits64,
}

impl PvInfo {
    /// Bytes of a word of the guest.
    #[must_use]
    pub fn width(self) -> u32 {
        match self {
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }

    /// Frame numbers in one page of the guest's P2M table.
    #[must_use]
    pub fn frames_per_page(self) -> u32 {
        4096 / self.width()
    }

    /// Bytes of the guest's `vcpu_guest_context`.
    #[must_use]
    pub fn vcpu_context(self) -> u32 {
        match self {
            Self::Bits32 => VCPU_BASIC_32,
            Self::Bits64 => VCPU_BASIC_64,
        }
    }

    /// The body of X86_PV_INFO.
    #[must_use]
    pub fn encode(self) -> [u8; 8] {
        match self {
            Self::Bits32 => [4, 3, 0, 0, 0, 0, 0, 0],
            Self::Bits64 => [8, 4, 0, 0, 0, 0, 0, 0],
        }
    }
}

/// The range of frames that an X86_PV_P2M_FRAMES record speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct P2mFrames {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
}

impl P2mFrames {
    /// Pages of the P2M table that hold the range.
    #[must_use]
    pub fn pages(self, guest: PvInfo) -> u64 {
        let per_page = guest.frames_per_page();
        u64::from(self.last / per_page).saturating_sub((self.first / per_page).into()) + 1
    }
}

/// Which part of a vCPU's state a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VcpuPart {
    /// Registers (X86_PV_VCPU_BASIC).
    Basic,
    /// System call entry points and the like (X86_PV_VCPU_EXTENDED).
    Extended,
    /// FPU and vector registers (X86_PV_VCPU_XSAVE).
    Xsave,
    /// Model-specific registers (X86_PV_VCPU_MSRS).
    Msrs,
}

impl VcpuPart {
    /// The type of the record.
    #[must_use]
    pub fn record(self) -> RecordType {
        match self {
            Self::Basic => RecordType::X86_PV_VCPU_BASIC,
            Self::Extended => RecordType::X86_PV_VCPU_EXTENDED,
            Self::Xsave => RecordType::X86_PV_VCPU_XSAVE,
            Self::Msrs => RecordType::X86_PV_VCPU_MSRS,
        }
    }
}

/// X86_TSC_INFO (`XEN_DOMCTL_gettscinfo`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscInfo {
    /// `TSC_MODE_*`.
    pub mode: u32,
    /// Frequency.
    pub khz: u32,
    /// Elapsed time of the guest.
    pub elapsed_ns: u64,
    /// How often the guest has been moved while it uses the `pvrdtscp` mode.
    pub incarnation: u32,
}

impl TscInfo {
    /// The body of X86_TSC_INFO.
    #[must_use]
    pub fn encode(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..4].copy_from_slice(&self.mode.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.khz.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.elapsed_ns.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes
    }
}

/// One pair of HVM_PARAMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HvmParam {
    /// `HVM_PARAM_*`.
    pub index: u64,
    /// Its value.
    pub value: u64,
}

/// What a record says, as far as it is understood here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The end.
    End,
    /// This many frames, of which so many have contents.
    PageData {
        /// Frames.
        count: u32,
        /// Frames with contents.
        pages: u32,
    },
    /// Width of the guest.
    PvInfo(PvInfo),
    /// Where the P2M is.
    P2mFrames(P2mFrames),
    /// A part of a vCPU's state.
    Vcpu {
        /// Which part.
        part: VcpuPart,
        /// Which vCPU.
        id: u32,
        /// Bytes of the state; senders up to Xen 4.8 wrote records without any.
        size: u32,
    },
    /// The shared info page.
    SharedInfo,
    /// Time stamp counter.
    TscInfo(TscInfo),
    /// Xen's blob.
    HvmContext,
    /// So many parameters; senders up to Xen 4.8 wrote records without any.
    HvmParams {
        /// How many.
        count: u32,
    },
    /// Compare from here on.
    Verify,
    /// A consistent state.
    Checkpoint,
    /// All static data has come.
    StaticDataEnd,
    /// So many CPUID leaves.
    CpuidPolicy {
        /// How many.
        leaves: u32,
    },
    /// So many MSRs.
    MsrPolicy {
        /// How many.
        entries: u32,
    },
    /// An optional record that is not known here.
    Optional,
}

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

/// The types that only one kind of domain has.
pub(crate) fn belongs_to(content: &Content) -> Option<DomainType> {
    match content {
        Content::PvInfo(_) | Content::P2mFrames(_) | Content::Vcpu { .. } | Content::SharedInfo => {
            Some(DomainType::Pv)
        }
        Content::HvmContext | Content::HvmParams { .. } => Some(DomainType::Hvm),
        _ => None,
    }
}
