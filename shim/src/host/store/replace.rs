//! Replacing a value only if it still is what it was.
//!
//! The toolstack clears `control/shutdown` itself when the guest did not answer in time: it reads
//! the node again and clears it in a transaction, and takes any value but the request's as an
//! acknowledgement.  A plain write of ours could clear a *later* request unseen, or acknowledge
//! one that was just withdrawn.  So ours is a transaction as well: whichever ends first wins, and
//! the other sees it.

use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::Errno;
use xen_abi::xs_wire::MsgType;

use super::super::{StoreClient, Tag};

/// A client of the real store that can replace a value if it is still the expected one.
pub trait HostStore: StoreClient {
    /// Queues the replacement of `path`'s value `old` by `new`.  The reply is
    /// [`REPLACED`] or [`KEPT`], in order with all other replies.
    fn replace_if(&mut self, tag: Tag, path: String, old: Vec<u8>, new: Vec<u8>);
}

/// The reply when the value was replaced.
pub const REPLACED: &[u8] = b"T";
/// The reply when the node is gone or had another value, which it keeps.
pub const KEPT: &[u8] = b"F";

/// Commits tried before giving up with `EAGAIN`.
const ATTEMPTS: u32 = 16;

/// How far a replacement has come: which answer it waits for.
#[derive(Debug)]
enum ReplacementStage {
    Start,
    Read,
    Write,
    End(Result<&'static [u8], Errno>),
}

/// A replacement under way.
#[derive(Debug)]
pub struct Replace {
    path: String,
    old: Vec<u8>,
    new: Vec<u8>,
    stage: ReplacementStage,
    transaction: u32,
    attempts: u32,
}

/// What a replacement does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Sends this request: type, transaction, payload.
    Send(MsgType, u32, Vec<u8>),
    /// It is over, with this reply.
    Done(Result<Vec<u8>, Errno>),
}

impl Replace {
    /// Begins a replacement; the first step is [`first`](Self::first).
    pub fn new(path: String, old: Vec<u8>, new: Vec<u8>) -> Self {
        Self {
            path,
            old,
            new,
            stage: ReplacementStage::Start,
            transaction: 0,
            attempts: 0,
        }
    }

    /// The request to begin with.
    pub fn first(&mut self) -> Next {
        self.stage = ReplacementStage::Start;
        // Bounded: other clients may commit under us each time, and a store that always has a
        // conflict must not hold all that waits behind this.
        self.attempts += 1;
        Next::Send(MsgType::TRANSACTION_START, 0, Vec::from([0]))
    }

    /// Takes the answer to the last request and says what is next.
    pub fn answered(&mut self, answer: Result<Vec<u8>, Errno>) -> Next {
        match (&self.stage, answer) {
            (ReplacementStage::Start, Ok(id)) => match parse_id(&id) {
                Some(id) => {
                    self.transaction = id;
                    self.stage = ReplacementStage::Read;
                    self.send(MsgType::READ, &[self.path.as_bytes(), &[0]])
                }
                None => Next::Done(Err(Errno::EIO)),
            },
            // No transaction was opened, so there is none to end.
            (ReplacementStage::Start, Err(error)) => Next::Done(Err(error)),
            (ReplacementStage::Read, Ok(value)) if value == self.old => {
                self.stage = ReplacementStage::Write;
                self.send(MsgType::WRITE, &[self.path.as_bytes(), &[0], &self.new])
            }
            // The transaction is ended on every way out: the daemon keeps an open one for ever, and
            // counts it.
            (ReplacementStage::Read, Ok(_) | Err(Errno::ENOENT)) => self.end(Ok(KEPT)),
            (ReplacementStage::Write, Ok(_)) => self.end(Ok(REPLACED)),
            (ReplacementStage::Read | ReplacementStage::Write, Err(error)) => self.end(Err(error)),
            // Somebody else has committed first. The value is read again, since it may be what they
            // changed.
            (ReplacementStage::End(Ok(REPLACED)), Err(Errno::EAGAIN))
                if self.attempts < ATTEMPTS =>
            {
                self.first()
            }
            (ReplacementStage::End(Ok(REPLACED)), Err(error)) => Next::Done(Err(error)),
            // An aborted transaction has changed nothing, however its end was answered.
            (ReplacementStage::End(outcome), _) => Next::Done(outcome.map(Vec::from)),
        }
    }

    fn end(&mut self, outcome: Result<&'static [u8], Errno>) -> Next {
        let commit: &[u8] = if outcome == Ok(REPLACED) {
            b"T\0"
        } else {
            b"F\0"
        };
        self.stage = ReplacementStage::End(outcome);
        self.send(MsgType::TRANSACTION_END, &[commit])
    }

    fn send(&self, kind: MsgType, parts: &[&[u8]]) -> Next {
        Next::Send(kind, self.transaction, parts.concat())
    }
}

/// A transaction's id as the daemon prints it.
fn parse_id(payload: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(payload.strip_suffix(&[0])?).ok()?;
    // 0 would mean *no transaction*, and the write would be a plain one.
    text.parse().ok().filter(|id| *id != 0)
}

#[cfg(test)]
mod tests {
    use xen_abi::Errno;
    use xen_abi::xs_wire::MsgType;

    use super::{ATTEMPTS, Next, Replace};

    type Sent = Vec<(MsgType, u32, Vec<u8>)>;

    /// Runs a replacement of `suspend` by nothing against a store that gives these answers.
    fn run(answers: &[Result<&[u8], Errno>]) -> (Sent, Result<Vec<u8>, Errno>) {
        let mut replace = Replace::new("control/shutdown".into(), b"suspend".to_vec(), Vec::new());
        let mut sent = Vec::new();
        let mut next = replace.first();
        for answer in answers {
            match next {
                Next::Send(kind, tx, payload) => sent.push((kind, tx, payload)),
                Next::Done(_) => panic!("over before {answer:?}"),
            }
            next = replace.answered(answer.map(<[u8]>::to_vec));
        }
        match next {
            Next::Done(result) => (sent, result),
            other => panic!("not over: {other:?}"),
        }
    }

    #[test]
    fn the_expected_value_is_replaced() {
        let (sent, result) = run(&[Ok(b"7\0"), Ok(b"suspend"), Ok(b"OK\0"), Ok(b"OK\0")]);
        assert_eq!(result, Ok(b"T".to_vec()));
        assert_eq!(sent[1], (MsgType::READ, 7, b"control/shutdown\0".to_vec()));
        assert_eq!(sent[2], (MsgType::WRITE, 7, b"control/shutdown\0".to_vec()));
        assert_eq!(sent[3], (MsgType::TRANSACTION_END, 7, b"T\0".to_vec()));
    }

    #[test]
    fn any_other_value_is_kept() {
        for value in [Ok(&b""[..]), Ok(b"poweroff"), Err(Errno::ENOENT)] {
            let (sent, result) = run(&[Ok(b"7\0"), value, Ok(b"OK\0")]);
            assert_eq!(result, Ok(b"F".to_vec()));
            assert_eq!(sent[2], (MsgType::TRANSACTION_END, 7, b"F\0".to_vec()));
        }
    }

    #[test]
    fn a_conflict_looks_again() {
        let lost = [
            Ok(&b"7\0"[..]),
            Ok(b"suspend"),
            Ok(b"OK\0"),
            Err(Errno::EAGAIN),
        ];
        let withdrawn = [Ok(&b"8\0"[..]), Ok(b""), Ok(b"OK\0")];
        let (_, result) = run(&[&lost[..], &withdrawn].concat());
        assert_eq!(result, Ok(b"F".to_vec()));
        let (_, result) = run(&lost.repeat(ATTEMPTS as usize));
        assert_eq!(result, Err(Errno::EAGAIN));
    }

    #[test]
    fn errors_end_the_transaction() {
        assert_eq!(run(&[Err(Errno::ENOSPC)]).1, Err(Errno::ENOSPC));
        assert_eq!(run(&[Ok(b"x\0")]).1, Err(Errno::EIO));
        let (sent, result) = run(&[
            Ok(b"7\0"),
            Ok(b"suspend"),
            Err(Errno::EACCES),
            Err(Errno::ENOENT),
        ]);
        assert_eq!((sent.len(), result), (4, Err(Errno::EACCES)));
    }
}
