//! libxl's own chunk in a legacy stream: QEMU's map of guest memory, which becomes xenstore entries.
//!
//! The entry was a C structure with a name at its end; a 64-bit libxl wrote four bytes too many of it.

use std::io::{Read, Write};

use crate::error::Defect;
use crate::legacy::Width;
use crate::legacy::source::Source;
use crate::record::Fields;

/// Longest chunk; real ones have some 100 bytes.
const MAX_CHUNK: u32 = 1 << 20;
/// Most strings of all chunks together.
const MAX_STRINGS: usize = 2 << 20;
/// Bytes of an entry before its name.
const ENTRY: usize = 28;
/// Bytes that a 64-bit libxl left behind each name.
const STRAY: usize = 4;

/// Reads the chunk; appends keys and values, each with a NUL, to `strings`.
pub(super) fn read<R: Read>(source: &mut Source<R>, strings: &mut Vec<u8>) -> Result<(), Defect> {
    let length = source.u32()?;
    if length > MAX_CHUNK {
        return Err(Defect::length(length, format!("at most {MAX_CHUNK}")));
    }
    let width = source.width();
    let data = source.bytes(length as usize)?;
    if !data.is_empty() {
        parse(&data, width, strings)?;
    }
    if strings.len() > MAX_STRINGS {
        return Err(Defect::length(
            strings.len() as u64,
            format!("at most {MAX_STRINGS}"),
        ));
    }
    Ok(())
}

fn parse(data: &[u8], width: Width, strings: &mut Vec<u8>) -> Result<(), Defect> {
    let mut fields = Fields(data);
    if data.len() < 8 {
        return Err(Defect::length(data.len() as u64, "at least 8"));
    }
    let version = fields.u32();
    if version != 1 {
        return Err(Defect::Version(version));
    }
    let count = fields.u32();
    for _ in 0..count {
        if fields.0.len() < ENTRY {
            return Err(Defect::length(
                fields.0.len() as u64,
                "at least 28 for each entry",
            ));
        }
        let (phys, start, size) = (fields.u64(), fields.u64(), fields.u64());
        let length = fields.u32() as usize;
        let stray = match width {
            Width::Bits32 => 0,
            Width::Bits64 => STRAY,
        };
        let Some((name, rest)) = fields.0.split_at_checked(length.saturating_add(stray)) else {
            return Err(Defect::length(
                length as u64,
                format!("at most {}", fields.0.len()),
            ));
        };
        fields = Fields(rest);
        let Some((0, name)) = name[..length].split_last() else {
            return Err(Defect::Text("the name of an entry does not end with a NUL"));
        };
        if name.contains(&0) {
            return Err(Defect::Text("the name of an entry has a NUL in it"));
        }
        let root = format!("physmap/{phys:x}");
        // Writing to memory cannot fail.
        let _ = write!(
            strings,
            "{root}/start_addr\0{start:x}\0{root}/size\0{size:x}\0"
        );
        let _ = write!(strings, "{root}/name\0");
        strings.extend_from_slice(name);
        strings.push(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::legacy::Width;

    const HEAD: &[u8] =
        b"\x01\0\0\0\x01\0\0\0\0\0\0\xf0\0\0\0\0\0\0\x10\0\0\0\0\0\0\x20\0\0\0\0\0\0";

    #[test]
    fn both_widths_give_the_same_strings() {
        let expected = b"physmap/f0000000/start_addr\x00100000\0physmap/f0000000/size\x002000\0\
            physmap/f0000000/name\0vga\0";
        for (width, name) in [
            (Width::Bits32, &b"\x04\0\0\0vga\0"[..]),
            (Width::Bits64, b"\x04\0\0\0vga\0\xde\xad\xbe\xef"),
        ] {
            let mut strings = Vec::new();
            parse(&[HEAD, name].concat(), width, &mut strings).unwrap();
            assert_eq!(strings, expected);
        }
    }

    #[test]
    fn damaged_entries_are_refused() {
        let wrong = |data: &[u8]| {
            parse(data, Width::Bits32, &mut Vec::new())
                .unwrap_err()
                .to_string()
        };
        assert!(wrong(b"\x01\0\0\0").contains("at least 8"));
        assert!(wrong(b"\x02\0\0\0\0\0\0\0").contains("version 2"));
        assert!(wrong(&HEAD[..20]).contains("28"));
        assert!(wrong(&[HEAD, b"\x09\0\0\0vga\0"].concat()).contains("at most 4"));
        assert!(wrong(&[HEAD, b"\x03\0\0\0vga\0"].concat()).contains("NUL"));
        assert!(wrong(&[HEAD, b"\0\0\0\0"].concat()).contains("NUL"));
        assert!(wrong(&[HEAD, b"\xff\xff\xff\xffvga\0"].concat()).contains("at most 4"));
    }
}
