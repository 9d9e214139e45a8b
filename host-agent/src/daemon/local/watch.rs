//! Sends the progress of jobs, one frame after the other, until the jobs end or the client goes away.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_listener::Listener;

use super::Told;
use crate::daemon::{Daemon, Job, JobStatus};
use crate::transport::frame::write_message;

/// Shortest time between two frames about a watched job.
const PAUSE: Duration = Duration::from_millis(200);

/// Sends one job's progress until it ends.
pub(super) fn one(job: &Job, stream: &mut UnixStream) -> io::Result<()> {
    let mut from = 0;
    loop {
        let listener = job.control.listen();
        let status = job.status(from);
        from = status.events.last().map_or(from, |last| last.number + 1);
        let is_over = status.is_over;
        let told = Told::Answer(serde_json::to_value(status)?);
        write_message(stream, &told)?;
        if is_over {
            return Ok(());
        }
        // Figures change with every batch; a person needs them less often, but an end at once.
        let until = Instant::now() + PAUSE;
        listener.wait_deadline(until);
        while job.result().is_none() && Instant::now() < until {
            let listener = job.control.listen();
            if job.result().is_none() {
                listener.wait_deadline(until);
            }
        }
    }
}

/// Sends the progress of all jobs, including new ones, until the client goes away.
pub(super) fn all(daemon: &Daemon, stream: &mut UnixStream) -> io::Result<()> {
    // The client sends nothing more, so this read waits, and notices when the client goes away.
    stream.set_read_timeout(Some(PAUSE))?;
    let mut heard = Heard::default();
    loop {
        for status in heard.news(&daemon.jobs()) {
            write_message(stream, &Told::Answer(serde_json::to_value(status)?))?;
        }
        let silence = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        match stream.read_exact(&mut [0]) {
            Err(error) if silence.contains(&error.kind()) => {}
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => return Ok(()),
        }
    }
}

/// What a client has been told.
#[derive(Debug, Default)]
struct Heard {
    /// The number of each job's next event; empty before the first look.
    next: Option<BTreeMap<String, u64>>,
}

impl Heard {
    /// The status of the jobs with new events, with those events.  Jobs that ended before the first look are
    /// not new.
    fn news(&mut self, jobs: &[Arc<Job>]) -> Vec<JobStatus> {
        let before = self.next.take();
        let mut next = BTreeMap::new();
        let mut news = Vec::new();
        for job in jobs {
            let from = before.as_ref().and_then(|before| before.get(&job.id));
            let from = from.copied().unwrap_or(0);
            let status = job.status(from);
            let end = status.events.last().map_or(from, |last| last.number + 1);
            next.insert(job.id.clone(), end);
            let is_old = before.is_none() && status.is_over;
            if !is_old && !status.events.is_empty() {
                news.push(status);
            }
        }
        self.next = Some(next);
        news
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Heard;
    use crate::daemon::{Direction, Job};
    use crate::job::{Control, JobOptions};

    fn job(id: &str) -> Arc<Job> {
        let control = Arc::new(Control::new(JobOptions::default()));
        let (domain, peer) = ("guest".to_owned(), "beta".to_owned());
        Job::new(id.to_owned(), Direction::Outgoing, domain, peer, control)
    }

    /// The messages, behind their jobs' names.
    fn said(heard: &mut Heard, jobs: &[Arc<Job>]) -> Vec<String> {
        let mut said = Vec::new();
        for status in heard.news(jobs) {
            let line = |message: &str| format!("{} {message}", status.id);
            said.extend(status.events.iter().map(|event| line(&event.message)));
        }
        said
    }

    #[test]
    fn each_event_is_news_once() {
        let mut heard = Heard::default();
        let (old, first, second) = (job("0"), job("1"), job("2"));
        old.control.tell("long ago");
        old.end(Ok(()));
        first.control.tell("before anybody asked");
        let mut jobs = vec![old, first.clone()];
        assert_eq!(said(&mut heard, &jobs), ["1 before anybody asked"]);
        assert!(said(&mut heard, &jobs).is_empty());
        jobs.push(second.clone());
        second.control.tell("new");
        first.control.tell("more");
        assert_eq!(said(&mut heard, &jobs), ["1 more", "2 new"]);
        first.end(Err("why".to_owned()));
        assert_eq!(said(&mut heard, &jobs), ["1 failed: why"]);
        // One that began and ended between two looks.
        let short = job("3");
        short.end(Ok(()));
        jobs.push(short);
        assert_eq!(said(&mut heard, &jobs), ["3 done"]);
        // Forgotten by the daemon.
        jobs.clear();
        assert!(said(&mut heard, &jobs).is_empty());
    }
}
