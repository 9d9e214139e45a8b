//! A look at the ramdisk before the guest is built: one that was cut off is refused.
//!
//! A ramdisk is the guest's own affair and may be anything.  Linux's is an archive (cpio, "newc") whose
//! entries say how long they are, so that a cut shows without unpacking: the archive's last entry reaches
//! beyond the file.  What is packed or of another form is left to the guest to judge.

use core::fmt;

/// Length of an entry's header; its fields are hexadecimal digits.
const HEADER: usize = 110;
const MAGICS: [&[u8]; 2] = [b"070701", b"070702"];
/// Where in the header the lengths of the file and of its name are, eight digits each.
const FILE_SIZE: usize = 54;
const NAME_SIZE: usize = 94;

/// Why a ramdisk is not given to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

impl fmt::Display for Truncated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the archive is truncated")
    }
}

/// Looks whether the archive that `file` begins with is there to its end.
///
/// # Errors
/// If it certainly is not.
pub fn check_ramdisk(file: &[u8]) -> Result<(), Truncated> {
    let mut at = 0;
    while let Some(rest) = file.get(at..) {
        // Archives may follow each other, with zeros between them.
        match rest.iter().position(|&byte| byte != 0) {
            Some(0) => {}
            Some(zeros) => {
                at += zeros;
                continue;
            }
            None => return Ok(()),
        }
        if !MAGICS.iter().any(|magic| rest.starts_with(magic)) {
            return Ok(());
        }
        let length = entry_len(rest).ok_or(Truncated)?;
        if length > rest.len() {
            return Err(Truncated);
        }
        // The last entry of a file may lack its padding.
        at += length.next_multiple_of(4);
    }
    Ok(())
}

/// Length of the entry that `bytes` begins with, without what aligns the next one; `None` if its header
/// is not whole.  All fields have 32 bits, so nothing overflows.
fn entry_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..HEADER)?;
    let field = |at: usize| {
        header[at..at + 8].iter().try_fold(0usize, |value, &digit| {
            Some(value << 4 | (digit as char).to_digit(16)? as usize)
        })
    };
    let (name, content) = (field(NAME_SIZE)?, field(FILE_SIZE)?);
    Some((HEADER + name).next_multiple_of(4) + content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn entry(name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = format!(
            "070701{:048x}{:08x}{:032x}{:08x}{:08x}",
            0,
            content.len(),
            0,
            name.len() + 1,
            0
        )
        .into_bytes();
        for part in [name.as_bytes(), b"\0"] {
            bytes.extend_from_slice(part);
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn archive() -> Vec<u8> {
        [
            entry("init", &[0x55; 1001]),
            entry("empty", b""),
            entry("dev/console", &[0; 77]),
            entry("TRAILER!!!", b""),
        ]
        .concat()
    }

    #[test]
    fn whole_archives_and_what_is_none_pass() {
        let whole = archive();
        let mut two = whole.clone();
        two.resize(two.len() + 512, 0);
        two.extend_from_slice(&whole);
        let mut packed = whole.clone();
        packed.extend_from_slice(b"\x1f\x8b packed");
        for file in [
            &whole[..],
            &two,
            &packed,
            b"",
            b"0707",
            b"\x1f\x8b\x08",
            &[0; 4096],
        ] {
            assert_eq!(check_ramdisk(file), Ok(()));
        }
    }

    #[test]
    fn an_archive_without_its_end_is_refused() {
        let whole = archive();
        for part in [HEADER - 1, HEADER + 2, 500, whole.len() - 100] {
            assert_eq!(
                check_ramdisk(&whole[..part]),
                Err(Truncated),
                "{part} bytes"
            );
        }
        let mut after = whole.clone();
        after.extend_from_slice(&entry("second", &[1; 64])[..120]);
        assert_eq!(check_ramdisk(&after), Err(Truncated));
    }

    proptest! {
        #[test]
        fn nothing_is_read_that_is_not_there(mut file in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = check_ramdisk(&file);
            file.splice(..0, *b"070701");
            let _ = check_ramdisk(&file);
            file.splice(..6, format!("070701{:0104}", "ffffffff").into_bytes());
            let _ = check_ramdisk(&file);
        }
    }
}
