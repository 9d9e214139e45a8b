//! What came out of a stream, to be compared with what went in.

use parking_lot::Mutex;
use unmoved::job::{Batch, Chunk, Digests, Result, Sink, StateDigests};

/// What arrived, in order; batches up to the next call of another kind are sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arrived {
    Bytes(Vec<u8>),
    Pages(Vec<u64>, Vec<u8>),
    Barrier,
    /// Of all frames that come one after the other.
    Digests(Vec<Told>),
    State([[u8; 16]; 3]),
}

/// A chunk of memory: first frame, which are counted, digest.
pub type Told = (u64, [u64; 4], [u8; 16]);

/// A sink that keeps what it is given.
#[derive(Default)]
pub struct Record(pub Mutex<Vec<Arrived>>);

impl Sink for Record {
    fn bytes(&self, bytes: &[u8]) -> Result<()> {
        self.0.lock().push(Arrived::Bytes(bytes.to_vec()));
        Ok(())
    }

    fn pages(&self, batch: &mut Batch) -> Result<()> {
        let pages = Arrived::Pages(batch.words.clone(), batch.data.clone());
        self.0.lock().push(pages);
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        self.0.lock().push(Arrived::Barrier);
        Ok(())
    }

    fn digests(&self, digests: Digests<'_>) -> Result<()> {
        let mut all = self.0.lock();
        match digests {
            Digests::Memory(chunks) => {
                let told = |chunk: &Chunk| (chunk.first, chunk.counted, chunk.digest);
                let told = chunks.iter().map(told);
                match all.last_mut() {
                    Some(Arrived::Digests(before)) => before.extend(told),
                    _ => all.push(Arrived::Digests(told.collect())),
                }
            }
            Digests::State(StateDigests {
                tsc,
                context,
                params,
            }) => all.push(Arrived::State([tsc, context, params])),
        }
        Ok(())
    }
}

impl Record {
    /// In an order that does not depend on which connection was faster; barriers left out.
    pub fn sorted(self) -> Vec<Arrived> {
        let mut all = self.0.into_inner();
        for run in
            all.chunk_by_mut(|a, b| matches!((a, b), (Arrived::Pages(..), Arrived::Pages(..))))
        {
            run.sort();
        }
        all.retain(|arrived| *arrived != Arrived::Barrier);
        all
    }
}
