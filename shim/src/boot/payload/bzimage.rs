//! Where the compressed image lies inside a bzImage (Linux' x86 boot protocol).

use super::PayloadError;

const SECTOR: usize = 512;
/// Size of the 16-bit part in sectors, the boot sector not counted.
const SETUP_SECTS: usize = 0x1f1;
/// `0xaa55`.
const BOOT_FLAG: usize = 0x1fe;
/// `"HdrS"`.
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
/// Offset of the payload from the start of the protected-mode part, in bytes.
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// First protocol with the two fields above.
const FIRST_VERSION: u16 = 0x208;

/// Returns the payload of bzImage `file`, its trailing length included.
pub(super) fn payload(file: &[u8]) -> Result<&[u8], PayloadError> {
    let is_bzimage =
        get(file, BOOT_FLAG) == Some([0x55, 0xaa]) && get(file, HEADER) == Some(*b"HdrS");
    if !is_bzimage {
        return Err(PayloadError::NotAKernel);
    }
    let protocol = u16::from_le_bytes(get(file, VERSION).ok_or(PayloadError::Truncated)?);
    if protocol < FIRST_VERSION {
        return Err(PayloadError::TooOld { protocol });
    }
    let [sectors] = get(file, SETUP_SECTS).ok_or(PayloadError::Truncated)?;
    // Zero stands for four, from the days before the field existed.
    let sectors = if sectors == 0 {
        4
    } else {
        usize::from(sectors)
    };
    let number = |at| {
        let number = u32::from_le_bytes(get(file, at).ok_or(PayloadError::Truncated)?);
        usize::try_from(number).map_err(|_| PayloadError::Truncated)
    };
    let start = number(PAYLOAD_OFFSET)?
        .checked_add((sectors + 1) * SECTOR)
        .ok_or(PayloadError::Truncated)?;
    let end = number(PAYLOAD_LENGTH)?
        .checked_add(start)
        .ok_or(PayloadError::Truncated)?;
    file.get(start..end).ok_or(PayloadError::Truncated)
}

fn get<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..)?.first_chunk().copied()
}
