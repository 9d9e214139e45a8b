//! The extended state that XSAVE manages: which parts a guest may enable, and how large they are.

use super::{FrozenCpuid, Leaf};

/// Leaf 0xd.1 `eax`: the compacted format is supported.
pub const XSAVEC: u32 = 1 << 1;

/// x87 and SSE live in the legacy region, always present.
const LEGACY: u64 = 3;
/// AVX.
const AVX: u64 = 1 << 2;
/// The three parts of AVX-512, only usable together.
const AVX512: u64 = 7 << 5;
/// Size of the legacy region and the header.
const HEADER_END: u32 = 576;

/// Returns the parts of `machine`'s XCR0 that features of the guest need.
pub fn supported(machine: u64, avx: bool, avx512: bool) -> u64 {
    let mut wanted = LEGACY;
    if avx {
        wanted |= AVX;
        if avx512 {
            wanted |= AVX512;
        }
    }
    let parts = machine & wanted;
    if consistent(parts) {
        parts
    } else {
        parts & LEGACY
    }
}

/// Whether the CPU would accept a combination in XCR0.
pub fn consistent(xcr0: u64) -> bool {
    let avx512 = xcr0 & AVX512;
    xcr0 & 1 != 0
        && (xcr0 & AVX == 0 || xcr0 & 2 != 0)
        && (avx512 == 0 || avx512 == AVX512 && xcr0 & AVX != 0)
}

/// Yields the size, offset and flags of each enabled part beyond the legacy region.
fn parts(table: &FrozenCpuid, xcr0: u64) -> impl Iterator<Item = Leaf> {
    let enabled = xcr0 & table.xcr0 & !LEGACY;
    (2..63)
        .filter(move |n| enabled & 1 << n != 0)
        .map(|n| table.leaf(0xd, n))
}

/// Returns the size of the standard format with the parts in `xcr0`.
pub fn standard_size(table: &FrozenCpuid, xcr0: u64) -> u32 {
    parts(table, xcr0).fold(HEADER_END, |end, [size, offset, ..]| {
        // Sizes and offsets are the word of whoever is below. Nonsense must not wrap to an area
        // that is too small.
        end.max(size.saturating_add(offset))
    })
}

/// Returns the size of the compacted format with the parts in `xcr0`.
pub fn compacted_size(table: &FrozenCpuid, xcr0: u64) -> u32 {
    parts(table, xcr0).fold(HEADER_END, |end, [size, _, flags, _]| {
        let aligned = flags & 2 != 0;
        let start = if aligned {
            end.next_multiple_of(64)
        } else {
            end
        };
        start.saturating_add(size)
    })
}
