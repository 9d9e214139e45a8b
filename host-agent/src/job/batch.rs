//! Where a stream of memory goes: over the network, into a file, or into the toolstack.
//!
//! The source writes a libxc stream into a [`Sink`].  Memory may travel in any order within a round, so it is
//! passed as [`Batch`]es; only what must stay in order is passed as bytes.  The sink at the destination gets
//! the same calls and builds one stream of them again.

use super::{Digests, Error, Result};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// Pages of one PAGE_DATA record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The record's words: page type in bits 63–60, pfn in bits 51–0.  At most [`Batch::MOST`].
    pub words: Vec<u64>,
    /// The content of each page that [has any](has_content), one after the other.
    pub data: Vec<u8>,
}

impl Batch {
    /// Most pages in one batch: what Xen's own writer puts into one record.
    pub const MOST: usize = 1024;

    /// Number of pages with content, by the words.
    #[must_use]
    pub fn content_pages(&self) -> usize {
        self.words.iter().filter(|word| has_content(**word)).count()
    }

    /// Whether the number of words is within the limit and the data has the length that the words require.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.words.len() <= Self::MOST && self.data.len() == self.content_pages() * PAGE_SIZE
    }

    /// Clears the content, and keeps the allocations.
    pub fn clear(&mut self) {
        self.words.clear();
        self.data.clear();
    }
}

/// Whether the page of this word has content in the stream: all types except broken (0xD), allocate only
/// (0xE) and absent (0xF).
#[must_use]
pub const fn has_content(word: u64) -> bool {
    word >> 60 < 0xD
}

/// Whether a page is all zero.
#[must_use]
pub fn is_zero(page: &[u8]) -> bool {
    // Most pages with content show it early; within a piece, bytes are compared together.
    let (pieces, rest) = page.as_chunks::<256>();
    let of = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) == 0;
    pieces.iter().all(|piece| of(piece)) && of(rest)
}

/// Takes a libxc stream, from its image header to its END record.
///
/// One thread calls [`Sink::bytes`] and [`Sink::barrier`].  Any number of threads may call [`Sink::pages`] at
/// a time (several connections do), but never during one of the other two.
pub trait Sink: Send + Sync {
    /// Takes bytes of the stream that must stay in order: complete headers and records other than PAGE_DATA,
    /// with their padding.  They come after everything that was passed before.
    ///
    /// # Errors
    /// If they cannot be written; the stream is unusable then.
    fn bytes(&self, bytes: &[u8]) -> Result<()>;

    /// Takes pages, in any order up to the next call of another method.  No page occurs twice in that span.
    /// An empty batch does nothing.
    ///
    /// The sink may keep the batch's memory and put other memory in its place, so that nothing is copied or
    /// allocated.  The caller reuses what is left for the next batch, after [`Batch::clear`], and must not
    /// expect the old content in it.
    ///
    /// # Errors
    /// As for [`Sink::bytes`].
    fn pages(&self, batch: &mut Batch) -> Result<()>;

    /// Returns when everything passed so far has arrived at the far end, so that its duration measures the
    /// speed.
    ///
    /// # Errors
    /// As for [`Sink::bytes`].
    fn barrier(&self) -> Result<()>;

    /// Takes digests of the stream's content, after its end, for the far end to compare with its copy.  They
    /// are not part of the stream, and other receivers do not know them.
    ///
    /// # Errors
    /// If the far end cannot compare: a caller that asked for it must not believe that it happened.
    fn digests(&self, _: Digests<'_>) -> Result<()> {
        Err(Error::Refused(
            "the receiver cannot verify the copy".to_owned(),
        ))
    }

    /// Whether the far end can build the domain while its memory still arrives.  If so, the source sends the
    /// frame numbers (as "allocate only") and a first version of the state records before the memory, and the
    /// state again at the end.  Every receiver can take this stream, because the last version counts; but
    /// here the domain and its devices are ready when the guest stops.
    fn builds_early(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::{Batch, PAGE_SIZE, has_content, is_zero};

    #[test]
    fn broken_unallocated_and_absent_pages_have_no_content() {
        for page_type in 0..16_u64 {
            assert_eq!(has_content(page_type << 60 | 5), page_type < 13);
        }
    }

    #[test]
    fn one_byte_anywhere_makes_a_page_one_with_content() {
        let mut page = [0; PAGE_SIZE + 3];
        assert!(is_zero(&page) && is_zero(&[]));
        for at in 0..page.len() {
            page[at] = 0x80;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
    }

    #[test]
    fn a_batch_is_sound_if_its_data_is_what_its_words_promise() {
        let mut batch = Batch {
            words: vec![1, 0xF000_0000_0000_0002, 3],
            data: vec![0; 2 * PAGE_SIZE],
        };
        assert!(batch.is_sound());
        batch.data.pop();
        assert!(!batch.is_sound());
        batch.words = vec![0xF000_0000_0000_0000; Batch::MOST + 1];
        batch.data.clear();
        assert!(!batch.is_sound());
    }
}
