//! Takes the ELF kernel out of a Linux bzImage.
//!
//! Kernels decompress themselves, which costs seconds in the emulator, so the lab does it once.  The
//! offsets are those of Linux's `Documentation/arch/x86/boot.rst`.

use anyhow::{Context, Result, bail, ensure};

use crate::tools::{Tools, filter};

/// Byte offsets in the setup header.
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Does this file look like a kernel that a toolstack can load?
#[must_use]
pub fn is_kernel(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF") || payload(image).is_some()
}

/// The kernel in ELF form.
///
/// # Errors
/// If `image` is no bzImage or its payload is packed in an unknown way.
pub fn unpack(image: &[u8], tools: &Tools) -> Result<Vec<u8>> {
    if image.starts_with(b"\x7fELF") {
        return Ok(image.to_vec());
    }
    let payload =
        payload(image).context("this file is no Linux kernel: neither ELF nor bzImage")?;
    // The build appends the unpacked size, except to gzip, which has it already.
    let body = &payload[..payload.len().saturating_sub(4)];
    let elf = match payload {
        [0x1f, 0x8b, ..] => {
            let mut gzip = std::process::Command::new("gzip");
            gzip.arg("-dc");
            filter(gzip, payload)?
        }
        [0xfd, b'7', b'z', b'X', ..] => run(tools, "xz", body)?,
        [0x02, 0x21, 0x4c, 0x18, ..] => run(tools, "lz4", body)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => run(tools, "zstd", body)?,
        _ => bail!("this kernel is packed in a way that the lab does not know"),
    };
    ensure!(
        elf.starts_with(b"\x7fELF"),
        "what this kernel unpacks to is no ELF file"
    );
    Ok(elf)
}

fn run(tools: &Tools, program: &str, data: &[u8]) -> Result<Vec<u8>> {
    let mut command = tools.command(program);
    command.arg("-dc");
    filter(command, data)
}

/// The packed kernel inside a bzImage; `None` if it is not one.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let version = u16::from_le_bytes(image.get(VERSION..VERSION + 2)?.try_into().ok()?);
    // The payload's place is told since protocol 2.08.
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" || version < 0x208 {
        return None;
    }
    let sectors = match *image.get(SETUP_SECTORS)? {
        0 => 4,
        count => usize::from(count),
    };
    let start = (sectors + 1) * 512 + word(PAYLOAD_OFFSET)?;
    image.get(start..start.checked_add(word(PAYLOAD_LENGTH)?)?)
}

#[cfg(test)]
mod tests {
    use super::payload;

    #[test]
    fn a_payload_is_found_by_the_header() {
        let mut image = vec![0u8; 2048];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&8u32.to_le_bytes());
        image[1040..1048].copy_from_slice(b"payload!");
        assert_eq!(payload(&image), Some(b"payload!".as_slice()));
    }

    #[test]
    fn a_header_that_points_outside_is_refused() {
        let mut image = vec![0u8; 1024];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x248..0x250].fill(0xff);
        assert_eq!(payload(&image), None);
        assert_eq!(payload(b"MZ"), None);
    }
}
