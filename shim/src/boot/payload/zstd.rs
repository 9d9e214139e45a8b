//! zstd by [`ruzstd`], which keeps its window on the heap.

use ruzstd::decoding::FrameDecoder;

/// Largest window that the kernel build asks for.
const MAX_WINDOW: u64 = 128 << 20;

/// Unpacks the frames of `data`; `None` if they are damaged or ask for too much.
pub(super) fn unpack(data: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(MAX_WINDOW);
    decoder.decode_all(data, out).ok()
}

/// The decoder's window grows by doubling, and while it does the old one is still there.
pub(super) fn heap_needed(_data: &[u8], unpacked_len: usize) -> usize {
    let window = unpacked_len.next_power_of_two();
    window + window / 2 + (1 << 20)
}
