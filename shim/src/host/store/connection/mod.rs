//! Requests, replies and watch events over the domain's own ring page.
//!
//! The connection never waits: submissions queue up, [`StoreConnection::flush`] moves bytes to
//! the daemon and [`StoreConnection::poll`] takes what came back.  Replies are given out in the
//! order of submission whatever order they come in.  The daemon is not trusted with more than its
//! job: indexes, lengths, ids and tokens are checked, and a daemon that breaks the ring gets every
//! request answered with `EIO`.
//!
//! After a migration the page is empty and the daemon has never heard of us: [`reset`] forgets
//! everything, and whoever needs an answer or a watch asks again.
//!
//! [`reset`]: StoreConnection::reset

mod receive;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use xen_abi::xs_wire::{MsgType, ring};
use xen_abi::{Errno, Mfn};

use super::message::{Incoming, encode};
use super::pipe::{BadIndex, Pipe};
use super::replace::{HostStore, Next, Replace};
use crate::host::{StoreClient, StoreEvent, StoreOp, Tag};
use crate::mem::Frames;

/// To the daemon.
const REQUESTS: Pipe = Pipe {
    buffer: ring::REQ,
    size: ring::SIZE,
    consumer: ring::REQ_CONS,
    producer: ring::REQ_PROD,
};

/// Requests sent and not yet answered; the daemon stops reading at 20.
const IN_FLIGHT: usize = 12;

/// Bytes that wait for room in the ring before no more requests are begun.
const OUTPUT: usize = 4096;

/// Messages taken at once when none of them is for a client.
const BATCH: usize = 64;

/// The tag of [`StoreConnection::call`]; no client may use it.
const CALL: Tag = Tag(u64::MAX);

/// The tag of a call that was given up.
const DROPPED: Tag = Tag(u64::MAX - 1);

/// Events kept for other clients during a call; more are left in the ring.
const KEPT: usize = 1024;

/// A submission that was not sent yet.
#[derive(Debug)]
enum Job {
    Op(StoreOp),
    Replace(Replace),
}

/// A request on its way.
#[derive(Debug)]
struct Active {
    tag: Tag,
    req_id: u32,
    kind: MsgType,
    /// A `Watch`'s token, to forget it should the daemon refuse.
    token: Option<u32>,
    /// The answer, kept until all earlier requests have theirs.
    answer: Option<Result<Vec<u8>, Errno>>,
}

/// A watch that the daemon has been asked for.
#[derive(Debug)]
struct Watch {
    token: u32,
    tag: Tag,
    path: String,
}

/// The connection to the real xenstored.
#[derive(Debug)]
pub struct StoreConnection {
    page: Mfn,
    waiting: VecDeque<(Tag, Job)>,
    active: VecDeque<Active>,
    /// The replacement under way; nothing else is sent meanwhile, so that replies keep their order.
    replacing: Option<Replace>,
    watches: Vec<Watch>,
    output: Vec<u8>,
    /// Bytes of `output` that are in the ring.
    sent: usize,
    incoming: Incoming,
    ready: VecDeque<(Tag, StoreEvent)>,
    next_id: u32,
    /// Bytes were taken from the ring since the daemon was last notified.
    took: bool,
    broken: bool,
}

impl StoreConnection {
    /// Makes the connection over `page`.
    pub fn new(page: Mfn) -> Self {
        Self {
            page,
            waiting: VecDeque::new(),
            active: VecDeque::new(),
            replacing: None,
            watches: Vec::new(),
            output: Vec::new(),
            sent: 0,
            incoming: Incoming::new(),
            ready: VecDeque::new(),
            next_id: 1,
            took: false,
            broken: false,
        }
    }

    /// Forgets every request, watch and event: the daemon at the other end is a new one.
    pub fn reset(&mut self) {
        *self = Self {
            // Old ids mean nothing to the new daemon, but different ones are easier to tell apart.
            next_id: self.next_id,
            ..Self::new(self.page)
        };
    }

    /// [`reset`](Self::reset)s the connection, whose page is `page` from now on.
    pub fn reconnect(&mut self, page: Mfn) {
        // Before the reset, which keeps the page.
        self.page = page;
        self.reset();
    }

    /// Whether [`flush`](Self::flush) or [`poll`](Self::poll) have something to do without the
    /// daemon's doing anything first.
    pub fn has_output(&self) -> bool {
        // Replies that wait to be taken count as well: whoever sleeps until the daemon's event must
        // not sleep over its own work.
        let can_begin = !self.waiting.is_empty() && self.active.len() < IN_FLIGHT;
        can_begin || self.sent < self.output.len() || !self.ready.is_empty()
    }

    /// Requests that have not been answered.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.active.len()
    }

    /// Whether the daemon broke the ring; only [`reset`](Self::reset) helps.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Sends what can be sent.  `true`: the daemon is to be notified.
    pub fn flush(&mut self, frames: &dyn Frames) -> bool {
        self.begin_waiting();
        // Also when nothing is written: the daemon may wait for room in its half of the ring, which
        // we have made by reading.
        let mut notify = core::mem::take(&mut self.took);
        while self.sent < self.output.len() && !self.broken {
            match REQUESTS.write(frames, self.page, &self.output[self.sent..]) {
                // The ring is full. The daemon's event tells when there is room.
                Ok(0) => break,
                Ok(count) => {
                    self.sent += count;
                    notify = true;
                }
                Err(BadIndex) => self.give_up("a bad request index"),
            }
        }
        // What is sent goes at once: with a daemon that is always behind, nothing else ever would.
        self.output.drain(..self.sent);
        self.sent = 0;
        notify
    }

    /// Returns the next reply or event, if one has come.  When nothing is left,
    /// [`flush`](Self::flush) sends what the replies have made possible.
    pub fn poll(&mut self, frames: &dyn Frames) -> Option<(Tag, StoreEvent)> {
        for _ in 0..BATCH {
            // First what is ready, then at most a batch of new messages: events of watches that
            // have ended could otherwise keep us here.
            let ready = self.next_ready();
            if ready.is_some() || !self.receive(frames) {
                // Giving the connection up answers everything, so look again.
                return ready.or_else(|| self.next_ready());
            }
        }
        self.next_ready()
    }

    fn next_ready(&mut self) -> Option<(Tag, StoreEvent)> {
        while let Some((tag, event)) = self.ready.pop_front() {
            // The answer to a call that was given up comes late, and belongs to nobody.
            if tag != CALL && tag != DROPPED {
                return Some((tag, event));
            }
        }
        None
    }

    /// Sends one request and waits for its reply, for boot and reattachment.
    ///
    /// `wait` is called each time there is nothing to do; it notifies the daemon if its argument
    /// says so, waits for the daemon's event, and returns `false` to give up (`ETIMEDOUT`).
    /// Everything for other clients is kept for [`poll`](Self::poll).
    pub fn call(
        &mut self,
        frames: &dyn Frames,
        op: StoreOp,
        mut wait: impl FnMut(bool) -> bool,
    ) -> Result<Vec<u8>, Errno> {
        self.submit(CALL, op);
        loop {
            let notify = self.flush(frames);
            // Bounded: the daemon decides how many events there are, and during a call nobody takes
            // them.
            while self.ready.len() < KEPT && self.receive(frames) {}
            let reply = self.ready.iter().position(|(tag, _)| *tag == CALL);
            if let Some((_, StoreEvent::Reply(answer))) = reply.and_then(|at| self.ready.remove(at))
            {
                return answer;
            }
            // Flushed again: what was received may have let a request go. `|` and not `||`, for the
            // flush is wanted in either case.
            if !wait(notify | self.flush(frames)) {
                self.drop_call();
                return Err(Errno::ETIMEDOUT);
            }
        }
    }

    /// Makes sure that the answer to a call that was given up is not taken for the next call's.
    fn drop_call(&mut self) {
        let active = self.active.iter_mut().map(|active| &mut active.tag);
        let waiting = self.waiting.iter_mut().map(|(tag, _)| tag);
        // The daemon will answer it all the same, so the request must stay where answers are looked
        // for.
        for tag in active.chain(waiting).filter(|tag| **tag == CALL) {
            *tag = DROPPED;
        }
    }

    fn begin_waiting(&mut self) {
        while !self.broken
            && self.replacing.is_none()
            && self.active.len() < IN_FLIGHT
            && self.output.len() < OUTPUT
        {
            // A replacement is several requests for one answer. Alone on its way, it cannot mix up
            // the order of the others' replies.
            let alone = matches!(self.waiting.front(), Some((_, Job::Replace(_))));
            if alone && !self.active.is_empty() {
                return;
            }
            match self.waiting.pop_front() {
                Some((tag, Job::Op(op))) => self.begin(tag, op),
                Some((tag, Job::Replace(mut replace))) => {
                    if let Next::Send(kind, tx, payload) = replace.first() {
                        self.replacing = Some(replace);
                        self.send(tag, kind, tx, &[&payload]);
                    }
                }
                None => return,
            }
        }
    }

    fn begin(&mut self, tag: Tag, op: StoreOp) {
        match op {
            StoreOp::Read(path) => self.send_path(tag, MsgType::READ, &path, &[]),
            StoreOp::Directory(path) => self.send_path(tag, MsgType::DIRECTORY, &path, &[]),
            StoreOp::Write(path, value) => self.send_path(tag, MsgType::WRITE, &path, &value),
            StoreOp::Remove(path) => self.send_path(tag, MsgType::RM, &path, &[]),
            StoreOp::Watch(path) => {
                // The id that the request is about to get, so that no second counter is needed.
                let token = self.next_id;
                self.send_path(tag, MsgType::WATCH, &path, format!("{token}\0").as_bytes());
                // Not for one that was refused before it was sent. Entered before the daemon has
                // answered: a new watch fires at once, perhaps before its reply comes.
                if let Some(active) = self.active.back_mut().filter(|new| new.answer.is_none()) {
                    active.token = Some(token);
                    self.watches.push(Watch { token, tag, path });
                }
            }
            StoreOp::Unwatch(path) => {
                let known = |watch: &Watch| watch.tag == tag && watch.path == path;
                match self.watches.iter().position(known) {
                    Some(at) => {
                        // Forgotten at once: an event that is on its way already finds no watch,
                        // and is dropped.
                        let token = format!("{}\0", self.watches.remove(at).token);
                        self.send_path(tag, MsgType::UNWATCH, &path, token.as_bytes());
                    }
                    None => self.answer_at_once(tag, Errno::ENOENT),
                }
            }
        }
    }

    fn send_path(&mut self, tag: Tag, kind: MsgType, path: &str, rest: &[u8]) {
        // The daemon would take the rest for another argument.
        if path.contains('\0') {
            self.answer_at_once(tag, Errno::EINVAL);
        } else {
            self.send(tag, kind, 0, &[path.as_bytes(), &[0], rest]);
        }
    }

    fn send(&mut self, tag: Tag, kind: MsgType, tx: u32, parts: &[&[u8]]) {
        let req_id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        // A request that is too long is still answered in its turn.
        let too_long = encode(&mut self.output, kind, req_id, tx, parts).is_none();
        self.active.push_back(Active {
            tag,
            req_id,
            kind,
            token: None,
            answer: too_long.then_some(Err(Errno::E2BIG)),
        });
        self.deliver();
    }

    /// Answers a request that is not sent, in its turn.
    fn answer_at_once(&mut self, tag: Tag, error: Errno) {
        self.active.push_back(Active {
            tag,
            // Never asked for: it has its answer already, so no reply is looked up by it.
            req_id: 0,
            kind: MsgType::ERROR,
            token: None,
            answer: Some(Err(error)),
        });
        self.deliver();
    }

    fn give_up(&mut self, why: &str) {
        log::error!("xenstore: the host's daemon sent {why}; it is not spoken to any more");
        self.broken = true;
        // Its tag is among the active ones, which are all answered below: nobody waits for ever.
        self.replacing = None;
        self.output.clear();
        self.sent = 0;
        let unanswered = self
            .active
            .drain(..)
            .map(|active| active.tag)
            .chain(self.waiting.drain(..).map(|(tag, _)| tag));
        self.ready
            .extend(unanswered.map(|tag| (tag, StoreEvent::Reply(Err(Errno::EIO)))));
    }

    fn enqueue(&mut self, tag: Tag, job: Job) {
        if self.broken {
            self.ready
                .push_back((tag, StoreEvent::Reply(Err(Errno::EIO))));
        } else {
            self.waiting.push_back((tag, job));
        }
    }
}

impl StoreClient for StoreConnection {
    fn submit(&mut self, tag: Tag, op: StoreOp) {
        self.enqueue(tag, Job::Op(op));
    }
}

impl HostStore for StoreConnection {
    fn replace_if(&mut self, tag: Tag, path: String, old: Vec<u8>, new: Vec<u8>) {
        self.enqueue(tag, Job::Replace(Replace::new(path, old, new)));
    }
}
