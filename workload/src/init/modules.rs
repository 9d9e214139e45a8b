//! Loading kernel modules that the initramfs brings, in the order it names.
//!
//! `/modules/order` has a line for each: the file's name in `/modules` (`.ko` or `.ko.xz`) and
//! the module's parameters.  Lines that begin with `#` are remarks.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use xz4rust::{XzDecoder, XzNextBlockResult};

use crate::sys::system;

/// Where they are.
pub const FOLDER: &str = "/modules";

/// No module unpacks to more.
const LARGEST: usize = 64 << 20;

/// Loads every module of `folder/order`; what could not be loaded and why.
#[must_use]
pub fn load_all(folder: &Path) -> Vec<(String, io::Error)> {
    let Ok(order) = fs::read_to_string(folder.join("order")) else {
        return Vec::new();
    };
    order
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| {
            let (name, parameters) = line.split_once(' ').unwrap_or((line, ""));
            match load(&folder.join(name), parameters.trim()) {
                Ok(()) => None,
                Err(error) => Some((name.to_owned(), error)),
            }
        })
        .collect()
}

fn load(path: &Path, parameters: &str) -> io::Result<()> {
    let loaded = if path.extension().is_some_and(|kind| kind == "xz") {
        system::load_module_image(&unpack(&fs::read(path)?)?, parameters)
    } else {
        system::load_module_file(&File::open(path)?, parameters)
    };
    match loaded {
        // Built in, or asked for twice: what matters is that it is there.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Unpacks an xz file.
fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("xz: {why}"));
    let mut decoder = XzDecoder::in_heap_with_alloc_dict_size(1 << 20, LARGEST);
    let mut unpacked = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    let mut rest = packed;
    loop {
        let step = decoder
            .decode(rest, &mut chunk)
            .map_err(|error| bad(&format!("{error:?}")))?;
        rest = &rest[step.input_consumed()..];
        unpacked.extend_from_slice(&chunk[..step.output_produced()]);
        if unpacked.len() > LARGEST {
            return Err(bad("too large"));
        }
        match step {
            XzNextBlockResult::EndOfStream(..) => return Ok(unpacked),
            XzNextBlockResult::NeedMoreData(..) if step.made_progress() => {}
            XzNextBlockResult::NeedMoreData(..) => return Err(bad("truncated")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{load_all, unpack};
    use std::fs;

    /// `printf 'module\n' | xz --check=crc32`
    const PACKED: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21,
        0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x06, 0x6d, 0x6f, 0x64,
        0x75, 0x6c, 0x65, 0x0a, 0x00, 0x00, 0x4f, 0x8a, 0x6e, 0x07, 0x00, 0x01, 0x1b, 0x07, 0x12,
        0xeb, 0xd4, 0x17, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

    #[test]
    fn xz_is_unpacked_and_damage_is_an_error() {
        assert_eq!(unpack(PACKED).expect("unpacks"), b"module\n");
        assert!(unpack(&PACKED[..PACKED.len() - 20]).is_err());
        assert!(unpack(b"not xz at all").is_err());
    }

    #[test]
    fn what_can_not_be_loaded_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        assert!(load_all(folder.path()).is_empty(), "no list, nothing to do");
        fs::write(folder.path().join("order"), "# remark\n\nnone.ko a=1\n").expect("written");
        let failed = load_all(folder.path());
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].0, "none.ko");
    }
}
