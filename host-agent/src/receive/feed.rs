//! The toolstack's input: a pipe that can be cancelled while a thread writes to it.
//!
//! A toolstack that lives but no longer reads would block the writing thread for ever, and everyone who waits
//! for that thread.  Killing it is not enough, because its children hold the pipe, too.

use std::io::{self, IoSlice, Write};
use std::process::ChildStdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::job::{Error, Result, Stop};

/// Interval between two checks of a writer whether the pipe is cancelled.
const TICK: Duration = Duration::from_millis(200);

/// Cancels a pipe from any thread; an abort of the job does so, too.
#[derive(Clone, Debug)]
pub(crate) struct GiveUp {
    now: Arc<AtomicBool>,
    job: Stop,
}

impl GiveUp {
    /// Nothing is given up yet.
    pub(crate) fn with(job: Stop) -> Self {
        let now = Arc::default();
        Self { now, job }
    }

    /// Ends all writing soon.
    pub(crate) fn now(&self) {
        self.now.store(true, Ordering::Release);
    }

    /// # Errors
    /// [`Error::Aborted`] if the job was aborted.
    pub(crate) fn check_job(&self) -> Result<()> {
        if self.job.is_asked() {
            return Err(Error::Aborted);
        }
        Ok(())
    }

    fn is_asked(&self) -> bool {
        self.now.load(Ordering::Acquire) || self.job.is_asked()
    }
}

/// The pipe.
#[derive(Debug)]
pub(crate) struct Feed {
    pipe: ChildStdin,
    is_given_up: GiveUp,
}

impl Feed {
    /// Takes the pipe over.
    pub(crate) fn new(pipe: ChildStdin, is_given_up: GiveUp) -> io::Result<Self> {
        let flags = fcntl_getfl(&pipe)?;
        // For this end only: the reader still blocks.
        fcntl_setfl(&pipe, flags | OFlags::NONBLOCK)?;
        Ok(Self { pipe, is_given_up })
    }

    fn patiently(
        &mut self,
        mut write: impl FnMut(&mut ChildStdin) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: TICK.subsec_nanos().into(),
        };
        loop {
            if self.is_given_up.is_asked() {
                let why = "the toolstack's work was cancelled";
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, why));
            }
            match write(&mut self.pipe) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            match poll(&mut [PollFd::new(&self.pipe, PollFlags::OUT)], Some(&tick)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Write for Feed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.patiently(|pipe| pipe.write(bytes))
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.patiently(|pipe| pipe.write_vectored(pieces))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pipe.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};
    use std::thread;

    use super::{Feed, GiveUp};
    use crate::job::{Control, JobOptions};

    #[test]
    fn a_reader_gets_all_however_slow_it_is() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 0.1; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            out.read_to_end(&mut all).unwrap();
            all
        });
        let give_up = GiveUp::with(Control::new(JobOptions::default()).stop());
        let mut feed = Feed::new(child.stdin.take().unwrap(), give_up).unwrap();
        let sent: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
        feed.write_all(&sent).unwrap();
        drop(feed);
        assert!(reading.join().unwrap() == sent);
        child.wait().unwrap();
    }

    #[test]
    fn a_writer_is_not_held_by_who_does_not_read() {
        for is_abort in [false, true] {
            let mut child = Command::new("sleep")
                .arg("60")
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let control = Control::new(JobOptions::default());
            let give_up = GiveUp::with(control.stop());
            let mut feed = Feed::new(child.stdin.take().unwrap(), give_up.clone()).unwrap();
            let writing = thread::spawn(move || feed.write_all(&vec![0; 4 << 20]));
            if is_abort {
                control.abort();
                give_up.check_job().unwrap_err();
            } else {
                give_up.now();
                give_up.check_job().unwrap();
            }
            writing.join().unwrap().unwrap_err();
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
