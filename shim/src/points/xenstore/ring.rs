//! The guest's ring page: bytes in, messages answered, bytes out.
//!
//! Everything in the page is the guest's to write, so nothing in it is trusted.  A guest that
//! breaks the ring, or sends a message longer than allowed, loses its connection: all it had set
//! up is forgotten and the page is not looked at again, as the daemon does.  A guest that does
//! not read is not read from, so it can not make the shim hold more than the quota.

use alloc::vec::Vec;

use xen_abi::Mfn;
use xen_abi::xs_wire::{Header, ring};

use super::changed::Changed;
use super::daemon::{ConnId, Daemon};
use crate::host::store::message::{Incoming, TooLong};
use crate::host::store::pipe::{BadIndex, Pipe};
use crate::mem::Frames;

/// From the guest.
const REQUESTS: Pipe = Pipe {
    buffer: ring::REQ,
    size: ring::SIZE,
    consumer: ring::REQ_CONS,
    producer: ring::REQ_PROD,
};

/// To the guest.
const RESPONSES: Pipe = Pipe {
    buffer: ring::RSP,
    size: ring::SIZE,
    consumer: ring::RSP_CONS,
    producer: ring::RSP_PROD,
};

/// Messages answered in one go, so that a guest that sends without end gets no more than its turn.
const BATCH: usize = 32;

/// Why the connection was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// An index lies outside what is possible.
    Index,
    /// A message claims to be longer than allowed.
    TooLong(u32),
}

impl From<BadIndex> for Broken {
    fn from(_: BadIndex) -> Self {
        Self::Index
    }
}

impl From<TooLong> for Broken {
    fn from(TooLong(len): TooLong) -> Self {
        Self::TooLong(len)
    }
}

/// What one turn has done.
#[derive(Debug, Default)]
pub struct Turn {
    /// The page has changed: the guest's port is to be raised.
    pub notify: bool,
    /// There is more to do, which only waits for the next turn.
    pub again: bool,
}

/// The guest's connection through its page.
#[derive(Debug)]
pub struct GuestRing {
    page: Mfn,
    connection: ConnId,
    input: Incoming,
    broken: bool,
}

impl GuestRing {
    /// Begins to serve `page`, in which no feature is offered.
    pub fn new(frames: &dyn Frames, page: Mfn, connection: ConnId) -> Self {
        frames.store32(page, ring::SERVER_FEATURES, 0);
        Self {
            page,
            connection,
            input: Incoming::new(),
            broken: false,
        }
    }

    /// Whether the connection was given up.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Takes what the guest has sent, answers it, and sends what waits.  What the guest changes in
    /// the store is added to `changed`.
    pub(super) fn serve(
        &mut self,
        frames: &dyn Frames,
        core: &mut Daemon,
        changed: &mut Changed,
    ) -> Turn {
        let mut turn = Turn::default();
        if self.broken {
            return turn;
        }
        if let Err(broken) = self.exchange(frames, core, changed, &mut turn) {
            self.give_up(frames, core, broken);
            turn.again = false;
        }
        turn
    }

    fn exchange(
        &mut self,
        frames: &dyn Frames,
        core: &mut Daemon,
        changed: &mut Changed,
        turn: &mut Turn,
    ) -> Result<(), Broken> {
        let mut answered = 0;
        loop {
            self.send(frames, core, turn)?;
            let connection = core.connection(self.connection);
            let is_full = core.memory_left(connection.domid) == 0;
            // One that reads is always read from: it can only get less by asking.
            if connection.queue.replies() >= core.limits.outstanding
                || is_full && !connection.queue.is_empty()
            {
                return Ok(());
            }
            if answered == BATCH {
                turn.again = REQUESTS.pending(frames, self.page)? > 0;
                return Ok(());
            }
            let Some((header, payload)) = self.receive(frames, turn)? else {
                return Ok(());
            };
            for change in core.handle(self.connection, &header, &payload) {
                changed.add(change.name);
            }
            answered += 1;
        }
    }

    /// Reads until a message is complete or nothing more is there.
    fn receive(
        &mut self,
        frames: &dyn Frames,
        turn: &mut Turn,
    ) -> Result<Option<(Header, Vec<u8>)>, Broken> {
        loop {
            let message = self.input.take();
            if message.is_some() {
                return Ok(message);
            }
            let count = REQUESTS.read(frames, self.page, self.input.room())?;
            if count == 0 {
                return Ok(None);
            }
            // Also for what was only taken: the guest may be waiting for room to go on writing.
            turn.notify = true;
            self.input.filled(count)?;
        }
    }

    fn send(&self, frames: &dyn Frames, core: &mut Daemon, turn: &mut Turn) -> Result<(), Broken> {
        let queue = &mut core.connection_mut(self.connection).queue;
        while !queue.is_empty() {
            let count = RESPONSES.write(frames, self.page, queue.front())?;
            if count == 0 {
                break;
            }
            queue.consume(count);
            turn.notify = true;
        }
        Ok(())
    }

    fn give_up(&mut self, frames: &dyn Frames, core: &mut Daemon, why: Broken) {
        log::warn!("xenstore: the guest broke its ring ({why:?}); it is not served any more");
        let code = match why {
            Broken::Index => ring::ERROR_RINGIDX,
            Broken::TooLong(_) => ring::ERROR_PROTO,
        };
        frames.store32(self.page, ring::ERROR, code);
        self.broken = true;
        self.input = Incoming::new();
        // Its transactions and watches would else count towards the quota for ever.
        core.reset(self.connection);
    }
}
