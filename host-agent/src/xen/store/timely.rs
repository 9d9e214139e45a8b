//! Calls a blocking client with a time limit.
//!
//! `xenstore-rs`'s synchronous client waits for an answer for ever, so a hung xenstored would block all jobs,
//! including those that only want to resume their guest.  So a thread of its own makes the calls.  A call
//! that is late is abandoned together with its connection, and the next call opens a new one.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

type Work<C> = Box<dyn FnOnce(&C) + Send>;

/// Makes a connection.
type Connect<C> = fn() -> io::Result<C>;

/// The client and its thread.  An abandoned client ends when its server answers or closes the connection.
pub(super) struct Timely<C> {
    connect: Connect<C>,
    limit: Duration,
    worker: Mutex<Option<Sender<Work<C>>>>,
}

impl<C: Send + 'static> Timely<C> {
    /// Connects.  `limit` is the longest time for an answer.
    ///
    /// # Errors
    /// If the connection or the thread cannot be created.
    pub(super) fn new(connect: Connect<C>, limit: Duration) -> io::Result<Self> {
        let worker = Mutex::new(Some(start(connect()?)?));
        Ok(Self {
            connect,
            limit,
            worker,
        })
    }

    /// Makes a call.
    ///
    /// # Errors
    /// What the client returns, or [`io::ErrorKind::TimedOut`].
    pub(super) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&C) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let mut worker = self.worker.lock();
        let current = match &*worker {
            Some(current) => current,
            None => worker.insert(start((self.connect)()?)?),
        };
        let (tell, told) = channel();
        let work: Work<C> = Box::new(move |client| {
            // The caller may have given up.
            let _ = tell.send(question(client));
        });
        let answer = match current.send(work) {
            Ok(()) => told.recv_timeout(self.limit),
            Err(_) => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        // Without xenstored there is no answer, not even that a node is missing.
        let is_lost = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::TimedOut
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::InvalidData
            )
        };
        if answer.as_ref().is_err_and(is_lost) {
            *worker = None;
        }
        answer
    }
}

fn start<C: Send + 'static>(client: C) -> io::Result<Sender<Work<C>>> {
    let (give, taken) = channel::<Work<C>>();
    let thread = thread::Builder::new().name("xenstore".to_owned());
    thread.spawn(move || {
        for work in taken {
            work(&client);
        }
    })?;
    Ok(give)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::thread;
    use std::time::Duration;

    use super::Timely;

    fn client(limit: Duration) -> Timely<u32> {
        Timely::new(|| Ok(7), limit).unwrap()
    }

    #[test]
    fn answers_and_errors_come_back() {
        let client = client(Duration::from_secs(60));
        assert_eq!(client.ask(|seven| Ok(seven + 1)).unwrap(), 8);
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::BrokenPipe] {
            let error = client.ask(move |_| Err::<(), _>(kind.into())).unwrap_err();
            assert_eq!(error.kind(), kind);
        }
        assert_eq!(client.ask(|seven| Ok(*seven)).unwrap(), 7);
    }

    #[test]
    fn one_that_is_late_is_given_up_and_the_next_question_is_answered() {
        let client = client(Duration::from_millis(20));
        let late = client.ask(|_| {
            thread::sleep(Duration::from_secs(60));
            Ok(())
        });
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let answered = (0..100).find_map(|_| client.ask(|seven| Ok(*seven)).ok());
        assert_eq!(answered, Some(7));
    }
}
