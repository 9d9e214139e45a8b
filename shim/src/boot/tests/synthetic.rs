//! Kernels made for a test: ELF images and bzImages with just what is asked for.

use xen_abi::elfnote;

/// A loadable segment to be.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) paddr: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) mem_size: u64,
    /// Where in a page of the file the bytes start.
    pub(super) file_skew: usize,
}

/// Encodes one note of Xen's.
pub(super) fn note(kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4, desc.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(desc);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// Encodes a note that holds a number.
pub(super) fn number(kind: u32, value: u64) -> Vec<u8> {
    note(kind, &value.to_le_bytes())
}

/// The notes that every Linux has had for long, for an entry point.
pub(super) fn linux_notes(entry: u64) -> Vec<u8> {
    [
        note(elfnote::GUEST_OS, b"linux\0"),
        note(elfnote::XEN_VERSION, b"xen-3.0\0"),
        number(elfnote::VIRT_BASE, 0xffff_ffff_8000_0000),
        number(elfnote::ENTRY, entry),
        number(elfnote::PADDR_OFFSET, 0),
        note(
            elfnote::FEATURES,
            b"!writable_page_tables|pae_pgdir_above_4gb\0",
        ),
        note(elfnote::LOADER, b"generic\0"),
    ]
    .concat()
}

/// Makes an ELF64 image with `loads` and a note segment; sections come from `sections`.
pub(super) fn elf(loads: &[Load], notes: &[u8], sections: &[(&str, &[u8])]) -> Vec<u8> {
    let phnum = loads.len() + usize::from(!notes.is_empty());
    let mut file = vec![0; 64 + 56 * phnum];
    let mut headers = Vec::new();
    let mut phdr = |kind: u32, offset: usize, paddr: u64, file_size: usize, mem_size: u64| {
        headers.extend(kind.to_le_bytes());
        headers.extend(7u32.to_le_bytes());
        for field in [
            offset as u64,
            paddr,
            paddr,
            file_size as u64,
            mem_size,
            4096,
        ] {
            headers.extend(field.to_le_bytes());
        }
    };
    for load in loads {
        file.resize(file.len().next_multiple_of(4096) + load.file_skew, 0xee);
        phdr(1, file.len(), load.paddr, load.bytes.len(), load.mem_size);
        file.extend(&load.bytes);
    }
    if !notes.is_empty() {
        file.resize(file.len().next_multiple_of(4), 0xee);
        phdr(4, file.len(), 0, notes.len(), 0);
        file.extend(notes);
    }
    // The first section is the null section, the last the section names.
    let mut names = vec![0];
    let mut shdrs = vec![[0u64; 8]];
    let mut section = |file: &mut Vec<u8>, name: &str, kind: u64, bytes: Option<&[u8]>| {
        let name_at = names.len() as u64;
        names.extend(name.as_bytes());
        names.push(0);
        let offset = file.len() as u64;
        let bytes = bytes.map_or_else(|| names.clone(), <[u8]>::to_vec);
        shdrs.push([
            name_at | kind << 32,
            0,
            0,
            offset,
            bytes.len() as u64,
            0,
            4,
            0,
        ]);
        file.extend(bytes);
    };
    for (name, bytes) in sections {
        let kind = if name.starts_with(".note") { 7 } else { 1 };
        section(&mut file, name, kind, Some(bytes));
    }
    section(&mut file, ".shstrtab", 3, None);
    let shoff = file.len() as u64;
    for shdr in &shdrs {
        shdr.iter()
            .for_each(|field| file.extend(field.to_le_bytes()));
    }
    file[64..64 + headers.len()].copy_from_slice(&headers);
    file[..64].copy_from_slice(&header(phnum, shoff, shdrs.len()));
    file
}

fn header(phnum: usize, shoff: u64, shnum: usize) -> Vec<u8> {
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header.extend(2u16.to_le_bytes());
    header.extend(62u16.to_le_bytes());
    header.extend(1u32.to_le_bytes());
    for field in [0x1000u64, 64, shoff] {
        header.extend(field.to_le_bytes());
    }
    header.extend(0u32.to_le_bytes());
    for field in [64, 56, phnum as u16, 64, shnum as u16, shnum as u16 - 1] {
        header.extend(field.to_le_bytes());
    }
    header
}

/// Wraps `payload` as the kernel build does; its trailing length is the caller's.
pub(super) fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SETUP_SECTS: usize = 3;
    let mut file = vec![0; (SETUP_SECTS + 1) * 512 + 100];
    file[0x1f1] = SETUP_SECTS as u8;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend(payload);
    file.extend([0xdd; 77]);
    file
}
