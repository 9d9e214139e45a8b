//! What a kernel says about itself to Xen: ELF notes, or the text section of the days before them.

use alloc::string::String;
use core::fmt;

use xen_abi::elfnote;

/// Why a kernel's notes are not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoteError {
    /// A note's length does not fit its meaning.
    Malformed(u32),
    /// The kernel insists on a feature that a PV guest here does not have.
    MissingFeature(String),
    /// The kernel was built for another interface than `xen-3.0`.
    OtherInterface(String),
}

impl fmt::Display for NoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(kind) => write!(f, "the kernel's Xen note {kind} is malformed"),
            Self::MissingFeature(name) => {
                write!(
                    f,
                    "the kernel requires the feature {name}, which is not offered"
                )
            }
            Self::OtherInterface(version) => {
                write!(f, "the kernel was built for {version}, not for xen-3.0")
            }
        }
    }
}

/// What the notes said; `None` and `false` where they said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Virtual address of the entry point.
    pub entry: Option<u64>,
    /// Virtual address of the hypercall page.
    pub hypercall_page: Option<u64>,
    /// Virtual address of the first page of memory.
    pub virt_base: Option<u64>,
    /// What to subtract from the ELF's physical addresses.
    pub paddr_offset: Option<u64>,
    /// Virtual address that the P2M list is wanted at.
    pub init_p2m: Option<u64>,
    /// Whether the ramdisk may stay unmapped.
    pub mod_start_pfn: bool,
    /// Lowest address that the hypervisor may use; means something to 32-bit kernels only.
    pub hv_start_low: Option<u64>,
    /// Mask and value that tell a valid level-1 entry.
    pub l1_mfn_valid: Option<(u64, u64)>,
    /// Whether the kernel copes with a suspend that was called off.
    pub suspend_cancel: bool,
    /// 32-bit only: whether the kernel uses PAE.
    pub pae_mode: Option<String>,
    /// Bit map of the features that the kernel knows.
    pub supported_features: u32,
    /// Physical address of the PVH entry point.
    pub phys32_entry: Option<u64>,
    /// Name of the operating system.
    pub guest_os: Option<String>,
    /// Its version.
    pub guest_version: Option<String>,
    /// Whether the notes were the text of a `__xen_guest` section.
    pub legacy: bool,
}

impl Notes {
    /// Takes in the notes of one note segment or section; returns how many were Xen's.
    ///
    /// # Errors
    /// Any [`NoteError`].  A note that reaches beyond `data` ends it, as it does for Xen.
    pub fn add_elf(&mut self, data: &[u8]) -> Result<usize, NoteError> {
        let mut found = 0;
        for (owner, kind, desc) in ElfNotes(data) {
            if text(owner) == elfnote::OWNER {
                self.add_note(kind, desc)?;
                found += 1;
            }
        }
        Ok(found)
    }

    fn add_note(&mut self, kind: u32, desc: &[u8]) -> Result<(), NoteError> {
        let value = || number(desc).ok_or(NoteError::Malformed(kind));
        match kind {
            elfnote::ENTRY => self.entry = Some(value()?),
            elfnote::HYPERCALL_PAGE => self.hypercall_page = Some(value()?),
            elfnote::VIRT_BASE => self.virt_base = Some(value()?),
            elfnote::PADDR_OFFSET => self.paddr_offset = Some(value()?),
            elfnote::INIT_P2M => self.init_p2m = Some(value()?),
            elfnote::MOD_START_PFN => self.mod_start_pfn = value()? != 0,
            elfnote::HV_START_LOW => self.hv_start_low = Some(value()?),
            elfnote::SUSPEND_CANCEL => self.suspend_cancel = value()? != 0,
            elfnote::PHYS32_ENTRY => self.phys32_entry = Some(value()?),
            elfnote::L1_MFN_VALID => {
                let (mask, rest) = desc.split_first_chunk().ok_or(NoteError::Malformed(kind))?;
                let valid = rest.first_chunk().ok_or(NoteError::Malformed(kind))?;
                self.l1_mfn_valid = Some((u64::from_le_bytes(*mask), u64::from_le_bytes(*valid)));
            }
            elfnote::SUPPORTED_FEATURES => {
                let map = desc.first_chunk().ok_or(NoteError::Malformed(kind))?;
                self.supported_features |= u32::from_le_bytes(*map);
            }
            elfnote::FEATURES => self.add_features(text(desc))?,
            elfnote::XEN_VERSION => check_version(text(desc))?,
            elfnote::GUEST_OS => self.guest_os = Some(owned(desc)),
            elfnote::GUEST_VERSION => self.guest_version = Some(owned(desc)),
            elfnote::PAE_MODE => self.pae_mode = Some(owned(desc)),
            _ => {}
        }
        Ok(())
    }

    /// Takes in the text of a `__xen_guest` section: `NAME=value` or `NAME`, separated by commas.
    ///
    /// # Errors
    /// Any [`NoteError`].
    pub fn add_legacy(&mut self, section: &[u8]) -> Result<(), NoteError> {
        self.legacy = true;
        for item in text(section).split(|&byte| byte == b',') {
            let (name, value) = match item.iter().position(|&byte| byte == b'=') {
                Some(at) => (&item[..at], &item[at + 1..]),
                None => (item, &item[item.len()..]),
            };
            match name {
                b"VIRT_BASE" => self.virt_base = legacy_number(value),
                b"VIRT_ENTRY" => self.entry = legacy_number(value),
                b"ELF_PADDR_OFFSET" => self.paddr_offset = legacy_number(value),
                // A page number relative to the base, which may follow.
                b"HYPERCALL_PAGE" => {
                    let page = legacy_number(value);
                    self.hypercall_page = page.map(|page| page << 12);
                }
                b"GUEST_OS" => self.guest_os = Some(owned(value)),
                b"GUEST_VER" => self.guest_version = Some(owned(value)),
                b"XEN_VER" => check_version(value)?,
                b"PAE" => self.pae_mode = Some(owned(value)),
                b"FEATURES" => self.add_features(value)?,
                _ => {}
            }
        }
        if let Some(page) = &mut self.hypercall_page {
            *page = page.wrapping_add(self.virt_base.unwrap_or(0));
        }
        Ok(())
    }

    /// Takes in a list of features, separated by `|`.
    ///
    /// A `!` in front makes a feature a requirement to every loader but in one case: each Linux
    /// has always said `!writable_page_tables` and meant that it can do without.
    fn add_features(&mut self, list: &[u8]) -> Result<(), NoteError> {
        for item in list.split(|&byte| byte == b'|') {
            let (required, name) = match item {
                [b'!', name @ ..] => (true, name),
                name => (false, name),
            };
            match FEATURES.iter().find(|(known, ..)| known.as_bytes() == name) {
                Some(&(_, bit, tolerated)) if tolerated || !required => {
                    self.supported_features |= 1 << bit;
                }
                None if !required => {}
                _ => return Err(NoteError::MissingFeature(owned(name))),
            }
        }
        Ok(())
    }
}

/// Names of the features, their bits (`XENFEAT_*`), and whether a kernel may insist on them.
const FEATURES: [(&str, u32, bool); 7] = [
    ("writable_page_tables", 0, true),
    ("writable_descriptor_tables", 1, false),
    ("auto_translated_physmap", 2, false),
    ("supervisor_mode_kernel", 3, false),
    ("pae_pgdir_above_4gb", 4, true),
    ("hvm_callback_vector", 8, false),
    ("dom0", 11, false),
];

/// Splits notes into owner, type and description.
///
/// Everything is padded to four bytes, whatever the segment's alignment claims: that is how Xen's
/// notes have always been written.
struct ElfNotes<'a>(&'a [u8]);

impl<'a> Iterator for ElfNotes<'a> {
    type Item = (&'a [u8], u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, rest) = self.0.split_first_chunk::<12>()?;
        let word = |at| {
            header[at..]
                .first_chunk()
                .map(|word| u32::from_le_bytes(*word))
        };
        let (owner, rest) = padded(rest, word(0)?)?;
        let (desc, rest) = padded(rest, word(4)?)?;
        self.0 = rest;
        Some((owner, word(8)?, desc))
    }
}

/// Splits `len` bytes and their padding off; the padding of the last note may be missing.
fn padded(data: &[u8], len: u32) -> Option<(&[u8], &[u8])> {
    let len = usize::try_from(len).ok()?;
    let (head, _) = data.split_at_checked(len)?;
    Some((head, data.get(len.next_multiple_of(4)..).unwrap_or(&[])))
}

/// Cuts at the first NUL.
fn text(data: &[u8]) -> &[u8] {
    data.split(|&byte| byte == 0).next().unwrap_or(data)
}

fn owned(data: &[u8]) -> String {
    let data = text(data);
    String::from_utf8_lossy(&data[..data.len().min(64)]).into_owned()
}

fn number(desc: &[u8]) -> Option<u64> {
    if desc.is_empty() || desc.len() > 8 {
        return None;
    }
    let mut bytes = [0; 8];
    bytes[..desc.len()].copy_from_slice(desc);
    Some(u64::from_le_bytes(bytes))
}

/// Parses a number as C does: hexadecimal after `0x`, else decimal.
fn legacy_number(value: &[u8]) -> Option<u64> {
    let value = str::from_utf8(value).ok()?;
    match value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix("0X"))
    {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

fn check_version(version: &[u8]) -> Result<(), NoteError> {
    if version.starts_with(b"xen-3.0") {
        Ok(())
    } else {
        Err(NoteError::OtherInterface(owned(version)))
    }
}
