//! Makes the kernel's image the guest's memory.
//!
//! Where a page of a segment is a page of the image, the frame that holds it simply becomes the
//! guest's.  Only what the image does not have at the right place inside a page, or has in a page
//! that several want, is copied.  The image's other frames are ordinary memory afterwards.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use xen_abi::{Mfn, PAGE_SIZE, Pfn};

use super::elf::Kernel;
use super::frames::FrameList;
use super::memory::{Memory, OutOfFrames};
use crate::mem::Frames;

const PAGE: u64 = PAGE_SIZE as u64;
static ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Assigns a frame to each page from 0 to the end of `kernel`, whose image lies in `image`.
///
/// Memory below and between segments keeps what its frames held.
pub(super) fn load<F: Frames, M: FnMut(Mfn, Pfn)>(
    memory: &mut Memory<'_, F, M>,
    kernel: &Kernel,
    image: &FrameList,
) -> Result<(), OutOfFrames> {
    let pages = kernel.end.div_ceil(PAGE);
    let mut in_use = vec![false; image.len() as usize];
    // Everything is copied before anything is cleared, as a page that stays in place may hold
    // bytes that are wanted elsewhere.
    for pfn in 0..pages {
        let pieces = pieces(kernel, pfn);
        if pieces.is_empty() {
            continue;
        }
        if let Some(page) = in_place(&pieces).filter(|&page| !in_use[page as usize]) {
            in_use[page as usize] = true;
            memory.assign(pfn, image_frame(image, page));
            continue;
        }
        let frame = memory.zeroed(pfn)?;
        for piece in &pieces {
            copy(memory.frames, image, piece, frame);
        }
    }
    for (frame, _) in image.iter().zip(&in_use).filter(|(_, in_use)| !**in_use) {
        // Unused memory comes clear, as from Xen.
        memory.frames.clear(frame);
        memory.release(frame);
    }
    for pfn in 0..pages {
        let Some(frame) = memory.find(pfn) else {
            let frame = memory.fresh(pfn)?;
            let page = pfn * PAGE..(pfn + 1) * PAGE;
            if kernel
                .segments
                .iter()
                .any(|segment| overlaps(&segment.memory(), &page))
            {
                memory.frames.clear(frame);
            }
            continue;
        };
        let pieces = pieces(kernel, pfn);
        if in_place(&pieces).is_some_and(|page| image_frame(image, page) == frame) {
            let [piece] = pieces[..] else { continue };
            let end = piece.at + piece.len;
            memory.frames.write(frame, 0, &ZEROES[..piece.at]);
            memory.frames.write(frame, end, &ZEROES[end..]);
        }
    }
    Ok(())
}

/// Bytes of the image that belong into one page.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Where they are in the image.
    from: u64,
    /// Where they go in the page.
    at: usize,
    len: usize,
}

fn pieces(kernel: &Kernel, pfn: u64) -> Vec<Piece> {
    let page = pfn * PAGE..(pfn + 1) * PAGE;
    let wanted = |segment: &&_| overlaps(&super::elf::Segment::loaded(segment), &page);
    kernel
        .segments
        .iter()
        .filter(wanted)
        .map(|segment| {
            let loaded = segment.loaded();
            let start = loaded.start.max(page.start);
            let end = loaded.end.min(page.end);
            Piece {
                from: segment.offset + (start - loaded.start),
                at: (start - page.start) as usize,
                len: (end - start) as usize,
            }
        })
        .collect()
}

/// Returns the page of the image that could serve as the page of memory made of `pieces`.
fn in_place(pieces: &[Piece]) -> Option<u64> {
    match pieces {
        [piece] if piece.from % PAGE == piece.at as u64 => Some(piece.from / PAGE),
        _ => None,
    }
}

fn copy(frames: &impl Frames, image: &FrameList, piece: &Piece, to: Mfn) {
    let mut buffer = [0; PAGE_SIZE];
    let mut done = 0;
    while done < piece.len {
        let from = piece.from + done as u64;
        let offset = (from % PAGE) as usize;
        let len = (piece.len - done).min(PAGE_SIZE - offset);
        frames.read(image_frame(image, from / PAGE), offset, &mut buffer[..len]);
        frames.write(to, piece.at + done, &buffer[..len]);
        done += len;
    }
}

fn image_frame(image: &FrameList, page: u64) -> Mfn {
    image
        .get(page)
        .expect("segments were checked to lie within the image")
}

fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}
