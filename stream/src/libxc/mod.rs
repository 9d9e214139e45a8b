//! The libxc stream, versions 2 and 3: what the hypervisor knows of a domain.
//!
//! Names and numbers are those of Xen's `docs/specs/libxc-migration-stream.pandoc` and
//! `tools/libs/guest/xg_sr_stream_format.h`.

mod content;
mod header;
mod order;
mod page;
mod parse;
mod sink;
mod writer;

use std::fmt;

pub use content::{Content, HvmParam, P2mFrames, PvInfo, TscInfo, VcpuPart};
pub use header::{DomainHeader, DomainType, ImageHeader};
pub use page::{MAX_BATCH, PageEntry, PageType};
pub use sink::PageSink;
pub use writer::Writer;

pub(crate) use order::Order;
pub(crate) use parse::{PREFIX, parse};

/// The type of a record; any number, since new optional ones may be invented.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordType(pub u32);

/// Declares the known types beside the names that Xen's specification gives them.
macro_rules! record_types {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        impl RecordType {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The name in the specification, if the type is known.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

record_types! {
    /// The last record.
    END = 0x00;
    /// Memory: frames, their types and contents.
    PAGE_DATA = 0x01;
    /// Width and page-table levels of a PV guest.
    X86_PV_INFO = 0x02;
    /// Where a PV guest keeps its P2M table.
    X86_PV_P2M_FRAMES = 0x03;
    /// `vcpu_guest_context` of a PV vCPU.
    X86_PV_VCPU_BASIC = 0x04;
    /// `XEN_DOMCTL_get_ext_vcpucontext` of a PV vCPU.
    X86_PV_VCPU_EXTENDED = 0x05;
    /// `XEN_DOMCTL_getvcpuextstate` of a PV vCPU.
    X86_PV_VCPU_XSAVE = 0x06;
    /// The shared info page of a PV guest.
    SHARED_INFO = 0x07;
    /// How the guest sees the time stamp counter.
    X86_TSC_INFO = 0x08;
    /// Xen's own blob with the state of vCPUs and emulated devices of an HVM guest.
    HVM_CONTEXT = 0x09;
    /// `HVM_PARAM_*` and their values.
    HVM_PARAMS = 0x0a;
    /// Never used by a release.
    TOOLSTACK = 0x0b;
    /// `XEN_DOMCTL_get_vcpu_msrs` of a PV vCPU.
    X86_PV_VCPU_MSRS = 0x0c;
    /// Pages that follow are to be compared with those that came before.
    VERIFY = 0x0d;
    /// All before this is a consistent state (Remus, COLO).
    CHECKPOINT = 0x0e;
    /// Frames that the secondary has changed (COLO, on the way back only).
    CHECKPOINT_DIRTY_PFN_LIST = 0x0f;
    /// All that does not change while the guest runs has been told.
    STATIC_DATA_END = 0x10;
    /// CPUID leaves (`xen_cpuid_leaf_t`, 24 bytes each).
    X86_CPUID_POLICY = 0x11;
    /// MSRs (`xen_msr_entry_t`, 16 bytes each).
    X86_MSR_POLICY = 0x12;
}

impl RecordType {
    /// Whether a receiver may ignore the record if it does not know it.
    #[must_use]
    pub fn is_optional(self) -> bool {
        self.0 & crate::record::OPTIONAL != 0
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type 0x{:08x}", self.0),
        }
    }
}

impl fmt::Debug for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
