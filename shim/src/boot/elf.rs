//! The kernel's ELF image: which of its bytes go where, and what its notes ask for.
//!
//! Everything the [builder](super::build) needs is copied out of the headers, so that the image
//! itself may become the guest's memory.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use elf::ElfBytes;
use elf::abi::{EM_386, EM_X86_64, PT_LOAD, PT_NOTE, SHT_NOTE};
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::parse::ParseError;
use xen_abi::PAGE_SIZE;

use super::notes::{NoteError, Notes};

/// Section that kernels described themselves in before there were notes.
const LEGACY_SECTION: &str = "__xen_guest";

/// More than any kernel has; bounds the work per page.
const MAX_SEGMENTS: usize = 64;

/// Segments reach at most this far beyond the base, in bytes; larger claims are damage.
const MAX_TARGET: u64 = 1 << 40;

/// Why an image is not a kernel that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelError {
    /// The headers contradict themselves or the file's length.
    Malformed(&'static str),
    /// A PV kernel for 32-bit x86.
    ThirtyTwoBit,
    /// An image for some other machine.
    OtherMachine(u16),
    /// There is nothing in the image that speaks of Xen.
    NotXen,
    /// The kernel was built without PV support.
    OnlyPvh,
    /// The notes are not acceptable.
    Notes(NoteError),
    /// An address is outside the kernel: which one, and its value.
    Outside(&'static str, u64),
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "the kernel's ELF image is malformed: {what}"),
            Self::ThirtyTwoBit => f.write_str("32-bit PV kernels are not supported"),
            Self::OtherMachine(machine) => {
                write!(f, "the kernel is for ELF machine {machine}, not for x86-64")
            }
            Self::NotXen => {
                f.write_str("the kernel has neither Xen notes nor a __xen_guest section")
            }
            Self::OnlyPvh => f.write_str("the kernel has a PVH entry point but no PV entry point"),
            Self::Notes(error) => error.fmt(f),
            Self::Outside(what, address) => {
                write!(
                    f,
                    "the kernel's {what} {address:#x} is outside the kernel or misaligned"
                )
            }
        }
    }
}

impl From<NoteError> for KernelError {
    fn from(error: NoteError) -> Self {
        Self::Notes(error)
    }
}

impl From<ParseError> for KernelError {
    fn from(_: ParseError) -> Self {
        Self::Malformed("its headers do not parse")
    }
}

/// A piece of the image that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where its bytes are in the image.
    pub offset: u64,
    /// Where they go: bytes from the start of the guest's memory.
    pub target: u64,
    /// How many come from the image.
    pub file_size: u64,
    /// How many there are in memory; the rest is zero.
    pub mem_size: u64,
}

impl Segment {
    pub(super) const fn memory(&self) -> Range<u64> {
        self.target..self.target + self.mem_size
    }

    pub(super) const fn loaded(&self) -> Range<u64> {
        self.target..self.target + self.file_size
    }
}

/// A PV kernel, read and checked.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Virtual address of the guest's first page.
    pub virt_base: u64,
    /// Virtual address that the first vCPU starts at.
    pub entry: u64,
    /// What to load; no segment is empty.
    pub segments: Vec<Segment>,
    /// End of the last segment in bytes from the start of the guest's memory.
    pub end: u64,
    /// Length of the image in bytes.
    pub image_len: u64,
    /// What else the kernel said.
    pub notes: Notes,
}

impl Kernel {
    /// Reads the ELF image `image`.
    ///
    /// # Errors
    /// Any [`KernelError`].
    pub fn parse(image: &[u8]) -> Result<Self, KernelError> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(image)?;
        match (elf.ehdr.e_machine, elf.ehdr.class) {
            (EM_386, _) | (EM_X86_64, Class::ELF32) => return Err(KernelError::ThirtyTwoBit),
            (EM_X86_64, Class::ELF64) => {}
            (machine, _) => return Err(KernelError::OtherMachine(machine)),
        }
        let notes = read_notes(&elf, image)?;
        if notes.entry.is_none() && notes.phys32_entry.is_some() {
            return Err(KernelError::OnlyPvh);
        }
        let virt_base = notes.virt_base.unwrap_or(0);
        if !virt_base.is_multiple_of(PAGE_SIZE as u64) {
            return Err(KernelError::Outside("base address", virt_base));
        }
        // Kernels from before the notes have virtual addresses in place of physical ones.
        let default_offset = if notes.legacy { virt_base } else { 0 };
        let segments = read_segments(&elf, image, notes.paddr_offset.unwrap_or(default_offset))?;
        let memory = |bound: fn(&Segment) -> u64| segments.iter().map(bound);
        let start = memory(|segment| segment.memory().start).min();
        let end = memory(|segment| segment.memory().end).max();
        let (Some(start), Some(end)) = (start, end) else {
            return Err(KernelError::Malformed("it has nothing to load"));
        };
        let entry = notes.entry.unwrap_or(elf.ehdr.e_entry);
        if !(start..end).contains(&entry.wrapping_sub(virt_base)) {
            return Err(KernelError::Outside("entry point", entry));
        }
        let kernel = Self {
            virt_base,
            entry,
            segments,
            end,
            image_len: image.len() as u64,
            notes,
        };
        if let (Some(page), None) = (kernel.notes.hypercall_page, kernel.hypercall_pfn()) {
            return Err(KernelError::Outside("hypercall page", page));
        }
        Ok(kernel)
    }

    /// Returns the page, counted from the base, that the hypercall stubs are wanted in.
    pub(super) fn hypercall_pfn(&self) -> Option<u64> {
        let offset = self.notes.hypercall_page?.wrapping_sub(self.virt_base);
        let page = PAGE_SIZE as u64;
        (offset.is_multiple_of(page) && offset < self.end).then_some(offset / page)
    }
}

fn read_notes(elf: &ElfBytes<'_, LittleEndian>, image: &[u8]) -> Result<Notes, KernelError> {
    let mut notes = Notes::default();
    let mut found = 0;
    for segment in elf.segments().into_iter().flatten() {
        if segment.p_type == PT_NOTE {
            found += notes.add_elf(range(image, segment.p_offset, segment.p_filesz)?)?;
        }
    }
    if found == 0 {
        for section in elf.section_headers().into_iter().flatten() {
            if section.sh_type == SHT_NOTE {
                found += notes.add_elf(range(image, section.sh_offset, section.sh_size)?)?;
            }
        }
    }
    if found == 0 {
        let section = elf
            .section_header_by_name(LEGACY_SECTION)?
            .ok_or(KernelError::NotXen)?;
        notes.add_legacy(range(image, section.sh_offset, section.sh_size)?)?;
    }
    Ok(notes)
}

fn read_segments(
    elf: &ElfBytes<'_, LittleEndian>,
    image: &[u8],
    paddr_offset: u64,
) -> Result<Vec<Segment>, KernelError> {
    let mut segments = Vec::new();
    for header in elf.segments().into_iter().flatten() {
        if header.p_type != PT_LOAD || header.p_memsz == 0 {
            continue;
        }
        range(image, header.p_offset, header.p_filesz)?;
        let target = header
            .p_paddr
            .checked_sub(paddr_offset)
            .ok_or(KernelError::Malformed("a segment lies below the base"))?;
        if header.p_filesz > header.p_memsz {
            return Err(KernelError::Malformed(
                "a segment is larger than its memory",
            ));
        }
        if target > MAX_TARGET || header.p_memsz > MAX_TARGET {
            return Err(KernelError::Malformed("a segment lies too far away"));
        }
        if segments.len() == MAX_SEGMENTS {
            return Err(KernelError::Malformed("it has too many segments"));
        }
        segments.push(Segment {
            offset: header.p_offset,
            target,
            file_size: header.p_filesz,
            mem_size: header.p_memsz,
        });
    }
    Ok(segments)
}

fn range(image: &[u8], offset: u64, len: u64) -> Result<&[u8], KernelError> {
    let bytes = || {
        let start = usize::try_from(offset).ok()?;
        image.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    };
    bytes().ok_or(KernelError::Malformed("a part reaches beyond its end"))
}
