//! What libxc records say, as far as it is understood here: blobs (vCPU states, HVM context,
//! policies) belong to the hypervisor and pass through.

use crate::libxc::{DomainType, RecordType};

/// Size of `vcpu_guest_context` of a 64-bit guest.
const VCPU_BASIC_64: u32 = 0x1430;
/// Size of `vcpu_guest_context` of a 32-bit guest.
const VCPU_BASIC_32: u32 = 0xaf0;

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

impl Content {
    /// The kind of domain, if only one kind has such records.
    pub(crate) fn domain(&self) -> Option<DomainType> {
        match self {
            Self::PvInfo(_) | Self::P2mFrames(_) | Self::Vcpu { .. } | Self::SharedInfo => {
                Some(DomainType::Pv)
            }
            Self::HvmContext | Self::HvmParams { .. } => Some(DomainType::Hvm),
            _ => None,
        }
    }
}
