//! The libxl stream, version 2: a libxc stream and what device models need beside it.
//!
//! Names and numbers are those of Xen's `docs/specs/libxl-migration-stream.pandoc`.

mod body;
mod header;
mod order;
mod writer;

use std::fmt;

pub use body::{CheckpointState, Content, Emulator};
pub use header::Header;
pub use writer::Writer;

pub(crate) use body::{PREFIX, check_xenstore, parse};
pub(crate) use header::IDENT;
pub(crate) use order::Order;

use crate::record::OPTIONAL;

/// The type of a record; any number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordType(pub u32);

impl RecordType {
    /// The last record.
    pub const END: Self = Self(0);
    /// A libxc stream follows; then libxl's records go on.
    pub const LIBXC_CONTEXT: Self = Self(1);
    /// xenstore entries of a device model.
    pub const EMULATOR_XENSTORE_DATA: Self = Self(2);
    /// A device model's state.
    pub const EMULATOR_CONTEXT: Self = Self(3);
    /// libxl's part of a checkpoint is complete.
    pub const CHECKPOINT_END: Self = Self(4);
    /// COLO's two ends tell each other where they are.
    pub const CHECKPOINT_STATE: Self = Self(5);

    /// The name in the specification, if the type is known.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::END => "END",
            Self::LIBXC_CONTEXT => "LIBXC_CONTEXT",
            Self::EMULATOR_XENSTORE_DATA => "EMULATOR_XENSTORE_DATA",
            Self::EMULATOR_CONTEXT => "EMULATOR_CONTEXT",
            Self::CHECKPOINT_END => "CHECKPOINT_END",
            Self::CHECKPOINT_STATE => "CHECKPOINT_STATE",
            _ => return None,
        })
    }

    /// Whether a receiver may ignore the record if it does not know it.
    ///
    /// The specification says so; libxl's reader refuses all types that it does not know.
    #[must_use]
    pub fn is_optional(self) -> bool {
        self.0 & OPTIONAL != 0
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
