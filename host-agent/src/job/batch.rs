//! Where a stream of memory goes: over the wire, into a file, into the toolstack.
//!
//! The source writes a libxc stream into a [`Sink`], but not as one row of bytes: memory may travel in
//! any order within a round, so it is handed over as [`Batch`]es, and only what must stay in order goes
//! as bytes.  The sink at the destination gets the same calls and makes one row of them again.

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

    /// Pages with content that the words promise.
    #[must_use]
    pub fn content_pages(&self) -> usize {
        self.words.iter().filter(|word| has_content(**word)).count()
    }

    /// If the words are few enough and the data is what they promise.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.words.len() <= Self::MOST && self.data.len() == self.content_pages() * PAGE_SIZE
    }

    /// Forgets the content, keeps the memory.
    pub fn clear(&mut self) {
        self.words.clear();
        self.data.clear();
    }
}

/// Whether the page of this word has content in the stream: all but the types broken (0xD), to be
/// allocated only (0xE) and absent (0xF).
#[must_use]
pub const fn has_content(word: u64) -> bool {
    word >> 60 < 0xD
}

/// Whether a page is nothing but zeros.
#[must_use]
pub fn is_zero(page: &[u8]) -> bool {
    // Most pages with content show it early; within a piece no byte is asked for by itself.
    let (pieces, rest) = page.as_chunks::<256>();
    let of = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) == 0;
    pieces.iter().all(|piece| of(piece)) && of(rest)
}

/// Takes a libxc stream, from its image header to its END record.
///
/// [`Sink::bytes`] and [`Sink::barrier`] are called by one thread; [`Sink::pages`] by any number at a
/// time (as the wire's several connections do), but never while one of the other two is at work.
pub trait Sink: Send + Sync {
    /// Takes bytes of the stream that must stay in order: headers and records other than PAGE_DATA,
    /// whole, with their padding.  Everything given before stands before them in the stream.
    ///
    /// # Errors
    /// If they cannot be written; the stream is of no use any more.
    fn bytes(&self, bytes: &[u8]) -> Result<()>;

    /// Takes pages, in any order up to the next call of another method; no page occurs twice up to
    /// there.  An empty batch is allowed and means nothing.
    ///
    /// The sink may keep the batch's memory and leave other memory in its place, so that nobody copies
    /// and nobody allocates: the caller uses what is left for the next batch, after
    /// [`Batch::clear`], and must not expect to find in it what it was.
    ///
    /// # Errors
    /// As for [`Sink::bytes`].
    fn pages(&self, batch: &mut Batch) -> Result<()>;

    /// Returns when everything given so far has arrived at the far end of the sink, so that the time it
    /// takes tells how fast the way is.
    ///
    /// # Errors
    /// As for [`Sink::bytes`].
    fn barrier(&self) -> Result<()>;

    /// Takes digests of what the stream has brought, after its end, for the far end to compare with what it has
    /// made of it.  No part of the stream: other receivers know nothing of it.
    ///
    /// # Errors
    /// If the far end compares nothing: whoever was asked to have it compared must not be told that it was.
    fn digests(&self, _: Digests<'_>) -> Result<()> {
        Err(Error::Refused(
            "the receiver cannot verify the copy".to_owned(),
        ))
    }

    /// Whether the far end can build the domain while its memory is still on the way.  If so, the source
    /// sends before the memory which frames there will be (as "allocate only") and a first version of the
    /// state records, and the state again at the end: still a stream that every receiver takes, for the
    /// last version counts, but one from which the domain with its devices stands ready when the
    /// guest stops.
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
