//! xz (with the x86 branch filter) by [`xz4rust`], which keeps its dictionary on the heap.

use xz4rust::{XzDecoder, XzNextBlockResult};

/// Largest dictionary that the kernel build asks for.
const MAX_DICTIONARY: usize = 128 << 20;

/// Bytes of heap for the decoder itself.
const DECODER: usize = 64 << 10;

/// Unpacks the one stream of `data`; `None` if it is damaged or asks for too much.
pub(super) fn unpack(data: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut decoder = XzDecoder::in_heap_with_alloc_dict_size(0, MAX_DICTIONARY);
    let (mut read, mut written) = (0, 0);
    loop {
        let step = decoder
            .decode(data.get(read..)?, out.get_mut(written..)?)
            .ok()?;
        read += step.input_consumed();
        written += step.output_produced();
        match step {
            XzNextBlockResult::EndOfStream(..) => return Some(written),
            // Out of input or out of space, with more to come.
            XzNextBlockResult::NeedMoreData(..) if !step.made_progress() => return None,
            XzNextBlockResult::NeedMoreData(..) => {}
        }
    }
}

/// Reads the dictionary's size off the first block's header.
pub(super) fn heap_needed(data: &[u8]) -> usize {
    dictionary(data)
        .unwrap_or(MAX_DICTIONARY)
        .min(MAX_DICTIONARY)
        + DECODER
}

/// LZMA2 is always the last filter, and its one property byte says the size as a power of two or
/// one and a half of it.
fn dictionary(data: &[u8]) -> Option<usize> {
    const STREAM_HEADER: usize = 12;
    const LZMA2: u8 = 0x21;
    let block = data.get(STREAM_HEADER..)?;
    let size = (usize::from(*block.first()?) + 1) * 4;
    let header = block.get(..size)?;
    let at = header.windows(2).rposition(|pair| pair == [LZMA2, 1])?;
    let bits = u32::from(*header.get(at + 2)?);
    let size = (2 | u64::from(bits & 1)).checked_shl(bits / 2 + 11)?;
    usize::try_from(size).ok()
}
