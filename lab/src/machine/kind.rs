//! Which emulator a machine is, and which processor it has.

use anyhow::{Context, Result};

/// A kind of machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// QEMU's TCG: an AMD processor with SVM, virtio devices, a LAN.
    #[default]
    Qemu,
    /// Bochs, with this processor: its own devices, no LAN.
    Bochs(Processor),
}

/// A processor that Bochs knows by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// Intel Skylake-X: VMX with EPT, VPID and unrestricted guests, SMEP, SMAP.
    SkylakeX,
    /// Intel Haswell: the last without SMAP.
    Haswell,
    /// Intel Ice Lake.
    IceLake,
    /// Intel Tiger Lake.
    TigerLake,
    /// AMD Ryzen: SVM with nested paging, SMEP, SMAP.
    Ryzen,
}

impl Processor {
    /// As Bochs calls it.
    #[must_use]
    pub fn model(self) -> &'static str {
        match self {
            Self::SkylakeX => "corei7_skylake_x",
            Self::Haswell => "corei7_haswell_4770",
            Self::IceLake => "corei7_icelake_u",
            Self::TigerLake => "tigerlake",
            Self::Ryzen => "ryzen",
        }
    }
}

impl Kind {
    /// The one with a usual Intel processor.
    pub const INTEL: Self = Self::Bochs(Processor::SkylakeX);
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Qemu,
        Self::INTEL,
        Self::Bochs(Processor::Haswell),
        Self::Bochs(Processor::IceLake),
        Self::Bochs(Processor::TigerLake),
        Self::Bochs(Processor::Ryzen),
    ];

    /// As on command lines and in folders.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Bochs(Processor::SkylakeX) => "intel",
            Self::Bochs(Processor::Haswell) => "intel-haswell",
            Self::Bochs(Processor::IceLake) => "intel-icelake",
            Self::Bochs(Processor::TigerLake) => "intel-tigerlake",
            Self::Bochs(Processor::Ryzen) => "amd-bochs",
        }
    }

    /// RAM that is enough for a guest that is moved within the host, in MiB.  Bochs reads all of it when it
    /// starts from a snapshot, so it has less.
    #[must_use]
    pub fn usual_memory_mib(self) -> u32 {
        match self {
            Self::Qemu => 1536,
            Self::Bochs(_) => 1024,
        }
    }

    /// How many times longer than QEMU it may take for anything.
    #[must_use]
    pub fn patience(self) -> u32 {
        match self {
            Self::Qemu => 1,
            Self::Bochs(_) => 4,
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let names = Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .with_context(|| format!("there is no machine '{text}': choose one of {names}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn a_kind_is_found_by_its_name() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse::<Kind>().unwrap(), kind);
        }
        let error = "vax".parse::<Kind>().unwrap_err().to_string();
        assert!(error.contains("qemu, intel, ") && error.contains("amd-bochs"));
    }
}
