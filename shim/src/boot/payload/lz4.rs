//! LZ4's legacy frame around [`lz4_flex`]'s block decoder, which uses the output as its window.
//!
//! After a magic number come blocks, each with the length of its compressed form; all but the last
//! unpack to 8 MiB and none refers to another.

use lz4_flex::block::decompress_into;

const MAGIC: u32 = 0x184c_2102;
const BLOCK: usize = 8 << 20;

/// Unpacks the blocks of `data`; `None` if they are damaged.
pub(super) fn unpack(data: &[u8], out: &mut [u8]) -> Option<usize> {
    let (magic, mut data) = word(data)?;
    if magic != MAGIC {
        return None;
    }
    let mut written = 0;
    while !data.is_empty() {
        let (len, rest) = word(data)?;
        // Concatenated frames are legal.
        if len == MAGIC {
            data = rest;
            continue;
        }
        let (block, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        let space = out.get_mut(written..)?;
        let space_len = space.len().min(BLOCK);
        written += decompress_into(block, &mut space[..space_len]).ok()?;
        data = rest;
    }
    Some(written)
}

fn word(data: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = data.split_first_chunk()?;
    Some((u32::from_le_bytes(*word), rest))
}
