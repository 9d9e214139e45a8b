//! gzip (RFC 1952) around [`miniz_oxide`]'s inflate, which uses the output as its window.

use alloc::boxed::Box;

use crc::{CRC_32_ISO_HDLC, Crc, Table};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// The member's checksum (RFC 1952, 8), by tables that take sixteen bytes at a time: a kernel has tens of MiB and the
/// machine may be slow.
static CRC32: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISO_HDLC);

const DEFLATE: u8 = 8;
const HAS_CRC: u8 = 1 << 1;
const HAS_EXTRA: u8 = 1 << 2;
const HAS_NAME: u8 = 1 << 3;
const HAS_COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;

/// Unpacks the one member of `data`; `None` if it is damaged.
pub(super) fn unpack(data: &[u8], out: &mut [u8]) -> Option<usize> {
    let body = skip_header(data)?;
    let mut state = Box::<DecompressorOxide>::default();
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, used, got) = decompress(&mut state, body, out, 0, flags);
    if status != TINFLStatus::Done {
        return None;
    }
    let checksum = u32::from_le_bytes(*body.get(used..)?.first_chunk()?);
    (checksum == CRC32.checksum(out.get(..got)?)).then_some(got)
}

fn skip_header(data: &[u8]) -> Option<&[u8]> {
    let (header, mut rest) = data.split_first_chunk::<10>()?;
    let flags = header[3];
    if header[2] != DEFLATE || flags & RESERVED != 0 {
        return None;
    }
    if flags & HAS_EXTRA != 0 {
        let (len, after) = rest.split_first_chunk()?;
        rest = after.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    for text in [HAS_NAME, HAS_COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|&byte| byte == 0)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & HAS_CRC != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}
