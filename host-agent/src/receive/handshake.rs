//! The exact words that `xl migrate` and `xl migrate-receive` exchange around the stream
//! (`tools/xl/xl_migrate.c`), and waiting for them.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::job::{Error, Result};

/// The receiver's first words; all others end with a NUL.
pub(crate) const BANNER: &[u8] = b"xl migration receiver ready, send binary domain data.\n";
/// The receiver has the complete domain.
pub(crate) const READY: &[u8] = b"domain received, ready to unpause\0";
/// Permission to start the domain: from the sender, or back from a receiver that failed to start it.
pub(crate) const GO: &[u8] = b"domain is yours, you are cleared to unpause\0";
/// Followed by a byte: 0 if the receiver's copy runs, otherwise why not.
pub(crate) const REPORT: &[u8] = b"my copy unpause results are as follows\0";

/// Interval between two checks whether the wait must end.
const TICK: Duration = Duration::from_millis(200);
/// Bytes that are read from the peer at once.
const PIECE: usize = 256;

/// The words of a peer, as they arrive.
#[derive(Debug)]
pub(crate) struct Answers {
    pieces: Receiver<io::Result<Vec<u8>>>,
    have: Vec<u8>,
}

impl Answers {
    /// Listens until the peer closes its side.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn listen(mut from: impl Read + Send + 'static) -> Result<Self> {
        let (send, pieces) = sync_channel(4);
        thread::Builder::new()
            .name("answers".to_owned())
            .spawn(move || {
                loop {
                    let mut piece = vec![0; PIECE];
                    let piece = match from.read(&mut piece) {
                        Ok(0) => return,
                        Ok(len) => {
                            piece.truncate(len);
                            Ok(piece)
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => Err(error),
                    };
                    let is_last = piece.is_err();
                    if send.send(piece).is_err() || is_last {
                        return;
                    }
                }
            })
            .map_err(Error::io("cannot start a thread"))?;
        Ok(Self {
            pieces,
            have: Vec::new(),
        })
    }

    /// Waits for exactly these words.  Calls `go_on` a few times a second.
    ///
    /// # Errors
    /// [`Error::Peer`] if other words arrive or the peer ends; [`Error::TimedOut`]; or the error of `go_on`.
    pub(crate) fn expect(
        &mut self,
        words: &[u8],
        limit: Duration,
        go_on: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let got = self.take(words, words.len(), limit, go_on)?;
        if got == words {
            return Ok(());
        }
        Err(unexpected(words, &got))
    }

    /// Waits for the byte after [`REPORT`].
    ///
    /// # Errors
    /// As [`Answers::expect`].
    pub(crate) fn status(&mut self, limit: Duration) -> Result<u8> {
        let byte = self.take(b"", 1, limit, || Ok(()))?;
        Ok(byte.first().copied().unwrap_or(u8::MAX))
    }

    fn take(
        &mut self,
        words: &[u8],
        len: usize,
        limit: Duration,
        mut go_on: impl FnMut() -> Result<()>,
    ) -> Result<Vec<u8>> {
        let until = Instant::now() + limit;
        while self.have.len() < len {
            // Wrong words, such as a message of the day, are noticed before all of them have arrived.
            if !words.is_empty() && !words.starts_with(&self.have) {
                return Err(unexpected(words, &self.have));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::TimedOut(format!("waiting for \"{}\"", text(words))));
            }
            match self.pieces.recv_timeout(left.min(TICK)) {
                Ok(Ok(piece)) => self.have.extend(piece),
                Ok(Err(error)) => return Err(Error::Peer(error.to_string())),
                Err(RecvTimeoutError::Timeout) => go_on()?,
                Err(RecvTimeoutError::Disconnected) => {
                    go_on()?;
                    return Err(Error::Peer(format!(
                        "the receiver ended without saying \"{}\"",
                        text(words)
                    )));
                }
            }
        }
        Ok(self.have.drain(..len).collect())
    }
}

fn unexpected(words: &[u8], got: &[u8]) -> Error {
    Error::Peer(format!(
        "the receiver said \"{}\" instead of \"{}\"",
        text(got),
        text(words)
    ))
}

fn text(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    text.trim_end_matches(['\0', '\n']).escape_debug().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Answers, BANNER, GO, READY, REPORT};
    use crate::job::Error;

    const SOON: Duration = Duration::from_secs(60);

    #[test]
    fn the_words_have_the_lengths_that_xl_reads() {
        assert_eq!(BANNER.len(), 54);
        assert_eq!((READY.len(), GO.len(), REPORT.len()), (34, 44, 39));
    }

    #[test]
    fn what_comes_in_pieces_is_put_together() {
        let said = [BANNER, READY, REPORT, &[7]].concat();
        let mut answers = Answers::listen(std::io::Cursor::new(said)).unwrap();
        answers.expect(BANNER, SOON, || Ok(())).unwrap();
        answers.expect(READY, SOON, || Ok(())).unwrap();
        answers.expect(REPORT, SOON, || Ok(())).unwrap();
        assert_eq!(answers.status(SOON).unwrap(), 7);
    }

    #[test]
    fn a_message_of_the_day_is_named() {
        let mut answers = Answers::listen(&b"Welcome to host b\n"[..]).unwrap();
        let error = answers.expect(BANNER, SOON, || Ok(())).unwrap_err();
        assert!(error.to_string().contains("Welcome to host b"), "{error}");
    }

    #[test]
    fn a_receiver_that_ends_is_no_time_out() {
        let mut answers = Answers::listen(&BANNER[..9]).unwrap();
        let error = answers.expect(BANNER, SOON, || Ok(())).unwrap_err();
        assert!(matches!(error, Error::Peer(_)), "{error}");
    }
}
